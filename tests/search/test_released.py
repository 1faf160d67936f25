"""The search against the method in plain Python, on many small layers, and against the released choices."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_search import best_branches, one_by_one, plain_select
from plain_search import smoothness as plain_smoothness

from gkp.search import released, select
from gkp.search.beam import best_first
from gkp.search.objective import ARITHMETICS
from gkp.search.smoothness import DIFFERENCES, smoothness, summed_in_order

GOLDEN = Path(__file__).parents[2] / "expected" / "golden" / "search_disagreements.json"
CASES = json.loads(GOLDEN.read_text())
NO_OPTIONS = ("filter_order", "kept", "ours", "agrees", "groups_differing", "remedy", "weight_seed")
NO_OPTIONS += ("checkpoint", "parameter", "out_channels", "in_channels")
# What a layer's kernels are like: ties are what tells one order of additions or sorts from another.
KINDS = ("normal", "quantised", "few values", "zero kernels", "duplicated kernels", "duplicated filters")
SEARCHES = {
    "rate": st.sampled_from((0.2, 0.25, 0.4375, 0.625, 0.8)),
    "beam_width": st.integers(1, 4),
    "check_step": st.integers(1, 5),
    "alpha": st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.9, 1.0)),
    "beta": st.sampled_from(("reference", "exact", 0.0, 0.25, 0.5, 2.0)),
    "neighbours": st.integers(0, 4),
    "outer_in_beam": st.booleans(),
    "decision": st.sampled_from(("cost", "smoothness")),
}


def layer(kind: str, seed: int, filters: int, channels: int, size: int = 3) -> torch.Tensor:
    """Kernels of one of the KINDS, float32."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, channels, size, size, generator=draw) * 0.1
    some = torch.rand(channels, generator=draw) < 0.5
    if kind == "quantised":
        weight = (weight * 20).round() / 8
    elif kind == "few values":
        weight = weight.sign() * 0.1
    elif kind == "zero kernels":
        weight[:, some] = 0
    elif kind == "duplicated kernels":
        weight[:, some] = weight[:, torch.randint(channels, (int(some.sum()),), generator=draw)]
    elif kind == "duplicated filters":
        weight = weight[torch.randint(filters, (filters,), generator=draw)]
    return weight


def chosen(weight: torch.Tensor, **options) -> tuple[list[int], list[list[int]]]:
    selection = select(weight, **options)
    return selection.filter_order.tolist(), selection.kept.tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.get("weight_seed", "resnet56")))
def test_released_choice_where_the_fast_sums_may_choose_otherwise(case: dict, request) -> None:
    if "checkpoint" in case:
        weight = request.getfixturevalue("ak56").get_submodule(case["parameter"]).weight.detach()
    else:
        shape = (case["out_channels"], case["in_channels"], 3, 3)
        values = np.random.RandomState(case["weight_seed"]).standard_normal(shape)  # noqa: NPY002
        weight = torch.from_numpy((values * 0.1).astype(np.float32))
    options = {name: value for name, value in case.items() if name not in NO_OPTIONS}
    expected = case["filter_order"], case["kept"]
    assert plain_select(weight, **options) == expected
    assert chosen(weight, **options, arithmetic="released") == expected
    if "last bits" not in case["remedy"] and case["remedy"] != "both needed":
        assert chosen(weight, **options) == expected


@settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 9999), channels=st.integers(5, 10), **SEARCHES)
def test_the_released_arithmetic_is_the_plain_method(kind: str, seed: int, channels: int, **options) -> None:
    weight = layer(kind, seed, 4, channels)
    expected = plain_select(weight, groups=2, **options)
    assert chosen(weight, groups=2, **options, arithmetic="released") == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("channels", "rate"), [(12, 0.2), (36, 0.4), (24, 0.5)])
