"""FPGM against a double loop, and where torch-pruning's version differs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gkp
from gkp.nets import models
from gkp.pruners.geometry import distance_to_others


def double_loop(weight):
    filters = weight.double().flatten(1)
    return torch.stack([sum((a - b).square().sum().sqrt() for b in filters) for a in filters])


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 4), st.sampled_from([1, 3]))
@settings(max_examples=30)
def test_the_score_is_the_sum_of_distances(seed, filters, channels, size):
    weight = torch.randn(filters, channels, size, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(distance_to_others(weight), double_loop(weight))


def test_the_score_is_the_sum_of_distances_in_a_wide_layer():
    weight = torch.randn(80, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[7] = weight[50]
    torch.testing.assert_close(distance_to_others(weight), double_loop(weight), rtol=1e-7, atol=0)


def test_a_filter_at_the_geometric_median_goes_before_a_small_one():
    """Four filters far out on the axes, one at their median, and a smaller one off it would stay by norm."""
    centre = torch.tensor([10.0, 10.0])
    corners = torch.tensor([[20.0, 10.0], [0.0, 10.0], [10.0, 20.0], [10.0, 0.0]])
    weight = torch.cat([corners, centre[None], torch.tensor([[1.0, 1.0]])]).view(6, 2, 1, 1)
    assert distance_to_others(weight).argmin() == 4
    assert weight.flatten(1).norm(dim=1).argmin() == 5


def test_squared_weights_would_choose_otherwise():
    """torch-pruning measures distances of squared weights: +1 and -1 then coincide."""
    weight = torch.tensor([1.0, -1.0, 1.9]).view(3, 1, 1, 1)
    squared = torch.cdist(weight.flatten(1) ** 2, weight.flatten(1) ** 2).sum(1)
    torch.testing.assert_close(distance_to_others(weight), torch.tensor([2.9, 4.9, 3.8]).double())
    assert squared[0] == squared[1] < squared[2]


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_permuting_filters_permutes_the_score(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, order = torch.randn(10, 3, 3, 3, generator=generator), torch.randperm(10, generator=generator)
    torch.testing.assert_close(distance_to_others(weight[order]), distance_to_others(weight)[order])


def test_the_nearest_filters_go():
    torch.manual_seed(0)
    model = models.create("resnet8")
    pruned = gkp.prune(model, "fpgm", rate=0.5)
    weight = model.layer2[0].conv1.weight.detach()
    kept = double_loop(weight).argsort()[16:].sort().values
    assert torch.equal(pruned.layer2[0].conv1.weight, weight[kept])
