"""Taylor-FO-BN against gates put behind the batch norms, and against the loss itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gkp.nets import cost
from gkp.nets.channels.surgery import default_input, filter_layers
from gkp.pruners import match_macs, prepare
from gkp.pruners.gradients import first_order


class Gate(nn.Module):
    """Multiplies channels by gates that stand at one."""

    def __init__(self, inner: nn.Module, channels: int) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        return self.inner(x) * self.gate


def squared_gate_gradients(model, layer: str, channels: int, batches) -> torch.Tensor:
    """Mean over batches of (dL/dg)^2 with gates behind `layer`, at g = 1."""
    model = copy.deepcopy(model).eval()
    gate = Gate(model.get_submodule(layer), channels)
    model.set_submodule(layer, gate)
    total = torch.zeros(channels)
    for x, y in batches:
        gate.gate.grad = None
        F.cross_entropy(model(x), y).backward()
        total += gate.gate.grad.flatten() ** 2
    return total / len(batches)


def layers_of(model):
    return filter_layers(model, default_input(model, None))


@pytest.mark.parametrize("network", ["resnet8", "thin_vgg16"])
def test_the_score_is_the_squared_gradient_of_a_gate_behind_the_batch_norm(network, request, images) -> None:
    model = request.getfixturevalue(network)
    layers = layers_of(model)
    some = images.take(8)
    scores = first_order(model, layers, some, 4)
    batches = [(some.pixels(slice(i, i + 4)), some.labels[i : i + 4]) for i in (0, 4)]
    for name in list(layers)[:2]:
        expected = squared_gate_gradients(model, layers[name].norm, layers[name].filters, batches)
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-7)


def test_without_a_batch_norm_the_gate_stands_behind_the_convolution(images) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    layers = filter_layers(model, torch.rand(1, 3, 32, 32))
    some = images.take(8)
    scores = first_order(model, layers, some, 8)
    expected = squared_gate_gradients(model, "0", 6, [(some.pixels(), some.labels)])
    torch.testing.assert_close(scores["0"], expected, rtol=1e-3, atol=1e-8)


def test_the_model_keeps_its_gradients_modes_and_flags(resnet8, images) -> None:
    model = copy.deepcopy(resnet8).train().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare(model, "taylor", data=images, images=8)(0.4)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dead_filters_go_first_and_the_logits_stay(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        block.bn1.weight.data[::4] = 0
        block.bn1.bias.data[::4] = 0
    pruned = prepare(model, "taylor", data=images, images=16)(0.25)
    assert [pruned.get_submodule(f"layer{i}.0.conv1").out_channels for i in (1, 2, 3)] == [12, 24, 48]
    torch.testing.assert_close(pruned(images.pixels()), model(images.pixels()), rtol=1e-4, atol=1e-4)


def test_the_order_of_the_filters_does_not_matter(resnet8, images) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shuffled = copy.deepcopy(resnet8)
    block = shuffled.layer1[0]
    for tensor in (
        block.conv1.weight,
        *block.bn1.parameters(),
        block.bn1.running_mean,
        block.bn1.running_var,
    ):
        tensor.data = tensor.data[order].clone()
    block.conv2.weight.data = block.conv2.weight.data[:, order].clone()
    one, other = (prepare(m, "taylor", data=images, images=32)(0.4) for m in (resnet8, shuffled))
    torch.testing.assert_close(one(images.pixels()), other(images.pixels()), rtol=1e-4, atol=1e-4)


def test_no_layer_loses_more_than_its_floor_allows(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    model.layer1[0].bn1.weight.data.zero_()
    model.layer1[0].bn1.bias.data.zero_()
    cut = prepare(model, "taylor", data=images, images=16, minimum=0.25)
    assert cut(0.5).layer1[0].conv1.out_channels == 4


@pytest.mark.parametrize("network", ["resnet8", "thin_vgg16"])
def test_a_target_of_multiply_adds_is_met_within_1_percent(network, request, images) -> None:
    model = request.getfixturevalue(network)
    x = default_input(model, None)
    target = 0.5625 * cost.count(model, x).macs
    pruned, _ = match_macs(model, prepare(model, "taylor", data=images, images=4), target)
    assert cost.count(pruned, x).macs == pytest.approx(target, rel=0.01)
