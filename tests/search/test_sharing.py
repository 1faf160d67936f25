"""Groups that share kept channels: the price is kept, and the common set is the best one."""

import itertools
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.search import select, sharing
from gkp.search.objective import Problem, constant, grouped_kernel_distance, resolve_beta, set_cost

FEW = settings(max_examples=15, deadline=None)
OPTIONS = st.fixed_dictionaries(
    {
        "beta": st.sampled_from(("reference", "exact", 0.7)),
        "neighbours": st.integers(0, 2),
        "strategy": st.sampled_from(("beam", "greedy", "exact")),
    }
)


def layer(seed: int, channels: int) -> torch.Tensor:
    return torch.randn(8, channels, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.1


def problem_of(weight: torch.Tensor, order: torch.Tensor, keep: int, options: dict) -> Problem:
    distance, channels = grouped_kernel_distance(weight.double(), order.view(4, -1)), weight.shape[1]
    first = 4 if options["strategy"] == "beam" and keep > 3 else keep
    beta = resolve_beta(options["beta"], channels, keep, first, options["neighbours"])
    return Problem(distance, distance[:, 0] * 0, keep, beta, options["neighbours"])


def sets_of(kept: torch.Tensor) -> int:
    return len(kept.unique(dim=0))


@FEW
@given(
    seed=st.integers(0, 999),
    channels=st.integers(4, 9),
    share=st.floats(0, 0.5),
    listed=st.sampled_from((0, sharing.LISTED)),
    options=OPTIONS,
)
def test_the_price_is_kept(seed: int, channels: int, share: float, listed: int, options: dict) -> None:
    weight = layer(seed, channels)
    with mock.patch.object(sharing, "LISTED", listed):
        own, found = (select(weight, groups=4, share=s, **options) for s in (0.0, share))
    assert torch.equal(own.filter_order, found.filter_order)
    problem = problem_of(weight, own.filter_order, own.kept.shape[1], options)
    assert torch.allclose(found.cost, set_cost(problem, found.kept), atol=1e-10)
    size = abs(own.cost.sum() - 4 * constant(problem))
    assert found.cost.sum() <= own.cost.sum() + share * size + 1e-9
    assert sets_of(found.kept) <= sets_of(own.kept)
    if options["beta"] == "exact" and options["neighbours"]:  # Eq. 3 itself, which has no constant
        assert constant(problem) == pytest.approx(0, abs=1e-9)


@FEW
@given(seed=st.integers(0, 999), channels=st.integers(4, 9), options=OPTIONS)
def test_without_limit_all_groups_have_the_best_common_set(seed: int, channels: int, options: dict) -> None:
    weight = layer(seed, channels)
    found = select(weight, groups=4, share=math.inf, **options)
    keep = found.kept.shape[1]
    problem = problem_of(weight, found.filter_order, keep, options)
    sums = [
        set_cost(problem, torch.tensor(each).expand(4, -1)).sum()
        for each in itertools.combinations(range(channels), keep)
    ]
    assert sets_of(found.kept) == 1
    assert found.cost.sum() == pytest.approx(float(min(sums)), abs=1e-9)
    with mock.patch.object(sharing, "LISTED", 0):
        exchanged = select(weight, groups=4, share=math.inf, **options)
    assert sets_of(exchanged.kept) == 1
    assert exchanged.cost.sum() >= found.cost.sum() - 1e-9


@FEW
@given(seed=st.integers(0, 999), keep=st.integers(2, 6), neighbours=st.integers(0, 2))
def test_an_exchange_adds_and_removes_what_costs_least(seed: int, keep: int, neighbours: int) -> None:
    weight = layer(seed, 8)
    distance = grouped_kernel_distance(weight.double(), torch.arange(8).view(2, -1))
    problem = Problem(distance, distance[:, 0] * 0, keep, 1.7, neighbours)
    kept = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:keep].sort().values

    def summed(sets: list[list[int]]) -> torch.Tensor:
        size = replace(problem, keep=len(sets[0]), neighbours=min(neighbours, keep))
        return torch.stack([set_cost(size, torch.tensor(each).expand(2, -1)).sum() for each in sets])

    others = [kernel for kernel in range(8) if kernel not in kept]
    larger = [[*kept.tolist(), kernel] for kernel in others]
    # One more kernel is one more pair with each kept one and none with itself: the ones do not decide.
    order = summed(larger).argsort()[: sharing.TRIED]
    found = sharing.exchanges(problem, kept)
    for more, own in zip([larger[place] for place in order], found, strict=True):
        smaller = [sorted(set(more) - {kernel}) for kernel in more]
        assert own.tolist() == smaller[int(summed(smaller).argmin())]


def test_more_price_means_fewer_sets() -> None:
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    numbers = [sets_of(select(weight, beta="exact", share=share).kept) for share in (0, 0.02, 0.1, math.inf)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == 8
    assert 1 < numbers[2] < 8
    assert numbers[3] == 1


@pytest.mark.parametrize("method", ["sr-gkp", "sr-gkp-b", "gkp-greedy"])
def test_methods_share(method: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    plain, none, one = (
        gkp.prune(network, method, groups=4, example_input=torch.rand(1, 3, 9, 9), **options)[2].kept
        for options in ({}, {"share": 0.0}, {"share": math.inf})
    )
    assert torch.equal(plain, none)
    assert sets_of(plain) > 1
    assert sets_of(one) == 1


@pytest.mark.parametrize("share", [-0.1, math.nan, True, "much"])
def test_a_share_that_is_none_is_refused(share: object) -> None:
    with pytest.raises(ValueError, match=r"share=.*for example 0\.02"):
        select(layer(0, 4), groups=4, share=share)


@pytest.mark.parametrize("options", [{"strategy": "smoothest"}, {"decision": "smoothness"}])
def test_controls_without_a_cost_do_not_share(options: dict) -> None:
    with pytest.raises(ValueError, match=r"share=0\.1 weighs costs: take strategy='beam'"):
        select(layer(0, 4), groups=4, share=0.1, **options)
