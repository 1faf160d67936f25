"""Slimming, soft filter pruning and FPGM in training: their gradients and masks by hand, resume, slicing."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gkp
from gkp import pruners
from gkp.nets import cost
from gkp.nets.channels.surgery import default_input, filter_layers
from gkp.pruners import Session, match_macs
from gkp.train import Step, fine_tune
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment="none")
MASKED = ["sfp", "fpgm-training"]
TRAINED = [name for name in pruners.methods() if pruners.get(name).start]


def begin(model, method, images, *, rate=0.4375, epochs=4, **options) -> Session:
    return pruners.start(model, method, rate=rate, epochs=epochs, data=images, **options)


def l2_order(weight: torch.Tensor) -> list[int]:
    return sorted(range(len(weight)), key=lambda i: float(np.sqrt((weight[i].double().numpy() ** 2).sum())))


def median_order(weight: torch.Tensor) -> list[int]:
    w = weight.double().numpy()
    return sorted(range(len(w)), key=lambda i: sum(np.sqrt(((w[i] - other) ** 2).sum()) for other in w))


ORDERS = {"sfp": l2_order, "fpgm-training": median_order}


# ---- masks -----------------------------------------------------------------------------------------


def expect_masks(model, before, method, rate) -> None:
    """The lowest filters of `before` are zero in `model`, and nothing else has changed."""
    expected = copy.deepcopy(before)
    for name, layer in filter_layers(before, default_input(before, None)).items():
        weight = expected.get_submodule(name).weight.data
        weight[ORDERS[method](weight)[: round(rate * layer.filters)]] = 0
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("method", MASKED)
def test_at_the_start_and_after_an_epoch_the_lowest_filters_are_zero(method, resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, method, images)
    expect_masks(model, resnet8, method, 0.4375)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        conv.weight.data += 0.2 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(5))
    trained = copy.deepcopy(model)
    session.hooks.after_epoch(model, 1)
    expect_masks(model, trained, method, 0.4375)


@pytest.mark.parametrize("method", MASKED)
@pytest.mark.parametrize("network", ["resnet8", "thin_vgg16"])
def test_sliced_and_masked_give_the_same_logits(method, network, request, images) -> None:
    """The shift of a masked filter's batch norm would show here: it is not zero in these networks."""
    model = copy.deepcopy(request.getfixturevalue(network))
    session = begin(model, method, images, epochs=1, rate=0.3, share=1.0)
    fine_tune(model, images.take(16), RECIPE.scaled(1), hooks=session.hooks)
    sliced = session.finish(model)(0.3)
    assert (
        cost.count(sliced, default_input(model, None)).macs < cost.count(model, images.pixels(slice(1))).macs
    )
    x = images.pixels(slice(16, 24))
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(sliced(x), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("method", MASKED)
def test_the_cut_drops_the_masked_filters(method, resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, method, images, epochs=2, share=1.0)
    fine_tune(model, images, RECIPE, hooks=session.hooks)
    for name in filter_layers(model, default_input(model, None)):
        weight = model.get_submodule(name).weight
        alive = weight.flatten(1).norm(dim=1) > 0
        assert alive.sum() == len(alive) - round(0.4375 * len(alive))
        assert torch.equal(session.finish(model)(0.4375).get_submodule(name).weight, weight[alive])


def test_masks_are_reached_in_the_last_epoch_of_their_share(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, "sfp", images, epochs=4, share=0.5)
    block = model.layer1[0]
    session.hooks.after_epoch(model, 1)
    assert (block.bn1.weight != 0).all()
    session.hooks.after_epoch(model, 2)
    assert ((block.bn1.weight == 0) & (block.bn1.bias == 0)).sum() == 7


def test_soft_masks_let_filters_grow_again_and_hard_ones_stop_their_gradient(resnet8, images) -> None:
    x, y = images.pixels(slice(16)), images.labels[:16]
    gradients = {}
    for method in MASKED:
        model = copy.deepcopy(resnet8).train()
        hooks = begin(model, method, images).hooks
        hooks.after_epoch(model, 1)
        F.cross_entropy(model(x), y).backward()
        if hooks.before_step:
            hooks.before_step(model, Step(2, 0, 0.1, 4, 3))
        weight = model.layer1[0].conv1.weight
        masked = weight.flatten(1).norm(dim=1) == 0
        gradients[method] = weight.grad[masked].abs().sum()
        assert weight.grad[~masked].abs().sum() > 0
    assert gradients["sfp"] > 0
    assert gradients["fpgm-training"] == 0


@pytest.mark.parametrize("method", MASKED)
def test_no_mask_at_rate_0(method, resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, method, images, rate=0.0)
    session.hooks.after_epoch(model, 4)
    for name, value in resnet8.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("method", MASKED)
def test_the_order_of_the_filters_does_not_matter(method, resnet8, images) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    plain, shuffled = copy.deepcopy(resnet8), copy.deepcopy(resnet8)
    shuffled.layer1[0].conv1.weight.data = shuffled.layer1[0].conv1.weight.data[order].clone()
    for model in (plain, shuffled):
        begin(model, method, images).hooks.after_epoch(model, 1)
    assert torch.equal(shuffled.layer1[0].conv1.weight, plain.layer1[0].conv1.weight[order])


def test_a_network_whose_norms_would_undo_the_mask_is_refused(images) -> None:
    class Separable(nn.Sequential):
        def __init__(self) -> None:
            depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
            super().__init__(
                nn.Conv2d(3, 8, 1), depthwise, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), *head
            )

    with pytest.raises(ValueError, match="one-shot method"):
        begin(Separable(), "sfp", images, example_input=torch.rand(1, 3, 8, 8))


