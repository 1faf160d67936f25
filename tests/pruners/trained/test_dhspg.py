"""DHSPG: bounds of the penalty, the half-space on plane vectors, which groups, and what stays plain SGD."""

import copy

import pytest
import torch
from small_training import same_weights
from torch import nn

from gkp import pruners
from gkp.pruners.trained.dhspg import PENALTY, PUBLISHED_STEPS, HalfSpaces, penalties, redundancy
from gkp.pruners.trained.zero_groups import ZeroGroups
from gkp.train import fine_tune
from gkp.train.hooks import Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05, momentum=0.0, schedule="constant", augment="none")
AT = Step(1, 0, 0.1, 1, 1)


def plane() -> nn.Module:
    """Groups of two numbers: filters 1x1 of two channels, no bias, no norm."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def random_pairs(n=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_the_penalty_shrinks_a_group_and_still_lowers_the_loss() -> None:
    """To first order, where both can be had: between lower and upper, which Cauchy-Schwarz puts in order."""
    x, g = random_pairs()
    g[:250] *= 0.1  # of the size of the penalty
    g[:50] = 0.02 * g[:50] - 0.1 * x[:50]
    norm, product = x.norm(dim=1), (x * g).sum(1)
    found, against = penalties(x, g, 0.05), product < 0
    assert 100 < against.sum() < 400
    assert (found[~against] == 0.05).all()
    lower = (-product / norm)[against]
    upper = (-g.square().sum(1) * norm / product)[against]
    assert (lower <= upper * (1 + 1e-12)).all()
    assert (found[against] <= upper * (1 + 1e-12)).all()
    free = (2 * lower > 0.05) & (2 * lower < 0.5) & (2 * lower < upper)
    torch.testing.assert_close(found[against][free], 2 * lower[free])
    middle = (2 * lower).clamp(0.05, 0.5) >= upper  # nearly parallel, or smaller than the penalty
    torch.testing.assert_close(found[against][middle], ((lower + upper) / 2)[middle])
    assert free.any()
    assert middle.any()
    capped = (2 * lower > 0.5) & (upper > 0.5)
    assert (found[against][capped] == 0.5).all()
    reachable = ~capped
    norm_moves = (product / norm + found)[against][reachable]  # minus the derivative of ||x|| along the step
    loss_moves = (g.square().sum(1) + found * product / norm)[against][reachable]
    assert (norm_moves > -1e-12).all()
    assert (loss_moves > -1e-12).all()


def test_the_bounds_meet_where_the_update_is_parallel() -> None:
    x = random_pairs()[0]
    found = penalties(x, -0.3 * x, 1e-9)
    torch.testing.assert_close(found, 0.3 * x.norm(dim=1).clamp(max=1e-8 / 0.3))  # ten penalties at most
    torch.testing.assert_close(penalties(x, -0.3 * x, 10.0), 0.3 * x.norm(dim=1))  # lower = upper


def test_one_step_on_plane_vectors() -> None:
    """x' = x - lr g - lr penalty x / ||x||; zero where x' . x < epsilon ||x||^2."""
    model, gradient = plane(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [8.0, 0.0], [1.0, 0.0]]).double()
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]).double()
    spaces = HalfSpaces(ZeroGroups(model, torch.rand(1, 2, 3, 3).double()), 4, 0.0, 0.5, 0.9)
    spaces.penalised = torch.tensor([True, True, True, False])
    weight = model[0].weight
    later = Step(1, 1, 0.1, 1, 100)
    with torch.no_grad():
        weight.copy_(x.view(4, 2, 1, 1))
        spaces.before_step(model, later)
        weight.sub_(0.1 * gradient.view(4, 2, 1, 1))
        spaces.after_step(model, later)
    expected = torch.stack(
        [
            torch.zeros(2).double(),  # 1 - 0.1 - 0.05 = 0.85 < 0.9
            torch.tensor([3.0, 3.9]).double() - 0.05 * torch.tensor([0.6, 0.8]).double(),
            torch.tensor([-0.8, 2 - 0.05]).double(),  # 3.9 >= 0.9 * 4
            torch.tensor([0.9, 0.0]).double(),  # not penalised
        ]
    )
    torch.testing.assert_close(weight.detach()[:, :, 0, 0], expected)
    assert spaces.zero.tolist() == [True, False, False, False]
    with torch.no_grad():
        weight.add_(1.0)
        spaces.before_step(model, later)
        spaces.after_step(model, later)
    assert not weight[0].any()
    assert weight[3].any()


def test_scores_by_hand_and_high_for_small_groups() -> None:
    x, g = ([t[:6] for t in pair] for pair in ([random_pairs()[0]], [random_pairs()[1]]))
    cosines = torch.stack([(a @ b) / a.norm() / b.norm() for a, b in zip(x[0], g[0], strict=True)])
    small = torch.stack([1 / (a.norm() / 5 + 1e-6) for a in x[0]])
    expected = (cosines / cosines.norm() + small / small.norm()) / 2
    torch.testing.assert_close(redundancy(x, g), expected)
    assert redundancy([x[0] * torch.tensor([1, 1, 0.01, 1, 1, 1])[:, None]]).argmax() == 2


@pytest.mark.parametrize(("target", "expected"), [(10, 15), (56, 61), (112, 109)])
def test_so_many_groups_are_penalised_and_no_layer_whole(target, expected, resnet8) -> None:
    groups = ZeroGroups(copy.deepcopy(resnet8), None)
    spaces = HalfSpaces(groups, target, 0.0, 1e-3, 0.9)
    scores = torch.arange(112.0)
    spaces.choose(scores)
    assert spaces.penalised.sum() == expected  # floor(112 min(target / 112 + 0.05, 0.999)), less one a layer
    assert not any(bool(part.all()) for part in groups.split(spaces.penalised).values())


def test_without_a_penalty_it_is_plain_training(resnet8, images) -> None:
    recipe = RECIPE.scaled(2)
    models = [copy.deepcopy(resnet8) for _ in range(2)]
    options = {"penalty": 0.0, "epsilon": 0.0, "begin": 0.3}
    session = pruners.start(models[0], "otov2-dhspg", rate=0.4, epochs=2, data=images, **options)
    hooked, _ = session.recipes(recipe)
    fine_tune(models[0], images, recipe, hooks=session.hooks)
    fine_tune(models[1], images, recipe)
    assert same_weights(*models)
    assert hooked.momentum == 0


def test_a_strong_penalty_zeroes_the_target_and_the_cut_changes_nothing(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    options = {"penalty": 2.0, "epsilon": 0.9, "begin": 0.2, "share": 1.0}
    session = pruners.start(model, "otov2-dhspg", rate=0.3, epochs=4, data=images, **options)
    fine_tune(model, images, RECIPE, hooks=session.hooks)
    blocks = [model.get_submodule(f"layer{stage}.0") for stage in (1, 2, 3)]
    zero = [
        b.conv1.weight.flatten(1).norm(dim=1) + b.bn1.weight.abs() + b.bn1.bias.abs() == 0 for b in blocks
    ]
    assert torch.equal(torch.cat(zero), session.hooks.state_dict()["zero"])
    assert torch.cat(zero).sum() > 10
    pruned = session.finish(model)(0.05)
    assert session.notes == {"groups": 112, "zero_groups": int(torch.cat(zero).sum())}
    x = images.pixels(slice(8))
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_shorter_training_pulls_as_far_as_the_published_one() -> None:
    spaces = HalfSpaces(ZeroGroups(plane(), torch.rand(1, 2, 4, 4).double()), 3, 1 / 6, None, 0.95)
    for epochs, per_epoch in ((3, 20), (4, 300), (300, 782)):
        steps = [Step(e, s, 0.1, epochs, per_epoch) for e in range(1, epochs + 1) for s in range(per_epoch)]
        pulling = [step for step in steps if step.number >= spaces.first(step)]
        assert sum(map(spaces.weight, pulling)) == pytest.approx(PENALTY * PUBLISHED_STEPS)
    assert spaces.weight(pulling[0]) == pytest.approx(PENALTY)


@pytest.mark.parametrize("wrong", [{"begin": 1.0}, {"penalty": -1}, {"epsilon": 1.0}])
def test_options_out_of_range_are_refused(wrong, resnet8, images) -> None:
    with pytest.raises(ValueError, match="give begin and epsilon from 0"):
        pruners.start(copy.deepcopy(resnet8), "otov2-dhspg", rate=0.4, epochs=4, data=images, **wrong)
