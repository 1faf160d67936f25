"""The search against the released one's golden choices, a plain-Python reference and enumeration."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.search import arena, select, selection
from gkp.search.objective import (
    ARITHMETICS,
    Problem,
    grouped_kernel_distance,
    kept_count,
    resolve_beta,
    set_cost,
)
from gkp.search.smoothness import smoothness

GOLDEN = Path(__file__).parents[2] / "expected" / "golden"
CASES = json.loads((GOLDEN / "kept_kernels_random.json").read_text())


def random_weight(seed: int, filters: int, channels: int) -> torch.Tensor:
    values = np.random.RandomState(seed).standard_normal((filters, channels, 3, 3))  # noqa: NPY002
    return torch.from_numpy((values * 0.1).astype(np.float32))


def problem_of(
    weight: torch.Tensor, order: torch.Tensor, rate: float, beta: float, neighbours: int = 1
) -> Problem:
    weight = weight.double()
    keep = kept_count(weight.shape[1], rate)
    smooth = smoothness(weight)[order].sum(1)
    return Problem(grouped_kernel_distance(weight, order), smooth, keep, beta, neighbours)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["weight_seed"]))
def test_released_choice_on_random_layers(case: dict, arithmetic: str) -> None:
    options = dict(case)
    kept, order = options.pop("kept"), options.pop("filter_order")
    weight = random_weight(
        options.pop("weight_seed"), options.pop("out_channels"), options.pop("in_channels")
    )
    selection = select(weight, **options, arithmetic=arithmetic)
    assert selection.filter_order.tolist() == order
    assert selection.kept.tolist() == kept


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_released_choice_on_the_authors_network(authors20: torch.nn.Module, arithmetic: str) -> None:
    for name, golden in json.loads((GOLDEN / "kept_kernels_resnet20_ba.json").read_text()).items():
        stage, block, conv = name.removeprefix("stage_").split(".")
        weight = (
            getattr(authors20, f"layer{stage}")[int(block)]
            .get_submodule(f"conv{'ab'.index(conv[-1]) + 1}")
            .weight
        )
        selection = select(weight, arithmetic=arithmetic)
        assert selection.filter_order.tolist() == golden["filter_order"], name
        if selection.kept.tolist() != golden["kept"]:  # exact ties between all-zero kernels
            order = selection.filter_order.view(8, -1)
            keep = selection.kept.shape[1]
            problem = problem_of(
                weight, order, 0.4375, resolve_beta("reference", weight.shape[1], keep, 4, 1)
            )
            theirs = set_cost(problem, torch.tensor(golden["kept"]))
            assert torch.allclose(selection.cost, theirs, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("elements", [1, 1 << 10, 1 << 30])
def test_working_in_parts_changes_nothing(
    elements: int, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(3, 16, 16)
    whole = select(weight, groups=4, arithmetic=arithmetic)
    monkeypatch.setattr(arena, "CHUNK", elements)
    monkeypatch.setattr(selection, "BLOCK", elements)
    parts = select(weight, groups=4, arithmetic=arithmetic)
    assert torch.equal(parts.kept, whole.kept)
    assert torch.equal(parts.cost, whole.cost)


@given(
    seed=st.integers(0, 1000), beta=st.sampled_from(("reference", "exact", 0.0)), neighbours=st.integers(1, 2)
)
@settings(max_examples=15)
def test_exact_is_the_minimum_over_all_sets(seed: int, beta: str | float, neighbours: int) -> None:
    weight = random_weight(seed, 4, 7)
    exact = select(weight, groups=2, rate=0.5, beta=beta, strategy="exact", neighbours=neighbours)
    order = exact.filter_order.view(2, -1)
    keep = exact.kept.shape[1]
    problem = problem_of(weight, order, 0.5, resolve_beta(beta, 7, keep, keep, neighbours), neighbours)
    costs = torch.stack(
        [set_cost(problem, torch.tensor([c, c])) for c in itertools.combinations(range(7), keep)]
    )
    assert torch.allclose(exact.cost, costs.min(0).values)
    for strategy in ("beam", "greedy"):
        found = select(
            weight, groups=2, rate=0.5, beta=problem.beta, strategy=strategy, neighbours=neighbours
        )
        assert (found.cost >= exact.cost - 1e-12).all()


@given(seed=st.integers(0, 1000), neighbours=st.integers(0, 3))
def test_reported_cost_is_the_definition(seed: int, neighbours: int) -> None:
    weight = random_weight(seed, 8, 10)
    selection = select(weight, groups=4, beta=0.7, neighbours=neighbours, outer_in_beam=False)
    problem = problem_of(weight, selection.filter_order.view(4, -1), 0.4375, 0.7, neighbours)
    assert torch.allclose(selection.cost, set_cost(problem, selection.kept), atol=1e-10)
    one = replace(problem, distance=problem.distance[:1], smooth=problem.smooth[:1])
    kept = selection.kept[0].tolist()
    similarity = 1 - one.distance[0]
    inner = sum(similarity[u, v] for u, v in itertools.combinations(kept, 2))
    outer = sum(
        sum(sorted((similarity[p, u].item() for u in kept), reverse=True)[:neighbours])
        for p in range(10)
        if p not in kept
    )
    assert set_cost(one, selection.kept[:1]).item() == pytest.approx(float(inner) - 0.7 * outer)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_permuting_input_channels_permutes_the_choice(seed: int) -> None:
    weight = random_weight(seed, 8, 12)
    permutation = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    plain, permuted = (select(w, groups=4).kept for w in (weight, weight[:, permutation]))
    assert [set(row) for row in plain.tolist()] == [set(permutation[row].tolist()) for row in permuted]


@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_smoothest_and_roughest_are_the_extremes_of_all_sets(seed: int) -> None:
    weight = random_weight(seed, 4, 7)
    low, high = (select(weight, groups=2, rate=0.5, strategy=s) for s in ("smoothest", "roughest"))
    smooth = smoothness(weight.double())[low.filter_order.view(2, -1)].sum(1)
    keep = low.kept.shape[1]
    sums = torch.stack([smooth[:, list(c)].sum(1) for c in itertools.combinations(range(7), keep)])
    assert torch.allclose(smooth.gather(1, low.kept).sum(1), sums.min(0).values)
    assert torch.allclose(smooth.gather(1, high.kept).sum(1), sums.max(0).values)


def test_random_sets_cost_what_they_cost_and_depend_on_the_generator() -> None:
    weight = random_weight(5, 16, 16)
    one, again, other = (
        select(weight, strategy="random", generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.kept, again.kept)
    assert not torch.equal(one.kept, other.kept)
    assert one.kept.shape == (8, 9)
    assert all(len(set(row)) == 9 and row == sorted(row) for row in one.kept.tolist())
    problem = problem_of(weight, one.filter_order.view(8, -1), 0.4375, resolve_beta("exact", 16, 9, 9, 1))
    assert torch.allclose(one.cost, set_cost(problem, one.kept))


def test_greedy_is_a_beam_of_one_branch() -> None:
    weight = random_weight(7, 16, 16)
    greedy = select(weight, strategy="greedy", beta=0.5)
    assert torch.equal(greedy.kept, select(weight, beam_width=1, beta=0.5).kept)


def test_beta_counts_pairs() -> None:
    assert resolve_beta("exact", 16, 9, 4, 1) == pytest.approx(36 / 7)  # Eq. 3 at the paper's rate
    assert resolve_beta("reference", 16, 9, 4, 1) == pytest.approx(6 / 12)  # frozen at four kept kernels
    assert resolve_beta("reference", 64, 36, 4, 1) == pytest.approx(0.1)
    assert resolve_beta("exact", 16, 9, 4, 2) == pytest.approx(36 / 14)
    assert resolve_beta("reference", 16, 9, 4, 6) == pytest.approx(6 / 72)  # also where 4 < 6 are kept
    assert resolve_beta("exact", 16, 2, 2, 3) == pytest.approx(1 / 42)
    assert resolve_beta("exact", 9, 9, 4, 1) == 0  # nothing is pruned
    assert resolve_beta("exact", 16, 9, 4, 0) == 0
    assert resolve_beta(2, 16, 9, 4, 1) == 2


def test_kept_count_is_the_released_formula() -> None:
    assert [kept_count(n, 0.4375) for n in (16, 32, 64, 512)] == [9, 18, 36, 288]
    assert kept_count(4, 0.01) == 4
    with pytest.raises(ValueError, match="keeps no kernel"):
        kept_count(2, 0.9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rate": 0}, "strictly between 0 and 1"),
        ({"rate": 1.2}, "strictly between 0 and 1"),
        ({"rate": math.nan}, "strictly between 0 and 1"),
        ({"groups": 7}, "does not divide the layer's 16 filters"),
        ({"beam_width": 0}, "at least 1"),
        ({"beam_width": 1.5}, "beam_width=1.5: give a whole number"),
        ({"beam_width": True}, "beam_width=True: give a whole number"),
        ({"check_step": 2.5}, "check_step=2.5: give a whole number"),
        ({"neighbours": 1.5}, "neighbours=1.5: give a whole number, at least 0"),
        ({"starts": 1.5}, "starts=1.5"),
        ({"alpha": 1.5}, r"\[0, 1\]"),
        ({"beta": "auto"}, '"reference", "exact"'),
        ({"beta": math.nan}, "beta nan: .* finite number"),
        ({"beta": math.inf}, "beta inf: .* finite number"),
        ({"beta": None}, "beta None: .* finite number"),
        ({"decision": "coin"}, "cost, smoothness"),
        ({"strategy": "magic"}, "beam, greedy, exact"),
        ({"grouping": "random"}, "needs generator"),
        ({"strategy": "random"}, "needs generator"),
        ({"arithmetic": "exact"}, "fast, released"),
        ({"grouping": "zigzag"}, "snaking, random, contiguous"),
        ({"grouping": torch.zeros(8, 2, dtype=torch.int64)}, "each of the 16 filters once"),
        ({"grouping": torch.arange(16)}, r"grouping has shape \(16,\)"),
        ({"grouping": torch.arange(16).view(4, 4), "groups": 8}, r"shape \(4, 4\) with groups=8"),
    ],
)
def test_errors_name_the_fix(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        select(random_weight(0, 16, 16), **options)


def test_given_indices_say_how_many_groups_there_are() -> None:
    weight, indices = random_weight(0, 8, 16), torch.arange(8).view(4, 2)
    found = select(weight, grouping=indices)
    assert found.groups == 4
    assert torch.equal(found.kept, select(weight, grouping=indices, groups=4).kept)
    assert select(weight, grouping="contiguous").groups == 8


def test_unusable_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        select(torch.ones(16, 16))
    with pytest.raises(ValueError, match="NaN"):
        select(torch.full((16, 16, 3, 3), math.nan))
    with pytest.raises(ValueError, match="471,435,600 sets"):
        select(torch.randn(8, 32, 3, 3), strategy="exact", decision="smoothness")
    with pytest.raises(ValueError, match="64 kernels"):
        select(torch.randn(8, 66, 3, 3), strategy="exact")
