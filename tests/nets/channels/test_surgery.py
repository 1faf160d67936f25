import copy

import pytest
import torch
import torchvision
from torch import nn

from gkp.nets import models
from gkp.nets.channels import surgery
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.search import select


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that are no identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.3, 0.3)
    return model.eval()


def test_kernel_layers_leave_out_the_first_and_say_why_they_skip() -> None:
    model = models.create("resnet20")
    layers, skipped = surgery.kernel_layers(model, 8)
    assert len(layers) == 18
    assert "conv1" not in layers
    assert not skipped
    layers, skipped = surgery.kernel_layers(model, 32)
    assert len(layers) == 12
    assert skipped["layer1.0.conv1"] == "groups=32 does not divide its 16 filters"
    layers, skipped = surgery.kernel_layers(torchvision.models.mobilenet_v2(), 8)
    assert not layers
    assert "already has groups=" in skipped["features.1.conv.0.0"]


def test_bottlenecks_are_pruned_in_their_3x3_convolutions_only() -> None:
    layers, _ = surgery.kernel_layers(torchvision.models.resnet50(), 8)
    assert len(layers) == 16
    assert all(conv.kernel_size == (3, 3) for conv in layers.values())


def test_replacing_leaves_the_original_alone() -> None:
    model = models.create("resnet8").eval()
    before = copy.deepcopy(model.state_dict())
    pruned = surgery.replace_kernels(model, {"layer1.0.conv1": select(model.layer1[0].conv1.weight)})
    assert isinstance(pruned.layer1[0].conv1, GroupedKernelConv2d)
    assert isinstance(model.layer1[0].conv1, nn.Conv2d)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("network", "count"), [("resnet8", 3), ("resnet20", 9), ("vgg16", 13)])
def test_filter_layers_of_our_networks(network: str, count: int) -> None:
    model = models.create(network)
    layers = surgery.filter_layers(model, torch.rand(1, 3, 32, 32))
    assert len(layers) == count
    for name, layer in layers.items():
        assert model.get_submodule(name).out_channels == layer.filters
        assert model.get_submodule(layer.norm).num_features == layer.filters
        assert layer.consumers


@pytest.mark.parametrize("network", ["resnet8", "vgg16"])
def test_removing_dead_filters_keeps_the_logits(network: str) -> None:
    torch.manual_seed(0)
    model = randomised(models.create(network))
    x = torch.rand(2, 3, 32, 32)
    drop = {}
    for name, layer in surgery.filter_layers(model, x).items():
        dead = torch.randperm(layer.filters)[: layer.filters // 3]
        norm = model.get_submodule(layer.norm)
        norm.weight.data[dead] = norm.bias.data[dead] = 0
        drop[name] = dead
    smaller = surgery.remove_filters(model, drop, x)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 0.01
        assert torch.allclose(smaller(x), expected, atol=1e-4 * expected.abs().max().item())
    for name, indices in drop.items():
        kept = [i for i in range(model.get_submodule(name).out_channels) if i not in indices]
        assert torch.equal(
            smaller.get_submodule(name).weight[:, 0], model.get_submodule(name).weight[kept][:, 0]
        ) or (smaller.get_submodule(name).in_channels < model.get_submodule(name).in_channels)


def test_surgery_keeps_modes_and_gradient_flags() -> None:
    model = models.create("resnet8").eval()
    model.linear.weight.requires_grad_(False)
    smaller = surgery.remove_filters(
        model, {"layer1.0.conv1": torch.tensor([0, 3])}, torch.rand(1, 3, 32, 32)
    )
    assert not smaller.training
    assert not smaller.linear.weight.requires_grad
    assert smaller.conv1.weight.requires_grad
    assert all(p.grad is None for p in smaller.parameters())


def test_surgery_works_without_gradients() -> None:
    with torch.no_grad():
        assert len(surgery.filter_layers(models.create("resnet8"), torch.rand(1, 3, 32, 32))) == 3


def test_errors_name_the_fix() -> None:
    model = models.create("resnet8")
    with pytest.raises(ValueError, match="would lose all of its 16 filters"):
        surgery.remove_filters(model, {"layer1.0.conv1": torch.arange(16)}, torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="give example_input"):
        surgery.default_input(torchvision.models.resnet18(), None)
