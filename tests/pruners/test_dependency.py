"""Group norms against sums written out, against torch-pruning, and coupled layers that shrink together."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import gkp
from gkp.nets import models
from gkp.nets.channels.surgery import remove_filters
from gkp.pruners.dependency import coupled_groups


class Residual(nn.Module):
    """Two convolutions meet in a sum, a third reads it, a linear layer reads that, flattened."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.three = nn.Conv2d(6, 5, 1)
        self.out = nn.Linear(5 * 16, 4)

    def forward(self, x):
        x = self.one(x)
        x = torch.relu(x + self.norm(self.two(x)))
        return self.out(torch.flatten(torch.relu(self.three(x)), 1))


def lively(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return lively(torchvision.models.resnet18(num_classes=10))


def test_the_norm_is_the_sum_over_all_coupled_tensors():
    torch.manual_seed(0)
    model = lively(Residual())
    groups = {group.producers: group for group in coupled_groups(model, torch.rand(1, 3, 4, 4))}
    (pair,) = (group for group in groups.values() if len(group.producers) == 2)
    assert set(pair.producers) == {"one", "two"}
    assert set(pair.consumers) == {"two", "three"}
    for k, found in enumerate(pair.squares.tolist()):
        tensors = [model.one.weight[k], model.two.weight[k], model.two.weight[:, k], model.norm.weight[k]]
        expected = sum(t.square().sum() for t in [*tensors, model.three.weight[:, k]])
        assert found == pytest.approx(expected.item(), rel=1e-5)
    alone = groups[("three",)]
    columns = model.out.weight.unflatten(1, (5, 16))
    expected = model.three.weight.square().sum((1, 2, 3)) + columns.square().sum((0, 2))
    torch.testing.assert_close(alone.squares.float(), expected.detach())


def test_the_norm_is_torch_prunings(resnet18):
    import torch_pruning

    x = torch.rand(1, 3, 64, 64)
    theirs = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")
    traced = copy.deepcopy(resnet18)
    graph = torch_pruning.DependencyGraph().build_dependency(traced, x, verbose=False)
    ours = coupled_groups(resnet18, x)
    assert max(len(group.producers) for group in ours) == 3
    for group in ours:
        root = traced.get_submodule(group.producers[0])
        everything = list(range(root.out_channels))
        reference = theirs(
            graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, everything)
        ).double()
        torch.testing.assert_close(group.squares / group.squares.mean(), reference, rtol=1e-5, atol=1e-7)


def test_residual_streams_shrink_together(resnet18):
    x = torch.rand(1, 3, 64, 64)
    pruned = gkp.prune(resnet18, "group-norm", rate=0.3, example_input=x)
    width = pruned.layer2[0].conv2.out_channels
    assert width < 128
    assert pruned.layer2[0].downsample[0].out_channels == pruned.layer2[1].conv2.out_channels == width
    assert pruned.layer3[0].downsample[0].in_channels == width
    assert pruned(x).shape == (1, 10)


def test_dead_channels_of_residual_streams_leave_the_logits(resnet18):
    torch.manual_seed(1)
    model, x = copy.deepcopy(resnet18), torch.rand(2, 3, 64, 64)
    drop = {}
    for group in coupled_groups(model, x[:1]):
        dead = torch.randperm(len(group.squares))[: len(group.squares) // 4]
        for name in group.producers:
            path = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
            norm = model.get_submodule(path)
            norm.weight.data[dead] = norm.bias.data[dead] = 0
        drop[group.producers[0]] = dead
    before, after = model(x), remove_filters(model, drop, x[:1])(x)
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zeros", ["after", "around"])
def test_streams_of_cifar_resnets_stay_whole(zeros):
    """torch-pruning couples stages there as if the zeros of the shortcut were not in front or behind."""
    model = lively(models.create("resnet20", zeros=zeros))
    groups = coupled_groups(model, torch.rand(1, 3, 32, 32))
    names = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    assert {group.producers for group in groups} == {(name,) for name in names}


def test_the_smallest_of_each_group_go(resnet8):
    pruned = gkp.prune(resnet8, "group-norm", rate=0.5)
    for group in coupled_groups(resnet8, torch.rand(1, 3, 32, 32)):
        (name,) = group.producers
        before, after = resnet8.get_submodule(name).weight, pruned.get_submodule(name).weight
        kept = group.squares.argsort(descending=True)[: len(after)].sort().values
        assert len(after) < len(before)
        assert torch.equal(after, before[kept])


def test_no_gradient_is_needed_around_the_call(resnet8):
    with torch.no_grad():
        assert len(coupled_groups(resnet8, torch.rand(1, 3, 32, 32))) == 3


def test_a_network_without_groups_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match="no dependency group"):
        gkp.prune(net, "group-norm", example_input=torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("method", ["l1", "group-norm"])
def test_depthwise_convolutions_that_shrink_are_not_called_unpruned(method, recwarn):
    convolutions = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    pruned = gkp.prune(net, method, rate=0.5, example_input=torch.rand(1, 3, 8, 8))
    assert pruned[1].groups < 8
    assert not [warning for warning in recwarn if issubclass(warning.category, gkp.SkippedLayers)]


def test_grouped_convolutions_that_stay_are_called_unpruned():
    convolutions = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1)
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with pytest.warns(gkp.SkippedLayers, match="1: it has groups=2"):
        gkp.prune(net, "l1", rate=0.5, example_input=torch.rand(1, 3, 8, 8))
