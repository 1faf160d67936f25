"""The integer program against the list of all sets, and what it says when the time is short."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.search import exact, select
from gkp.search.objective import Problem, grouped_kernel_distance, kept_count, resolve_beta, set_cost
from gkp.search.optimality import gaps


def layer(seed: int, filters: int, channels: int) -> torch.Tensor:
    return torch.randn(filters, channels, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.1


def problem_of(weight: torch.Tensor, rate: float, beta: float | None = None, neighbours: int = 1) -> Problem:
    distance = grouped_kernel_distance(weight.double(), torch.arange(len(weight))[None])
    channels = weight.shape[1]
    keep = kept_count(channels, rate)
    beta = resolve_beta("exact", channels, keep, keep, 1) if beta is None else beta
    return Problem(distance, torch.zeros(1, channels).double(), keep, beta, neighbours)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    channels=st.integers(3, 9),
    rate=st.sampled_from((0.25, 0.4375, 0.6)),
    beta=st.sampled_from((None, 0.0, 0.5, 3.0)),
)
def test_the_program_finds_the_least_of_all_sets(
    seed: int, channels: int, rate: float, beta: float | None
) -> None:
    weight = layer(seed, 2, channels)
    problem = problem_of(weight, rate, beta)
    listed = select(
        weight, groups=1, rate=rate, beta=problem.beta, strategy="exact", grouping="contiguous"
    ).cost
    found = exact.solve(problem)
    assert found.proved.all()
    assert found.cost.item() == pytest.approx(listed.item(), rel=1e-5, abs=1e-6)
    assert found.bound.item() <= listed.item() + 1e-6
    assert torch.equal(found.cost, set_cost(problem, found.kept))
    assert found.kept.unique().numel() == problem.keep


def test_without_time_there_is_a_set_and_a_bound_that_holds() -> None:
    problem = problem_of(layer(0, 2, 28), 0.4375)
    found = exact.solve(problem, seconds=1e-3)
    assert not found.proved.any()
    assert found.kept.unique().numel() == problem.keep
    assert torch.equal(found.cost, set_cost(problem, found.kept))
    assert (found.gap > 0).all()
    best = select(layer(0, 2, 28), groups=1, beta="exact", grouping="contiguous").cost
    assert (found.bound <= best).all()


def test_the_authors_32_channels_are_solved_beyond_all_lists(authors20: torch.nn.Module) -> None:
    weight = authors20.get_submodule("layer2.1.conv1").weight.detach()
    weight = weight[select(weight).filter_order[:4]]  # the first of its eight groups
    problem = problem_of(weight, 0.4375)
    found = exact.solve(problem, seconds=20.0)
    assert math.comb(32, problem.keep) > 400_000_000
    assert found.proved.all()
    assert (found.cost <= select(weight, groups=1, beta="exact").cost + 1e-6).all()


def test_a_gap_is_relative_to_the_cost() -> None:
    cost, bound = torch.tensor([4.0, -4.0, 3.0]), torch.tensor([3.0, -5.0, 3.0])
    found = exact.Optimum(torch.zeros(3, 1), cost, bound, torch.tensor([False, False, True]))
    assert found.gap.tolist() == [0.25, 0.25, 0]


def test_gaps_are_none_for_the_optimum_and_some_for_the_worst() -> None:
    weight = layer(4, 4, 9)
    least, optimum = gaps(weight, groups=2, strategy="exact", beta="exact")
    assert optimum.proved.all()
    assert least.abs().max() < 1e-5
    worse, _ = gaps(weight, groups=2, strategy="smoothest")
    assert (worse > 1e-4).all()


@pytest.mark.parametrize(
    ("change", "sentence"), [({"neighbours": 2}, "one neighbour"), ({"beta": -1.0}, "0 or more")]
)
def test_what_the_program_is_not_for_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        exact.solve(problem_of(layer(0, 2, 6), 0.5, **change))
    with pytest.raises(ValueError, match="more than 0"):
        exact.solve(problem_of(layer(0, 2, 6), 0.5), seconds=0)
