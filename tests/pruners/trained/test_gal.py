"""GAL: FISTA by its closed form, blocks found and removed exactly, the session, files."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import gkp
from gkp import pruners
from gkp.nets import cost, deploy
from gkp.nets.channels.surgery import default_input, filter_layers
from gkp.nets.checkpoint import load_file, save_model
from gkp.nets.models import Nothing
from gkp.pruners.common.budget import cut_to, prunable_macs
from gkp.pruners.trained.blocks import block_cut, residual_blocks, without_blocks
from gkp.pruners.trained.gal import discriminator, discriminator_loss, fista
from gkp.train import fine_tune
from gkp.train.hooks import Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment="none")


def begin(model, images, *, epochs=4, **options) -> pruners.Session:
    return pruners.start(model, "gal", rate=0.4, epochs=epochs, data=images, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


# ---- masks -----------------------------------------------------------------------------------------


def test_fista_ends_in_the_soft_threshold_clamped_at_zero() -> None:
    curvature, sparsity = 2.0, 0.6
    wanted = torch.tensor([1.5, 0.31, 0.29, 0.0, -1.0], dtype=torch.float64)
    mask = previous = torch.tensor([1.0, -0.5, 1.0, 0.7, 2.0], dtype=torch.float64)
    alpha = 1.0
    for _ in range(3000):
        gradient = curvature * (mask - wanted)
        (mask, alpha), previous = fista(mask, previous, alpha, gradient, 0.05, sparsity), mask
    torch.testing.assert_close(mask, (wanted - sparsity / curvature).clamp_min(0), atol=1e-4, rtol=0)


def test_the_first_step_of_fista_is_one_without_momentum() -> None:
    mask, previous = torch.tensor([0.5, -1.0]), torch.tensor([9.0, 9.0])
    found, alpha = fista(mask, previous, 1.0, torch.tensor([1.0, -1.0]), 0.1, 0.2)
    torch.testing.assert_close(found, torch.tensor([0.5 - 0.1 - 0.02, 0.0]))
    assert alpha == pytest.approx((1 + math.sqrt(5)) / 2)


def test_momentum_stops_where_the_gradient_turns() -> None:
    mask, previous, gradient = torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.7]), torch.tensor([1.0, -1.0])
    found, _ = fista(mask, previous, 8.0, gradient, 0.1, 0.0)
    ahead = 0.5 + 7 / ((1 + math.sqrt(257)) / 2) * -0.2
    torch.testing.assert_close(found, torch.tensor([ahead - 0.1, 0.6]))


def test_a_discriminator_that_cannot_tell_has_the_loss_of_three_coins() -> None:
    judge = discriminator(10, torch.Generator().manual_seed(0))
    for parameter in judge.parameters():
        nn.init.zeros_(parameter)
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    assert discriminator_loss(judge(logits), judge(-logits)).item() == pytest.approx(3 * math.log(2))


def test_the_masks_multiply_branches_and_move_by_the_mean_gradient(resnet8, images) -> None:
    """Against a network whose last batch norms are scaled by hand, and its gradients."""
    model, by_hand = copy.deepcopy(resnet8), copy.deepcopy(resnet8)
    session = begin(model, images, masks="normal", similarity=3.0, sparsity=0.5, epochs=400)
    masks = session.hooks.state_dict()["masks"]
    assert list(masks) == [f"layer{i}.0.bn2" for i in (1, 2, 3)]
    factors = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    for name, factor in factors.items():
        norm = by_hand.get_submodule(name)
        norm.register_forward_hook(lambda _, __, out, factor=factor: out * factor)
    batches = [images.pixels(slice(16 * i, 16 * i + 16)) for i in range(3)]
    every = math.ceil(200 * 3 / 100)
    for step in range(every):
        x = batches[step % 3]
        logits = model(x)
        torch.testing.assert_close(logits, by_hand(x))
        # The discriminator's part is far too small to see: its weights are drawn with deviation 0.01.
        session.hooks.loss(model, x, None, logits, 1).backward()
        (3.0 * (by_hand(x) - resnet8(x).detach()).square().mean()).backward()
        assert session.hooks.state_dict()["masks"].keys() == masks.keys()
        session.hooks.after_step(model, Step(1, step, 0.01, 1, every))
    for name, mask in session.hooks.state_dict()["masks"].items():
        expected, _ = fista(masks[name], masks[name], 1.0, factors[name].grad / every, 0.01, 0.5)
        torch.testing.assert_close(mask, expected, rtol=1e-4, atol=1e-5)


def test_masks_without_use_become_zero_and_are_counted(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, images, similarity=0.0, sparsity=30.0)
    fine_tune(model, images, session.recipes(RECIPE.scaled(4))[0], hooks=session.hooks)
    x = images.pixels(slice(4))
    with torch.no_grad():
        masked = model(x)
        session.finish(model)
        assert session.notes == {"masks": 3, "zero_masks": 3}
        assert not torch.allclose(model(x), masked)  # they act no more


# ---- blocks ----------------------------------------------------------------------------------------


def residual(kind: str) -> tuple[nn.Module, int]:
    """A network and how many blocks it has."""
    torch.manual_seed(0)
    if kind == "inverted":
        blocks = [InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 16, 2, 2), InvertedResidual(16, 16, 1, 2)]
        stem, head = [nn.Conv2d(3, 8, 3)], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
        return nn.Sequential(*stem, *blocks, *head).eval(), 2
    if kind in ("basic", "bottleneck"):
        model = ResNet(BasicBlock if kind == "basic" else Bottleneck, [1, 2, 1, 1], num_classes=10)
        return model.eval(), 5
    return Before().eval(), 2


class Unit(nn.Module):
    """Batch norm and an in-place ReLU first: they must not touch what the shortcut reads."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, stride, 1), nn.Conv2d(8, 8, 3, 1, 1)])
        self.pool = nn.AvgPool2d(stride)

    def forward(self, x):
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.relu(norm(out), inplace=True))
        return self.pool(x).add_(out) if self.pool.stride > 1 else x + out


