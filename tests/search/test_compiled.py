"""Compiled loops choose what the tensors choose, wherever that is defined but for last bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from gkp.nets import models
from gkp.search import beam, objective, select
from gkp.search.compiled.distances import distances
from gkp.search.compiled.ranks import rank, rank_shares, ranking

ROOT = Path(__file__).parents[2]


def by_tensors(weight: torch.Tensor, **options):
    """`select` where Numba is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "compiles", lambda: False)
        return select(weight, **options)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    channels=st.integers(5, 24),
    rate=st.floats(0.1, 0.8),
    width=st.integers(1, 4),
    check_step=st.integers(1, 4),
    neighbours=st.integers(0, 3),
    alpha=st.sampled_from((0.0, 0.3, 0.9, 1.0)),
    beta=st.sampled_from(("reference", "exact", 0.2)),
    outer=st.booleans(),
    decision=st.sampled_from(("cost", "smoothness")),
    starts=st.sampled_from((None, 1, 3)),
)
def test_every_setting_chooses_alike(seed: int, channels: int, width: int, outer: bool, **options) -> None:
    weight = torch.randn(6, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    options |= {"groups": 2, "beam_width": width, "outer_in_beam": outer}
    ours, theirs = select(weight, **options), by_tensors(weight, **options)
    assert torch.equal(ours.filter_order, theirs.filter_order)
    assert torch.equal(ours.kept, theirs.kept)
    assert torch.allclose(ours.cost, theirs.cost, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("network", ["resnet20", "vgg16"])
def test_whole_networks(network: str) -> None:
    """Scores of Eq. 2 tie by last bits: fused multiply-adds choose otherwise here."""
    torch.manual_seed(0)
    layers = [m.weight for m in models.create(network).modules() if isinstance(m, torch.nn.Conv2d)][1:]
    for weight in (weight for weight in layers if weight.shape[1] <= 128):
        assert torch.equal(select(weight).kept, by_tensors(weight).kept)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(1, 200), values=st.integers(1, 40), alpha=st.floats(0, 1))
def test_ranks_are_those_of_the_stable_sorts(seed: int, count: int, values: int, alpha: float) -> None:
    """Few values tie often; more than 32 are sorted in runs that are merged."""
    draw = torch.Generator().manual_seed(seed)
    cost, smooth = torch.randint(0, values, (2, count), generator=draw).double() * 0.1
    expected = beam.best_first(beam.rounded(cost[None]), beam.rounded(smooth[None]), alpha)[0]
    order = ranking(count)
    child = torch.arange(count).numpy()
    rank(cost.numpy(), smooth.numpy(), child, count, rank_shares(alpha, count), beam.TIE, order)
    assert order.best.tolist() == expected.tolist()


@given(seed=st.integers(0, 9999), count=st.integers(1, 150), length=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_distances_are_scipys_and_zero_between_equal_vectors(seed: int, count: int, length: int) -> None:
    vectors = torch.randn(count, length, generator=torch.Generator().manual_seed(seed)).double()
    vectors[count // 2] = vectors[0]
    found = distances(vectors.numpy())
    assert found == pytest.approx(cdist(vectors, vectors), rel=1e-12, abs=1e-12)
    assert (found == found.T).all()
    assert found[count // 2, 0] == 0


def test_tensors_have_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(beam, "start")
    select(torch.randn(8, 8, 3, 3), groups=2)
    with pytest.raises(AttributeError, match="start"):
        by_tensors(torch.randn(8, 8, 3, 3), groups=2)


def test_more_steps_than_kernels_are_all_steps() -> None:
    weight = torch.randn(4, 9, 3, 3, generator=torch.Generator().manual_seed(0))
    found = [select(weight, groups=2, check_step=steps, beta=0.2).kept for steps in (5, 60)]
    assert torch.equal(*found)


def test_distances_beyond_all_numbers_end_the_search_too() -> None:
    weight = torch.randn(4, 70, 3, 3, generator=torch.Generator().manual_seed(0)).double() * 1e160
    assert select(weight, groups=2).kept.shape == (2, 39)


def test_equal_kernels_cost_what_they_cost_by_tensors() -> None:
    weight = torch.randn(8, 12, 3, 3, generator=torch.Generator().manual_seed(1))
    weight[:, 6:] = weight[:, :6]
    ours, theirs = select(weight, groups=4), by_tensors(weight, groups=4)
    assert torch.allclose(ours.cost, theirs.cost)


def test_groups_side_by_side_are_groups_one_by_one() -> None:
    weight = torch.randn(16, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(select(weight).kept)
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_the_package_prunes_without_numba(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'numba' else find(name, *more)\n"
        "import torch, gkp.search\n"
        "gkp.search.select(torch.randn(8, 8, 3, 3))\n"
        "assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120)
