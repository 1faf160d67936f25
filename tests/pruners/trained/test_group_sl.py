"""Sparse learning of dependency groups: strengths by hand, gradients by autograd, group-norm's cut."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from building_blocks import block
from small_training import random_split, same_weights

from gkp import pruners
from gkp.nets.channels.groups import channels_of
from gkp.pruners.dependency import bundles_to_prune, slices
from gkp.pruners.trained.group_sl import Decay, strengths
from gkp.train import fine_tune
from gkp.train.hooks import Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment="none")
AT = Step(1, 0, 0.05, 1, 1)


def test_strengths_run_from_1_at_the_largest_to_16_at_the_smallest() -> None:
    squares = torch.tensor([4.0, 0.25, 1.0, 2.25])
    assert strengths(squares).tolist() == pytest.approx([1, 16, 16 ** (2 / 3), 16 ** (1 / 3)])
    torch.testing.assert_close(strengths(1e4 * squares), strengths(squares))
    assert strengths(torch.full((3,), 2.0)).tolist() == [1, 1, 1]
    assert strengths(torch.zeros(3)).tolist() == [1, 1, 1]


def expected_decay(model, x, strength):
    """strength / 2 * sum of strengths[k] ||w[k]||^2, with the strengths as constants."""
    modules, channels = dict(model.named_modules()), channels_of(model, x)
    total = 0
    for bundle in bundles_to_prune(model, channels):
        parts = slices(modules, channels, bundle)
        squares = [0.0] * len(bundle.units)
        each = []
        for part in parts:
            weight = modules[part.layer].weight
            for i, k in enumerate(part.place.tolist()):
                if k >= 0:
                    piece = weight.select(part.axis, i) if weight.dim() > 1 else weight[i]
                    each.append((k, piece))
                    squares[k] += float(piece.detach().double().square().sum())
        factors = strengths(torch.tensor(squares)).tolist()
        total = total + sum(0.5 * strength * factors[k] * piece.square().sum() for k, piece in each)
    return total


@pytest.mark.parametrize(
    "network", ["resnet8", "batch norm", "sum", "flatten", "depthwise", "transposed", "beside itself"]
)
def test_the_gradient_is_that_of_a_decay_of_its_own_for_every_channel(network, resnet8) -> None:
    model = copy.deepcopy(resnet8) if network == "resnet8" else block(network)
    x = torch.rand(1, 3, 32, 32) if network == "resnet8" else torch.rand(1, 3, 8, 8)
    data = random_split(8, size=x.shape[-1])
    loss = F.cross_entropy(model(data.pixels()), data.labels % 5)
    plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    whole = loss + expected_decay(model, x, 0.01)
    expected = torch.autograd.grad(whole, list(model.parameters()), allow_unused=True)
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        parameter.grad = gradient.clone()
    session = pruners.start(model, "group-sl", rate=0.4, epochs=2, example_input=x, data=data, strength=0.01)
    session.hooks.before_step(model, AT)
    for (name, parameter), gradient, before in zip(model.named_parameters(), expected, plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        if name.endswith("bias"):
            assert torch.equal(parameter.grad, before)
    changed = [not torch.equal(p.grad, b) for p, b in zip(model.parameters(), plain, strict=True)]
    assert any(changed)


def test_strength_0_is_plain_training_without_weight_decay(resnet8, images) -> None:
    models = [copy.deepcopy(resnet8) for _ in range(2)]
    session = pruners.start(models[0], "group-sl", rate=0.4, epochs=4, data=images, strength=0.0)
    first, second = session.recipes(RECIPE.scaled(4))
    assert (first.weight_decay, second.weight_decay) == (0, RECIPE.weight_decay)
    assert (first.epochs, second.epochs) == (2, 2)
    fine_tune(models[0], images, first, hooks=session.hooks)
    fine_tune(models[1], images, replace(RECIPE, weight_decay=0.0))
    assert same_weights(*models)


def test_small_channels_shrink_more_and_the_cut_is_that_of_group_norm(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    weight = model.layer3[0].conv1.weight
    for tensor in (weight, model.layer3[0].bn1.weight):
        tensor.data[:32] *= 0.3
    model.layer3[0].conv2.weight.data[:, :32] *= 0.3
    before = weight.detach().flatten(1).norm(dim=1)
    session = pruners.start(model, "group-sl", rate=0.4, epochs=4, data=images, strength=0.05)
    first, _ = session.recipes(RECIPE.scaled(4))
    fine_tune(model, images, first, hooks=session.hooks)
    left = weight.detach().flatten(1).norm(dim=1) / before
    assert left[:32].mean() < left[32:].mean() - 0.05
    pruned, other = session.finish(model)(0.4), pruners.prepare(model, "group-norm")(0.4)
    assert same_weights(pruned, other)


def test_a_decay_keeps_its_indices(resnet8) -> None:
    """Calling it again adds the same again: nothing is remembered but where the weights are."""
    x = torch.rand(1, 3, 32, 32)
    channels = channels_of(resnet8, x)
    (bundle, *_) = bundles_to_prune(resnet8, channels)
    model = copy.deepcopy(resnet8)
    decay = Decay(slices(dict(model.named_modules()), channels, bundle), len(bundle.units))
    conv = model.get_submodule(bundle.producers[0])
    conv.weight.grad = torch.zeros_like(conv.weight)
    decay.add(model, 0.1)
    once = conv.weight.grad.clone()
    decay.add(model, 0.1)
    assert once.abs().sum() > 0
    torch.testing.assert_close(conv.weight.grad, 2 * once)


def test_a_negative_strength_is_refused(resnet8, images) -> None:
    with pytest.raises(ValueError, match="strength=-1"):
        pruners.start(resnet8, "group-sl", rate=0.4, epochs=4, data=images, strength=-1)