def test_wider_layers_too(channels: int, rate: float, seed: int) -> None:
    """Of 12 or 36 kernels the few pruned ones do not stand in ascending order in a set."""
    options = {"rate": rate, "beam_width": 2, "check_step": 2, "alpha": 0.5, "groups": 1}
    options |= {"decision": ("cost", "smoothness")[seed % 2], "neighbours": 1 + seed // 2}
    weight = layer("normal", seed, 2, channels)
    assert chosen(weight, **options, arithmetic="released") == plain_select(weight, **options)


def exact_layer(seed: int, filters: int, channels: int) -> torch.Tensor:
    """Kernels with one weight, a multiple of 1/8: with a filter a group every sum is exact in any order."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.zeros(filters, channels, 3, 3)
    weight[..., 0, 1] = torch.randint(-6, 7, (filters, channels), generator=draw) / 8
    return weight


@settings(max_examples=100)
@given(seed=st.integers(0, 9999), channels=st.integers(5, 10), **SEARCHES)
def test_both_arithmetics_are_the_plain_method_where_sums_are_exact(
    seed: int, channels: int, **options
) -> None:
    """Full of ties: every one must fall as in the released chain of stable sorts."""
    options["beta"] = 0.5 if isinstance(options["beta"], str) else options["beta"]  # a product is exact too
    weight = exact_layer(seed, 2, channels)
    expected = plain_select(weight, groups=2, **options)
    for arithmetic in ARITHMETICS:
        assert chosen(weight, groups=2, **options, arithmetic=arithmetic) == expected


RANKS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(values=RANKS, alpha=st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0)))
def test_ties_fall_as_in_the_chain_of_stable_sorts(values: list[tuple[int, int]], alpha: float) -> None:
    cost, smooth = torch.tensor([values], dtype=torch.float64).unbind(-1)
    branches = [(place,) for place in range(len(values))]
    expected = best_branches(branches, lambda b: values[b[0]][0], lambda b: values[b[0]][1], alpha)
    assert best_first(cost, smooth, alpha)[0].tolist() == [place for (place,) in expected]


def test_a_tie_falls_to_the_smoother_list_and_not_to_the_position() -> None:
    """By hand: costs 1, 2, 3 and one smoothness; alpha 0.5 ties nothing, alpha 0 looks at places alone."""
    cost, smooth = torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3)
    assert best_first(cost, smooth, 0.0)[0].tolist() == [0, 1, 2]  # by cost descending 2, 1, 0: the last wins
    smooth = torch.tensor([[3.0, 2.0, 1.0]])
    # Ranks by cost 2, 1, 0 and by smoothness 0, 1, 2: all score 1, and the roughest stands first.
    assert best_first(cost, smooth, 0.5)[0].tolist() == [0, 1, 2]
    assert best_first(cost.flip(1), smooth.flip(1), 0.5)[0].tolist() == [2, 1, 0]


@given(st.data())
@settings(max_examples=200)
def test_a_set_ascends_where_it_is_said_to(data) -> None:
    channels = data.draw(st.integers(1, 400))
    kept = data.draw(st.sets(st.integers(0, channels - 1), min_size=1))
    order = list(set(range(channels)) - kept)
    if released.ascends(channels, len(order)):
        assert order == sorted(order)


def test_where_a_set_ascends() -> None:
    assert list({9, 7, 8}) != [7, 8, 9]  # what the released code's order of additions depends on
    assert not released.ascends(12, 3)
    assert not released.ascends(36, 15)
    for channels in (16, 32, 64, 512):  # the paper's layers at its rate, at every size of the beam
        assert all(released.ascends(channels, pruned) for pruned in range(7 * channels // 16, channels))


@pytest.mark.parametrize("variant", DIFFERENCES)
@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 5), (1, 4)])
def test_smoothness_in_the_released_order(variant: str, shape: tuple[int, int]) -> None:
    kernels = torch.randn(4, 6, *shape, generator=torch.Generator().manual_seed(0)).double()
    found = summed_in_order(kernels, variant)
    assert torch.allclose(found, smoothness(kernels, variant).sum(1), rtol=1e-12)
    if variant == "squared":
        assert found.tolist() == [plain_smoothness(each) for each in kernels.tolist()]


def some_sets(seed: int, channels: int, branches: int, siblings: int, size: int) -> released.Sets:
    """Random sets of 5 rows in 2 groups; siblings share all but their last kernels."""
    draw = torch.Generator().manual_seed(seed)
    taken = torch.rand(5, branches, siblings, channels, generator=draw).argsort(-1)
    common = int(torch.randint(size, (1,), generator=draw)) + 1
    head = taken[:, :, 0, :common]
    others = taken[(taken[..., None] != head[:, :, None, None]).all(-1)]
    tail = others.view(5, branches * siblings, -1)[..., : size - common]
    apart = torch.rand(2, channels, channels, generator=draw, dtype=torch.float64) - 0.5
    return released.Sets(apart + apart.mT, torch.tensor([0, 0, 1, 1, 1]), head, tail, ())


def kernels_of(sets: released.Sets) -> list[list[list[int]]]:
    head = sets.head.repeat_interleave(sets.tail.shape[1] // sets.head.shape[1], 1)
    return torch.cat([head, sets.tail], -1).tolist()


@given(
    seed=st.integers(0, 999), size=st.integers(1, 9), branches=st.integers(1, 3), siblings=st.integers(1, 4)
)
def test_sums_among_kept_kernels_have_the_last_bits(
    seed: int, size: int, branches: int, siblings: int
) -> None:
    sets = some_sets(seed, 12, branches, siblings, size)
    found = released.among(sets)
    for group, own, sums in zip(sets.group.tolist(), kernels_of(sets), found.tolist(), strict=True):
        for kept, total in zip(own, sums, strict=True):
            pairs = (sets.apart[group, u, v].item() for i, u in enumerate(kept) for v in kept[i + 1 :])
            assert total == one_by_one(pairs)


@pytest.mark.parametrize("buckets", [1, 4, 16])  # bits: with two buckets nearly all sets collide
@given(seed=st.integers(0, 999), channels=st.sampled_from((4, 5, 64, 65, 130)))
@settings(max_examples=30)
def test_equal_sets_share_a_place_and_others_do_not(buckets: int, seed: int, channels: int) -> None:
    sets = some_sets(seed, channels, 2, 4, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released, "BUCKETS", buckets)
        index, place = released.distinct(sets)
    keys = [
        (group, frozenset(kept))
        for group, own in zip(sets.group.tolist(), kernels_of(sets), strict=True)
        for kept in own
    ]
    assert [keys[i] for i in index[place].tolist()] == keys
    assert sorted(set(place.tolist())) == list(range(len(index)))
    if buckets == 16:
        assert len(index) <= len(set(keys)) + 3  # hardly a set is there twice; 3 in all 5,000 cases at most
