import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkp.search import grouping


def test_dealing_order_by_hand() -> None:
    groups = grouping.snake(torch.arange(12.0), 3)
    # rounds: 0 1 2 | 5 4 3 reversed deal | 6 7 8 | 11 10 9
    assert groups.tolist() == [[0, 5, 6, 11], [1, 4, 7, 10], [2, 3, 8, 9]]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_every_grouping_is_a_partition_into_equal_groups(groups: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * size, 2, 3, 3, generator=generator)
    for order in (
        grouping.snaking(weight, groups),
        grouping.contiguous(weight, groups),
        grouping.random(weight, groups, generator=generator),
    ):
        assert order.shape == (groups, size)
        assert order.flatten().sort().values.tolist() == list(range(groups * size))
        assert torch.equal(order, order.sort(1).values)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_snaking_balances_better_than_dealing_in_blocks(groups: int, seed: int) -> None:
    scores = torch.rand(groups * 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    snaked = scores[grouping.snake(scores, groups)].sum(1)
    blocks = scores.sort().values.view(groups, 4).sum(1)
    assert snaked.max() - snaked.min() <= blocks.max() - blocks.min() + 1e-12


@given(st.integers(0, 1000))
def test_permuting_the_filters_permutes_the_groups(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 3, 3, 3, generator=generator)
    permutation = torch.randperm(16, generator=generator)
    plain = [set(row) for row in grouping.snaking(weight, 4).tolist()]
    permuted = [set(permutation[row].tolist()) for row in grouping.snaking(weight[permutation], 4)]
    assert plain == permuted


def test_groups_must_divide_the_filters() -> None:
    with pytest.raises(ValueError, match="groups=7 does not divide the layer's 16 filters"):
        grouping.snaking(torch.randn(16, 3, 3, 3), 7)