class Before(nn.Sequential):
    def __init__(self) -> None:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        super().__init__(nn.Conv2d(3, 8, 3), Unit(1), Unit(2), *head)


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "inverted", "activations first"])
def test_without_a_block_is_exactly_with_its_branch_times_zero(kind) -> None:
    model, count = residual(kind)
    blocks = residual_blocks(model)
    assert len(blocks) == count
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in blocks:
            handle = model.get_submodule(name).register_forward_hook(lambda _, __, out: out * 0)
            expected = model(x)
            handle.remove()
            pruned = without_blocks(model, blocks, [name], x)
            assert torch.equal(pruned(x), expected)
            assert not torch.equal(expected, model(x))
            assert prunable_macs(pruned, x) < prunable_macs(model, x)


@pytest.mark.parametrize("network", ["resnet20", "resnet8"])
def test_costs_and_parameters_of_removed_blocks_are_gone(network, request) -> None:
    model = request.getfixturevalue(network)
    blocks, x = residual_blocks(model), default_input(model, None)
    assert list(blocks) == [n for n, _ in model.named_modules() if n.endswith("bn2")]
    second = list(blocks)[1]
    pruned = without_blocks(model, blocks, [second], x)
    gone = [model.get_submodule(name) for name in blocks[second].layers]
    parameters = [sum(p.numel() for p in module.parameters()) for module in (model, pruned, *gone)]
    assert parameters[0] - parameters[1] == sum(parameters[2:])
    macs = 2 * 9 * 16 * 16 * 32 * 32 if network == "resnet20" else 9 * (16 * 32 + 32 * 32) * 16 * 16
    assert cost.count(model, x).macs - cost.count(pruned, x).macs == macs


def test_residual_blocks_of_a_network_that_has_none(vgg16) -> None:
    assert residual_blocks(vgg16) == {}


def test_the_cut_removes_the_lowest_scores_that_the_budget_allows_and_keeps_the_masks(resnet20) -> None:
    blocks, x = residual_blocks(resnet20), default_input(resnet20, None)
    masks = {name: torch.tensor([0.1 * (1 + place)]) for place, name in enumerate(blocks)}
    pruned = block_cut(resnet20, blocks, masks, {n: float(m) for n, m in masks.items()}, x)(4 / 9)
    gone = [name for name in blocks if isinstance(pruned.get_submodule(name), Nothing)]
    assert gone == list(blocks)[:4]  # 3 blocks of 4.7 M multiply-adds and one of 3.5 M, of 40.1 M
    masked = copy.deepcopy(resnet20)
    for name, mask in masks.items():
        factor = 0 if name in gone else mask
        masked.get_submodule(name).register_forward_hook(lambda _, __, out, factor=factor: out * factor)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), masked(images), rtol=1e-4, atol=1e-4)


def test_the_papers_target_is_met_within_one_block(resnet20) -> None:
    x = default_input(resnet20, None)
    pruned, _ = cut_to(resnet20, pruners.prepare(resnet20, "gal"), 0.5625, x)
    assert prunable_macs(pruned, x) / prunable_macs(resnet20, x) == pytest.approx(0.5625, abs=0.06)


