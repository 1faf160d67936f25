"""Few starts, for wide layers, and 1x1 kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_search import plain_select

from gkp import search
from gkp.search import select
from gkp.search.objective import ARITHMETICS


def layer(filters: int, channels: int, size: int = 1, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(filters, channels, size, size, generator=draw) * 0.1


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("starts", [9, 10, 1000])
def test_as_many_starts_as_channels_are_all(starts: int, arithmetic: str) -> None:
    weight = layer(8, 9, 3)
    every, some = (select(weight, groups=2, arithmetic=arithmetic, starts=n) for n in (None, starts))
    assert torch.equal(every.kept, some.kept)
    assert torch.equal(every.cost, some.cost)


@given(
    seed=st.integers(0, 999),
    channels=st.integers(5, 9),
    starts=st.integers(1, 9),
    size=st.sampled_from((1, 3)),
    decision=st.sampled_from(("cost", "smoothness")),
)
@settings(max_examples=40)
def test_a_search_from_few_kernels_is_the_plain_one(
    seed: int, channels: int, starts: int, size: int, decision: str
) -> None:
    """n starts are the kernels 0, I/n, 2I/n, ... of the I input channels, rounded down."""
    weight = layer(4, channels, size, seed)
    count = min(starts, channels)
    first = [i * channels // count for i in range(count)]
    expected = plain_select(weight, groups=2, starts=first, decision=decision)
    found = select(weight, groups=2, starts=starts, decision=decision, arithmetic="released")
    assert (found.filter_order.tolist(), found.kept.tolist()) == expected


@given(seed=st.integers(0, 999), starts=st.sampled_from((1, 2, 4)))
@settings(max_examples=20)
def test_more_of_the_starts_never_cost_more(seed: int, starts: int) -> None:
    weight = layer(8, 16, 3, seed)  # the starts of n are among those of 2n
    fewer, more = (select(weight, groups=4, beta=0.5, starts=n) for n in (starts, 2 * starts))
    assert (more.cost <= fewer.cost + 1e-12).all()


@pytest.mark.parametrize("starts", [0, -3, 2.0, True, "all"])
def test_a_number_of_starts_that_is_none_is_refused(starts: object) -> None:
    with pytest.raises(ValueError, match="at least 1, or None for all"):
        select(layer(8, 8), groups=2, starts=starts)


@pytest.mark.parametrize("strategy", ["beam", "greedy"])
def test_a_layer_of_a_thousand_channels(strategy: str) -> None:
    weight = layer(16, 1024)
    found = select(weight, groups=2, starts=2, strategy=strategy, beta="exact")
    assert found.kept.shape == (2, 576)
    assert all(len(set(row)) == 576 for row in found.kept.tolist())
    random = select(weight, groups=2, strategy="random", generator=torch.Generator().manual_seed(0))
    assert (found.cost < random.cost).all()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_kernels_of_1x1_have_no_smoothness_and_are_grouped_in_their_order(arithmetic: str) -> None:
    weight = layer(12, 10)
    found = select(weight, groups=3, arithmetic=arithmetic)
    # All filters tie: 0 1 2 | 5 4 3 | 6 7 8 | 11 10 9, dealt to three groups.
    assert found.filter_order.tolist() == [0, 5, 6, 11, 1, 4, 7, 10, 2, 3, 8, 9]
    assert (found.filter_order.tolist(), found.kept.tolist()) == plain_select(weight, groups=3)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_smoothness_alone_cannot_tell_1x1_kernels_apart(arithmetic: str) -> None:
    found = select(layer(4, 6), groups=2, decision="smoothness", alpha=0.0, arithmetic=arithmetic)
    _, kept = plain_select(layer(4, 6), groups=2, decision="smoothness", alpha=0.0)
    assert found.kept.tolist() == kept
    assert all(0 in row for row in kept)  # the first start's first branch


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_every_strategy_takes_1x1_kernels(strategy: str) -> None:
    found = select(layer(8, 6), groups=2, strategy=strategy, generator=torch.Generator().manual_seed(0))
    assert found.kept.shape == (2, 3)
    assert torch.isfinite(found.cost).all()
