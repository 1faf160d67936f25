"""HESSO: scores by hand, factors that end in zero, a cut that changes nothing, multiply-adds that are met."""

import copy

import numpy as np
import pytest
import torch

from gkp import pruners
from gkp.nets import cost
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.budget import cut_to, prunable_macs
from gkp.pruners.trained.hesso import NEVER, Fading, saliency
from gkp.pruners.trained.zero_groups import ZeroGroups
from gkp.train import fine_tune
from gkp.train.hooks import Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05, schedule="cosine", augment="none")


def rows(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def fading(model, goal=0.3) -> Fading:
    groups = ZeroGroups(model, None)
    whole = groups.macs(torch.zeros(sum(groups.sizes), dtype=torch.bool))
    return Fading(groups, goal * whole, begin=0.1, span=0.5, periods=4, minimum=0.1)


def test_the_five_scores_by_hand() -> None:
    x, g = rows((3, 4), (2, 6)), rows((3, 4), (2, 6), seed=1)
    scores = []
    for a, b in ((v.numpy(), w.numpy()) for pair in zip(x, g, strict=True) for v, w in [pair]):
        for one, other in zip(a, b, strict=True):
            norm, product = np.sqrt(sum(one**2)), sum(one * other)
            cosine = product / norm / np.sqrt(sum(other**2))
            scores.append((norm, norm / len(one), cosine + 1, abs(product), product**2 / 2))
    scores = np.array(scores)
    expected = 0.2 * (scores / np.sqrt((scores**2).sum(0))).sum(1)
    assert saliency(x, g).numpy() == pytest.approx(expected, rel=1e-12)


def test_scores_do_not_depend_on_the_order_of_the_groups() -> None:
    x, g, order = rows((6, 4)), rows((6, 4), seed=1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(saliency([x[0][order]], [g[0][order]]), saliency(x, g)[order])


def test_groups_without_any_gradient_have_scores() -> None:
    x = rows((3, 4))
    assert saliency(x, [torch.zeros(3, 4, dtype=torch.float64)]).isfinite().all()
    assert saliency([torch.zeros(3, 4)], [torch.zeros(3, 4)]).tolist() == pytest.approx(
        [0.2 * 3**-0.5] * 3  # the cosine of nothing is 0, that score alike for all
    )


@pytest.mark.parametrize("per_epoch", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("epochs", [1, 3])
def test_factors_of_a_period_have_the_product_zero(per_epoch, epochs, resnet8) -> None:
    """On weights that nothing else moves: in a period of T steps (T - t - 1) / (T - t) of what was."""
    model = copy.deepcopy(resnet8)
    fade = fading(model)
    weight = model.layer1[0].conv1.weight
    whole = weight.detach().clone()
    for number in range(epochs * per_epoch):
        at = Step(number // per_epoch + 1, number % per_epoch, 0.1, epochs, per_epoch)
        fade.before_step(model, at)
        fade.after_step(model, at)
        period, step, length, periods = fade.place(at)
        if period < 0:
            continue
        found = (weight.detach() / whole).flatten(1).mean(1)
        since = fade.period[:16]
        expected = torch.where(since == NEVER, 1.0, torch.zeros(16))
        if period < periods and step < length - 2:
            expected[since == period] = (length - step - 2) / (length - 1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (fade.period != NEVER).any()
    assert not weight[fade.period[:16] != NEVER].any()
    assert not model.layer1[0].bn1.bias[fade.period[:16] != NEVER].any()


def test_each_period_adds_its_part_of_the_multiply_adds(resnet8) -> None:
    fade = fading(copy.deepcopy(resnet8), goal=0.3)
    whole = fade.groups.macs(torch.zeros(112, dtype=torch.bool))
    most = max(whole - fade.groups.widths.macs({name: 1}) for name in fade.groups.names)
    scores = torch.rand(112, generator=torch.Generator().manual_seed(0))
    for period in range(4):
        earlier = fade.period.clone()
        fade.choose(scores, period, fade.goal * (period + 1) / 4)
        assert torch.equal(fade.period[earlier != NEVER], earlier[earlier != NEVER])
        gone = whole - fade.groups.macs(fade.period != NEVER)
        assert fade.goal * (period + 1) / 4 * (1 - 1e-9) <= gone < fade.goal * (period + 1) / 4 + most
        # The lowest of those that could still go.
        new, left = scores[fade.period == period], scores[fade.period == NEVER]
        assert new.max() < left.min()
        scores = scores.flip(0)


@pytest.mark.parametrize("network", ["resnet8", "thin_vgg16"])
def test_the_cut_changes_nothing_and_meets_the_target(network, request, images) -> None:
    model = copy.deepcopy(request.getfixturevalue(network))
    x, ratio = default_input(model, None), 0.7
    _, rate = cut_to(model, pruners.prepare(model, "hesso"), ratio, x)
    few, recipe = images.take(16), RECIPE.scaled(1 if network == "thin_vgg16" else 4)
    session = pruners.start(model, "hesso", rate=rate, epochs=recipe.epochs, data=few, span=0.6)
    fine_tune(model, few, recipe, hooks=session.hooks)
    cut = session.finish(model)
    gone = session.hooks.state_dict()["period"] != NEVER
    assert session.notes == {"groups": len(gone), "zero_groups": int(gone.sum())}
    for pruned in (cut(rate), cut_to(model, cut, ratio, x)[0], cut(0.5 * rate)):
        with torch.no_grad():
            logits = model(images.pixels(slice(8)))
            found = pruned(images.pixels(slice(8)))
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert prunable_macs(cut(rate), x) == pytest.approx(ratio * prunable_macs(model, x), rel=0.02)
    assert cost.count(cut(0.9), x).macs < cost.count(cut(rate), x).macs


def test_groups_stay_zero_while_the_others_train_on(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    session = pruners.start(model, "hesso", rate=0.4, epochs=4, data=images, begin=0.0, span=0.2)
    kept = []
    inner = session.hooks.after_step

    def after_step(model, at):
        inner(model, at)
        kept.append(int((model.layer3[0].conv1.weight.flatten(1).abs().sum(1) > 0).sum()))

    session.hooks.after_step = after_step
    fine_tune(model, images, RECIPE, hooks=session.hooks)
    assert kept[0] >= kept[-1]
    assert len(set(kept[len(kept) // 4 :])) == 1
    assert kept[-1] < 64
    assert not torch.equal(model.conv1.weight, resnet8.conv1.weight)


@pytest.mark.parametrize("wrong", [{"begin": 1.0}, {"span": 0}, {"begin": 0.5, "span": 0.6}, {"periods": 0}])
def test_a_schedule_that_does_not_fit_is_refused(wrong, resnet8, images) -> None:
    with pytest.raises(ValueError, match="give shares of the steps"):
        pruners.start(copy.deepcopy(resnet8), "hesso", rate=0.4, epochs=4, data=images, **wrong)
