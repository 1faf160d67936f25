"""Equal sets are held once, and that changes no choice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.search import beam, objective, select
from gkp.search.objective import Problem, grouped_kernel_distance


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    channels=st.integers(6, 20),
    width=st.integers(1, 3),
    check_step=st.integers(1, 4),
    neighbours=st.integers(0, 3),
)
def test_the_choice_is_that_of_every_branch_by_itself(
    seed: int, channels: int, width: int, check_step: int, neighbours: int
) -> None:
    weight = torch.randn(4, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    options = {"groups": 2, "beam_width": width, "check_step": check_step, "neighbours": neighbours}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "compiles", lambda: False)
        merged = select(weight, **options)
        # Where kernels tie nothing is merged.
        patch.setattr(Problem, "ties", property(lambda problem: torch.ones(2, dtype=torch.bool)))
        alone = select(weight, **options)
    assert torch.equal(merged.kept, alone.kept)
    assert torch.equal(merged.cost, alone.cost)


def test_ties_are_equal_kernels() -> None:
    weight = torch.randn(4, 6, 3, 3).double()
    weight[:2, 3] = weight[:2, 5]
    distance = grouped_kernel_distance(weight, torch.tensor([[0, 1], [2, 3]]))
    assert Problem(distance, distance[:, 0], 3, 0.5, 1).ties.tolist() == [True, False]


def test_two_orders_are_one_set() -> None:
    distance = grouped_kernel_distance(torch.randn(2, 6, 3, 3).double(), torch.tensor([[0, 1]]))
    problem = Problem(distance, distance[:, 0], 3, 0.5, 1)
    state = beam.start(problem, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    children = beam.propose(state, problem, 5)
    assert len(children.kernel) == 15  # pairs of six
    assert children.rows.shape == (6, 5)
    assert children.rows.unique(return_counts=True)[1].tolist() == [2] * 15
