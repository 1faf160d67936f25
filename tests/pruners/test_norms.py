"""Norms, layer profiles and batch norm scales against plain computations."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.nets import models
from gkp.pruners import norms


def smallest(values, count):
    """Indices of the `count` smallest values, ascending."""
    return sorted(sorted(range(len(values)), key=values.__getitem__)[:count])


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
def test_the_filters_of_smallest_norm_go(resnet8, method, power):
    model = resnet8
    pruned = gkp.prune(model, method, rate=0.25)
    for stage in (1, 2, 3):
        weight = model.get_submodule(f"layer{stage}.0.conv1").weight.detach().numpy()
        size = [np.linalg.norm(each.ravel(), power) for each in weight]
        kept = np.delete(np.arange(len(weight)), smallest(size, len(weight) // 4))
        np.testing.assert_array_equal(
            pruned.get_submodule(f"layer{stage}.0.conv1").weight.detach(), weight[kept]
        )
        after = model.get_submodule(f"layer{stage}.0.conv2").weight.detach().numpy()
        np.testing.assert_array_equal(
            pruned.get_submodule(f"layer{stage}.0.conv2").weight.detach(), after[:, kept]
        )


def test_l2_is_not_l1():
    spread, peaked = torch.full((9,), 0.4), torch.tensor([2.0] + [0.0] * 8)
    weight = torch.stack([spread, peaked]).view(2, 1, 3, 3)
    assert norms.l1_norm(weight).argmin() == 1
    assert weight.square().sum((1, 2, 3)).argmin() == 0


def test_random_is_reproducible_and_depends_on_the_seed(resnet8):
    kept = [gkp.prune(resnet8, "random", seed=seed).layer3[0].conv1.weight for seed in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_permuting_filters_permutes_the_norms(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, order = torch.randn(10, 3, 3, 3, generator=generator), torch.randperm(10, generator=generator)
    assert torch.equal(norms.l1_norm(weight[order]), norms.l1_norm(weight)[order])


# What Li et al. print for ResNet-56: convolutions numbered from 1, the stem; the second of a block is odd.
PRINTED = {"l1-a": {16, 20, 38, 54}, "l1-b": {16, 18, 20, 34, 38, 54}}


@pytest.mark.parametrize("method", PRINTED)
def test_the_profiles_of_resnet56_skip_the_printed_layers(method):
    model = models.create("resnet56")
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    pruned = {name for _, names in norms.layer_profile(model, method) for name in names}
    numbers = {convolutions.index(name) + 1 for name in pruned}
    assert numbers == set(range(2, 56, 2)) - PRINTED[method]


def test_the_shares_of_profile_b_are_60_30_10():
    shares = [share for share, _ in norms.layer_profile(models.create("resnet56"), "l1-b")]
    assert [round(share / 3, 12) for share in shares] == [0.6, 0.3, 0.1]


@pytest.mark.parametrize("depth", models.RESNET_DEPTHS)
@pytest.mark.parametrize("method", PRINTED)
def test_other_depths_skip_the_same_stretches(method, depth):
    """Brute force: cut every stage into 9 * blocks slices; a block stays when all of its slices stay."""
    reference = norms.layer_profile(models.create("resnet56"), method)
    blocks = (depth - 2) // 6
    for (_, names), (_, nine) in zip(
        norms.layer_profile(models.create(f"resnet{depth}"), method), reference, strict=True
    ):
        whole = set(range(9)) - {int(name.split(".")[1]) for name in nine}
        expected = {b for b in range(blocks) if all((9 * b + i) // blocks in whole for i in range(9))}
        assert {int(name.split(".")[1]) for name in names} == set(range(blocks)) - expected


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.5])
@pytest.mark.parametrize("method", PRINTED)
def test_a_profile_keeps_its_shape(resnet20, method, rate):
    model = resnet20
    pruned = gkp.prune(model, method, rate=rate)
    for share, names in norms.layer_profile(model, method):
        for name in names:
            before, after = (net.get_submodule(name).weight.detach() for net in (model, pruned))
            assert abs(len(before) - len(after) - rate * share * len(before)) < 1
            size = before.abs().sum((1, 2, 3)).tolist()
            kept = sorted(set(range(len(before))) - set(smallest(size, len(before) - len(after))))
            assert torch.equal(after, before[kept])


def test_profile_a_of_vgg16(vgg16):
    pruned = gkp.prune(vgg16, "l1-a", rate=0.5)
    widths = [module.out_channels for module in pruned.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256]


def test_profiles_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="l1-b is a layer profile that exists for CIFAR ResNets only"):
        gkp.prune(models.create("vgg16"), "l1-b")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="for CIFAR ResNets and VGG-16 only"):
        gkp.prune(net, "l1-a", example_input=torch.rand(1, 3, 8, 8))


def test_bn_gamma_cuts_below_one_threshold(resnet8):
    model = copy.deepcopy(resnet8)
    pruned = gkp.prune(model, "bn-gamma", rate=0.4, minimum=0.0)
    kept, dropped = [], []
    for stage in (1, 2, 3):
        before = model.get_submodule(f"layer{stage}.0.bn1").weight.detach()
        after = pruned.get_submodule(f"layer{stage}.0.bn1").weight.detach()
        kept += after.tolist()
        dropped += sorted(set(before.tolist()) - set(after.tolist()))
    # Filters that cost more than what is left of the budget are passed over: the last few of the ranking.
    assert np.median(dropped) < np.median(kept)
    assert sum(value > min(kept) for value in dropped) <= 3


def test_bn_gamma_looks_at_the_size_of_gamma_only(resnet8):
    model, other = resnet8, copy.deepcopy(resnet8)
    with torch.no_grad():
        for stage in (1, 2, 3):
            other.get_submodule(f"layer{stage}.0.bn1").weight.mul_(-1)
            other.get_submodule(f"layer{stage}.0.conv1").weight.mul_(100)
    one, two = (gkp.prune(net, "bn-gamma") for net in (model, other))
    for stage in (1, 2, 3):
        name = f"layer{stage}.0.bn1"
        assert torch.equal(one.get_submodule(name).weight, -two.get_submodule(name).weight)


def test_bn_gamma_leaves_a_share_of_every_layer(resnet8):
    model = copy.deepcopy(resnet8)
    nn.init.uniform_(model.layer1[0].bn1.weight, 0, 0.01)
    assert gkp.prune(model, "bn-gamma", minimum=0.25).layer1[0].conv1.out_channels == 4


def test_bn_gamma_needs_batch_norms():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="no removable filter has one: try l1"):
        gkp.prune(net, "bn-gamma", example_input=torch.rand(1, 3, 8, 8))
