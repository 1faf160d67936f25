"""DHP: the hyper-network, its gradients and zeros, the proximal step; from scratch, plain at the end."""

import copy
from dataclasses import replace

import pytest
import torch
from small_training import same_weights
from torch import nn

import gkp
from gkp import pruners
from gkp.nets import cost
from gkp.nets.channels.surgery import default_input, filter_layers, remove_filters
from gkp.pruners.trained import dhp
from gkp.pruners.trained.generated import Generated, Latents, generate, make_plain
from gkp.train import fine_tune
from gkp.train.hooks import Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment="none")


def hyper(model, seed=0):
    """The model with the hyper-network in it, its latents and the generated layers."""
    x = default_input(model, None)
    layers = filter_layers(model, x)
    latents, names = generate(model, layers, x, seed)
    return latents, names, layers, x


def parts(model, name) -> Generated:
    return model.get_submodule(name).parametrizations.weight[0]


def test_weights_have_the_variance_of_their_fan_in() -> None:
    layer = nn.Conv2d(40, 60, 3)
    latents = Latents({"a": type("Layer", (), {"filters": 100})()}, seed=0)
    generator = torch.Generator().manual_seed(0)
    ties = torch.arange(40), 40 + torch.arange(60)
    for inputs, outputs in (ties, (torch.full((40,), -1), ties[1]), (ties[0], torch.full((60,), -1))):
        # Only over many draws of the latents, too, is it 1 / (I kh kw).
        variances = []
        for seed in range(20):
            latents.z.data = torch.randn(100, generator=torch.Generator().manual_seed(seed))
            made = Generated(layer.weight.shape, inputs, outputs, latents, generator)
            variances.append(made(torch.zeros_like(layer.weight)).var().item())
        assert sum(variances) / 20 == pytest.approx(1 / (40 * 9), rel=0.1)


def test_a_weight_by_its_formula() -> None:
    torch.manual_seed(0)
    latents = Latents({"a": type("Layer", (), {"filters": 5})()}, seed=1)
    inputs, outputs = torch.tensor([2, -1]), torch.tensor([0, 4, -1])
    made = Generated(torch.Size([3, 2, 3, 3]), inputs, outputs, latents, torch.Generator().manual_seed(0))
    for parameter in (made.b0, made.b1):
        nn.init.normal_(parameter)
    original = torch.randn(3, 2, 3, 3)
    weight, z = made(original), [*latents.z.tolist(), 1.0]
    for o in range(3):
        for i in range(2):
            product = z[inputs[i]] * z[outputs[o]] + made.b0[i, o]
            embedded = product * made.w1[i, o] + made.b1[i, o]
            kernel = made.w2[3 * i + o] @ embedded
            torch.testing.assert_close(weight[o, i], kernel.view(3, 3) + original[o, i])


def test_the_gradient_of_a_latent_against_differences(resnet8) -> None:
    model = copy.deepcopy(resnet8).double()
    latents, _, _, _ = hyper(model)
    x = torch.rand(2, 3, 32, 32).double()
    model(x).square().sum().backward()
    for k in (0, 20, 60):
        values = []
        for move in (1e-5, -1e-5):
            with torch.no_grad():
                latents.z[k] += move
                values.append(float(model(x).square().sum()))
                latents.z[k] -= move
        assert float(latents.z.grad[k]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)


