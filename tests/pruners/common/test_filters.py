"""Scores in, a smaller network out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.nets import models
from gkp.pruners.common.filters import filters_to_drop, uniform_cut, weight_cut

SCORES = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(
    lambda v: torch.tensor(v, dtype=torch.float)
)


@given(SCORES, st.floats(0, 1))
def test_kept_scores_are_at_least_the_dropped_ones(scores, rate):
    drop = filters_to_drop(scores, rate)
    kept = sorted(set(range(len(scores))) - set(drop.tolist()))
    assert kept, "one filter stays"
    assert len(drop) == len(scores) - 1 or abs(len(drop) - rate * len(scores)) <= 0.5
    assert drop.tolist() == sorted(set(drop.tolist()))
    if len(drop):
        assert scores[drop].max() <= scores[kept].min()


@given(SCORES)
def test_rate_zero_drops_nothing(scores):
    assert filters_to_drop(scores, 0.0).numel() == 0


@given(st.permutations(range(12)), st.floats(0, 1))
def test_permuting_filters_permutes_the_choice(order, rate):
    scores = torch.rand(12, generator=torch.Generator().manual_seed(0))
    permuted = filters_to_drop(scores[torch.tensor(order)], rate)
    assert {order[i] for i in permuted} == set(filters_to_drop(scores, rate).tolist())


def test_of_equal_scores_the_earlier_filter_goes_first():
    assert filters_to_drop(torch.tensor([2.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [1, 2]


def test_a_uniform_cut_is_smaller_and_leaves_the_model_alone():
    model = models.create("resnet8").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = {"layer1.0.conv1": torch.arange(16.0), "layer2.0.conv1": -torch.arange(32.0)}
    pruned = uniform_cut(model, scores, torch.rand(1, 3, 32, 32))(0.25)
    assert torch.equal(pruned.layer1[0].conv1.weight, model.layer1[0].conv1.weight[4:])
    assert torch.equal(pruned.layer1[0].conv2.weight, model.layer1[0].conv2.weight[:, 4:])
    assert torch.equal(pruned.layer2[0].conv1.weight, model.layer2[0].conv1.weight[:24])
    assert pruned.layer3[0].conv1.weight.shape == (64, 32, 3, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_without_removable_filters_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match="no convolution whose filters can be removed"):
        weight_cut(model, torch.rand(1, 3, 8, 8), lambda weight, _: weight.sum((1, 2, 3)))


@pytest.mark.parametrize("method", ["l1", "sr-gkp"])
@pytest.mark.parametrize(
    "model", [nn.Identity(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())]
)
def test_where_nothing_can_be_pruned_no_other_method_is_named(method, model):
    with pytest.raises(ValueError, match="no convolution") as refusal:
        gkp.prune(model, method, example_input=torch.rand(1, 3, 8, 8))
    assert "try" not in str(refusal.value)
    assert "prune filters" not in str(refusal.value)


def test_filters_are_named_where_they_can_go():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="no convolution can be pruned .*: prune filters instead"):
        gkp.prune(model, "gkp-greedy", example_input=torch.rand(1, 3, 8, 8))