# ---- slimming --------------------------------------------------------------------------------------


def test_slimming_adds_the_subgradient_of_the_l1_norm_of_prunable_scales(resnet8, images) -> None:
    x, y = images.pixels(slice(16)), images.labels[:16]
    model, penalised = copy.deepcopy(resnet8).train(), copy.deepcopy(resnet8).train()
    model.layer1[0].bn1.weight.data[3] *= -1
    penalised.layer1[0].bn1.weight.data[3] *= -1
    F.cross_entropy(model(x), y).backward()
    begin(model, "slimming", images, sparsity=0.01).hooks.before_step(model, Step(1, 0, 0.1, 4, 3))
    scales = [penalised.get_submodule(f"layer{i}.0.bn1").weight for i in (1, 2, 3)]
    (F.cross_entropy(penalised(x), y) + 0.01 * sum(scale.abs().sum() for scale in scales)).backward()
    for (name, one), other in zip(model.named_parameters(), penalised.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_penalty_makes_scales_small(resnet8, images) -> None:
    sums = {}
    for sparsity in (0.0, 0.5):
        model = copy.deepcopy(resnet8)
        session = begin(model, "slimming", images, sparsity=sparsity)
        fine_tune(model, images, RECIPE, hooks=session.hooks)
        sums[sparsity] = model.layer3[0].bn1.weight.abs().sum()
    assert sums[0.5] < 0.9 * sums[0.0]


def test_slimming_cuts_the_smallest_scales_of_the_trained_network(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, "slimming", images)
    model.layer3[0].bn1.weight.data.fill_(0.01)
    model.layer3[0].bn1.weight.data[10:30] = 3.0
    assert session.finish(model)(0.2).layer3[0].conv1.out_channels < 40
    target = 0.5625 * cost.count(model, default_input(model, None)).macs
    pruned, _ = match_macs(model, session.finish(model), target)
    assert cost.count(pruned, default_input(model, None)).macs == pytest.approx(target, rel=0.01)


def test_slimming_refuses_a_negative_penalty(resnet8, images) -> None:
    with pytest.raises(ValueError, match="sparsity=-1"):
        begin(resnet8, "slimming", images, sparsity=-1)


# ---- sessions --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", TRAINED)
def test_a_killed_run_continues_to_the_same_network(method, resnet8, images, tmp_path) -> None:
    recipe = RECIPE.scaled(3)

    def train(state_path=None, kill_in=None):
        model = copy.deepcopy(resnet8)
        session = begin(model, method, images, epochs=3)
        inner = session.hooks.before_step

        def before_step(model, at):
            if at.epoch == kill_in:
                raise Killed
            if inner:
                inner(model, at)

        session.hooks.before_step = before_step
        fine_tune(model, images, recipe, hooks=session.hooks, state_path=state_path)
        return model, session.finish(model)(0.4375)

    whole, whole_cut = train()
    with pytest.raises(Killed):
        train(tmp_path / "state.pt", kill_in=2)
    resumed, resumed_cut = train(tmp_path / "state.pt")
    for one, other in ((whole, resumed), (whole_cut, resumed_cut)):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    # Finished, and asked again: as after a kill in the fine-tuning that follows.
    again_cut = train(tmp_path / "state.pt")[1]
    assert all(torch.equal(again_cut.state_dict()[k], v) for k, v in whole_cut.state_dict().items())


@pytest.mark.parametrize("method", TRAINED)
def test_prune_trains_a_copy_and_gives_a_smaller_network(method, resnet8, images) -> None:
    before = {name: value.clone() for name, value in resnet8.state_dict().items()}
    pruned = gkp.prune(resnet8, method, rate=0.4375, data=images.take(16), recipe=RECIPE)
    assert all(torch.equal(resnet8.state_dict()[name], value) for name, value in before.items())
    x = default_input(resnet8, None)
    assert cost.count(pruned, x).macs < 0.7 * cost.count(resnet8, x).macs
    assert not torch.equal(pruned.conv1.weight, resnet8.conv1.weight)


@pytest.mark.parametrize(
    ("share", "epochs", "expected"),
    [(1, 5, 5), (0.5, 5, 2), (0.1, 2, 1), (0.9, 2, 1), (0.9, 1, 1), (1, 2, 2), (0.5, 0, 0)],
)
def test_the_epochs_are_divided_and_none_is_lost(share, epochs, expected) -> None:
    session = Session(hooks=None, finish=None, share=share)
    first, second = session.recipes(RECIPE.scaled(epochs))
    assert first.epochs == expected
    assert first.epochs + second.epochs == epochs


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_is_a_share(share) -> None:
    with pytest.raises(ValueError, match="share="):
        Session.hooked_epochs(4, share)


@pytest.mark.parametrize(
    ("method", "criterion"), [("sfp", "l2"), ("fpgm-training", "fpgm"), ("slimming", "bn-gamma")]
)
def test_without_training_the_criterion_is_the_one_shot_methods(method, criterion, resnet8) -> None:
    one = pruners.prepare(resnet8, method)(0.4375)
    other = pruners.prepare(resnet8, criterion)(0.4375)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


# ---- batch norms without a scale, frozen layers ----------------------------------------------------


def corners(*, affine: bool = True, frozen: tuple[int, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(8, affine=affine), nn.BatchNorm2d(8)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), first, nn.ReLU(), nn.Conv2d(8, 8, 3), second, *head)
    for position in frozen:
        model[position].requires_grad_(False)
    return model


CORNERS = {
    "no scale": corners(affine=False),
    "frozen norm": corners(frozen=(1,)),
    "frozen layer": corners(frozen=(0,)),
    "frozen both": corners(frozen=(0, 1)),
    "frozen but for the head": corners(frozen=(0, 1, 3, 4)),
}
EXAMPLE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [k for k in CORNERS if k != "frozen layer"])
def test_slimming_names_the_scale_that_it_cannot_shrink(kind, images) -> None:
    state = r"does not exist \(affine=False\)" if kind == "no scale" else "is frozen"
    with pytest.raises(ValueError, match=rf"that of 1, behind 0, {state}: .*l1"):
        gkp.prune(CORNERS[kind], "slimming", example_input=EXAMPLE, data=images, recipe=RECIPE)


def test_slimming_prunes_a_frozen_layer_whose_scale_trains(images) -> None:
    found = gkp.prune(CORNERS["frozen layer"], "slimming", example_input=EXAMPLE, data=images, recipe=RECIPE)
    assert found[0].out_channels + found[3].out_channels < 16


@pytest.mark.parametrize("kind", CORNERS)
@pytest.mark.parametrize("method", ["sfp", "fpgm-training"])
def test_masks_take_layers_without_scale_or_gradient(method, kind, images) -> None:
    """What is cut off computed nothing: the masked network and the smaller one agree."""
    model = copy.deepcopy(CORNERS[kind])
    session = begin(model, method, images, rate=0.5, epochs=2, example_input=EXAMPLE)
    recipe, _ = session.recipes(RECIPE)
    fine_tune(model, images, recipe, hooks=session.hooks)
    smaller = session.finish(model)(0.5)
    assert (smaller[0].out_channels, smaller[3].out_channels) == (4, 4)
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(EXAMPLE), model.eval()(EXAMPLE), rtol=1e-4, atol=1e-5)