def test_latents_of_zero_are_filters_of_zeros_until_the_biases_learn(resnet8) -> None:
    model = copy.deepcopy(resnet8)
    latents, names, layers, x = hyper(model)
    drop = {name: torch.arange(layer.filters // 3) for name, layer in layers.items()}
    for name, z in latents.split(latents.z.data).items():
        z[drop[name]] = 0
        norm = model.get_submodule(layers[name].norm)
        norm.bias.data[drop[name]] = norm.running_mean[drop[name]] = 0
        assert not model.get_submodule(name).weight[drop[name]].any()
    pictures = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(pictures)
        make_plain(model, names)
        found = remove_filters(model, drop, x)(pictures)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other = copy.deepcopy(resnet8)
    latents, names, layers, _ = hyper(other)
    latents.z.data.zero_()
    nn.init.ones_(parts(other, "layer1.0.conv1").b1)
    assert other.layer1[0].conv1.weight.any()


def test_the_proximal_step_is_the_minimiser() -> None:
    """argmin over u of (u - z)^2 / 2 + amount |u|, on a grid; not in a layer with 4 latents or fewer."""
    z = torch.tensor([0.5, -0.3, 0.02, -0.01, 1.0, 0.2, 0.5, -0.5, 0.004, 0.5, 0.5])
    owner = torch.tensor([0] * 6 + [1] * 5)
    grid = torch.linspace(-1.5, 1.5, 30001)
    found = dhp.shrunk(z, owner, 0.05)
    for one, other in zip(z[:6], found[:6], strict=True):
        best = grid[(0.5 * (grid - one) ** 2 + 0.05 * grid.abs()).argmin()]
        assert float(other) == pytest.approx(float(best), abs=1e-4)
    assert torch.equal(found[6:], z[6:])


def test_the_largest_four_are_left_whatever_they_are() -> None:
    assert dhp.left(torch.tensor([0.1, -0.006, 0.004, 0.5, 0.2, 0.001])).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert dhp.left(1e-3 * torch.tensor([1, -5.5, 2, 3, 4, 0.5])).tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_the_share_left_is_that_of_the_network_that_is_cut(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = pruners.start(model, "dhp", rate=0.4, epochs=2, data=images)
    search = session.hooks.after_step.__self__
    search.latents.z.data[::3] = 0
    kept = {name: dhp.left(z) for name, z in search.latents.split(search.latents.z.data).items()}
    x = default_input(resnet8, None)
    small = remove_filters(resnet8, {name: (~mask).nonzero()[:, 0] for name, mask in kept.items()}, x)
    assert search.share() == pytest.approx(cost.count(small, x).macs / cost.count(resnet8, x).macs)


def test_the_search_ends_at_its_target(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = pruners.start(model, "dhp", rate=0.4, epochs=2, data=images, sparsity=1.0)
    search = session.hooks.after_step.__self__
    moved = []
    for step in range(60):
        before = search.latents.z.detach().clone()
        session.hooks.after_step(model, Step(1, step, 0.1, 1, 60))
        moved.append(not torch.equal(before, search.latents.z))
    end = moved.index(False)
    assert 0 < end < 60
    assert not any(moved[end:])
    assert search.share() <= search.goal + dhp.LIMIT
    assert search.share() > search.goal - 0.2
    share = search.share()
    session.finish(model)
    assert session.notes == {"share_searched": share}


def test_it_starts_from_scratch_and_ends_as_a_plain_network(resnet8, images) -> None:
    other = copy.deepcopy(resnet8)
    for parameter in other.parameters():
        parameter.data += 0.1
    found = [
        gkp.prune(model, "dhp", rate=0.4, data=images.take(32), recipe=RECIPE, seed=seed)
        for model, seed in ((resnet8, 0), (other, 0), (resnet8, 1))
    ]
    assert same_weights(found[0], found[1])
    assert not torch.equal(found[0].conv1.weight, found[2].conv1.weight)
    assert list(found[0].state_dict()) == list(resnet8.state_dict())
    assert [type(m) for m in found[0].modules()] == [type(m) for m in resnet8.modules()]
    assert found[0].layer3[0].conv1.out_channels + found[0].layer1[0].conv1.out_channels < 80
    assert pruners.get("dhp").when == "in training, from scratch"
    assert pruners.get("sfp").when == "in training"


def test_both_parts_have_its_learning_rate(resnet8, images) -> None:
    session = pruners.start(copy.deepcopy(resnet8), "dhp", rate=0.4, epochs=10, data=images, lr=0.3)
    first, second = session.recipes(RECIPE.scaled(10))
    assert (first.epochs, second.epochs) == (1, 9)
    assert {(r.lr, r.weight_decay) for r in (first, second)} == {(0.3, 1e-4)}


def test_biases_stand_behind_their_weights_again(images) -> None:
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *head)
    found = gkp.prune(
        model,
        "dhp",
        rate=0.4,
        data=images,
        recipe=replace(RECIPE, epochs=1),
        example_input=images.pixels()[:1],
    )
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in model.named_parameters()]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.scale * self.net(x).flatten(1)


def test_what_cannot_start_from_scratch_is_named(resnet8, images) -> None:
    x = images.pixels(slice(1))
    with pytest.raises(ValueError, match=r"the network \(Own\) has parameters but no reset_parameters"):
        pruners.start(Own(), "dhp", rate=0.4, epochs=2, data=images, example_input=x)
    frozen = copy.deepcopy(resnet8)
    frozen.conv1.requires_grad_(False)
    with pytest.raises(ValueError, match=r"conv1\.weight is frozen"):
        pruners.start(frozen, "dhp", rate=0.4, epochs=2, data=images)
    with pytest.raises(ValueError, match="sparsity=-1"):
        pruners.start(copy.deepcopy(resnet8), "dhp", rate=0.4, epochs=2, data=images, sparsity=-1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_generated_in_full_precision(precision, resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    hyper(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        assert model.layer1[0].conv1.weight.dtype == torch.float32
    fine_tune(model, images.take(16), replace(RECIPE, epochs=1, precision=precision))
    assert all(p.isfinite().all() for p in model.parameters())