def test_a_network_without_blocks_goes_through_a_file_and_is_folded_for_attacks(resnet8, tmp_path) -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruned = without_blocks(resnet8, residual_blocks(resnet8), ["layer2.0.bn2"], x)
    save_model(pruned, tmp_path / "a.safetensors", network="resnet8", dataset="digits")
    loaded = load_file(tmp_path / "a.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), pruned(x))
        torch.testing.assert_close(deploy.folded(pruned)(x), pruned(x), rtol=1e-4, atol=1e-4)
    assert str(loaded) == str(pruned)
    again = gkp.prune(loaded, "l1", rate=0.5)
    assert again.layer1[0].conv1.out_channels == 8


# ---- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet8", "small vgg"])
def test_prune_trains_a_copy_and_gives_a_smaller_network(network, resnet8, images) -> None:
    model = resnet8 if network == "resnet8" else plain()
    x = default_input(resnet8, None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = gkp.prune(model, "gal", rate=0.4375, data=images.take(16), recipe=RECIPE, example_input=x)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert cost.count(pruned, x).macs < 0.8 * cost.count(model, x).macs
    assert not any(module._forward_hooks for module in pruned.modules())


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = OrderedDict(a=nn.Conv2d(3, 8, 3), b=nn.BatchNorm2d(8), c=nn.ReLU(), d=nn.Conv2d(8, 8, 3))
    rest = OrderedDict(e=nn.BatchNorm2d(8), f=nn.ReLU(), g=nn.AdaptiveAvgPool2d(1), h=nn.Flatten())
    return nn.Sequential(layers | rest | OrderedDict(i=nn.Linear(8, 10))).eval()


def test_filters_of_smallest_mask_go_and_the_masks_of_the_others_are_folded(images) -> None:
    model, x = plain(), torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = begin(model, images, masks="normal", seed=3, example_input=x[:1])
    masks = session.hooks.state_dict()["masks"]
    assert {name: len(mask) for name, mask in masks.items()} == {"b": 8, "e": 8}
    with torch.no_grad():
        state = session.hooks.state_dict()
        state["masks"] = {name: mask.abs() for name, mask in masks.items()}
        state["masks"]["b"][:3] = 0
        state["masks"]["e"][4:] = 0
        session.hooks.load_state_dict(state)
        masked = model(x)
        pruned = session.finish(model)(0.4)
        torch.testing.assert_close(pruned(x), masked, rtol=1e-4, atol=1e-5)
    assert session.notes == {"masks": 16, "zero_masks": 7}
    assert 1 <= pruned.a.out_channels < 8
    assert len(filter_layers(pruned, x)) == 2


def test_weights_learn_slowly_while_they_follow_the_teacher_and_as_all_others_do_after_the_cut(
    resnet8, images
) -> None:
    before, after = begin(copy.deepcopy(resnet8), images, lr=0.003).recipes(RECIPE.scaled(4))
    assert (before.lr, before.schedule, before.epochs) == (0.003, "cosine", 2)
    assert after == RECIPE.scaled(2)


def test_a_killed_run_continues_to_the_same_network(resnet8, images, tmp_path) -> None:
    class Killed(Exception):
        pass

    def train(state_path=None, kill_in=None):
        model = copy.deepcopy(resnet8)
        session = begin(model, images, epochs=6, sparsity=20.0)
        session.hooks.load_state_dict({**session.hooks.state_dict(), "counts": [4, 0, 1.0]})

        def before_step(model, at):
            if at.epoch == kill_in:
                raise Killed

        session.hooks.before_step = before_step
        recipe, _ = session.recipes(RECIPE.scaled(6))
        fine_tune(model, images, recipe, hooks=session.hooks, state_path=state_path)
        masks = session.hooks.state_dict()["masks"]
        return session.finish(model)(0.4), masks

    whole, masks = train()
    with pytest.raises(Killed):
        train(tmp_path / "state.pt", kill_in=3)
    resumed, again = train(tmp_path / "state.pt")
    assert same(whole, resumed)
    assert all(torch.equal(again[name], mask) and mask < 1 for name, mask in masks.items())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"masks": "two"}, "masks='two'"),
        ({"sparsity": -1.0}, "sparsity=-1"),
        ({"similarity": math.inf}, "similarity=inf"),
    ],
)
def test_options_out_of_range_are_refused(options, reason, resnet8, images) -> None:
    with pytest.raises(ValueError, match=reason):
        begin(copy.deepcopy(resnet8), images, **options)


def test_a_network_with_neither_blocks_nor_norms_is_refused_by_name(images) -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), *head)
    with pytest.raises(ValueError, match="gal removes residual blocks"):
        begin(model, images, example_input=torch.rand(1, 3, 32, 32))
