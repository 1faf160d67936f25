"""RAP-ADMM: the projection by brute force, a quadratic loss by its closed form, and the session around it."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import gkp
from gkp import pruners
from gkp.attacks import Attack
from gkp.nets import cost
from gkp.nets.channels.surgery import default_input
from gkp.pruners.trained.admm import Splitting, projected
from gkp.train import fine_tune
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment="none")


def begin(model, images, *, rate=0.4375, epochs=4, **options) -> pruners.Session:
    return pruners.start(model, "rap-admm", rate=rate, epochs=epochs, data=images, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75])
def test_the_projection_is_the_nearest_of_all_sets_of_filters(rate) -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    kept = 6 - int(rate * 6 + 0.5)
    distances = []
    for subset in itertools.combinations(range(6), kept):
        near = torch.zeros_like(weight)
        near[list(subset)] = weight[list(subset)]
        distances.append((weight - near).square().sum())
    found = projected(weight, rate)
    torch.testing.assert_close((weight - found).square().sum(), min(distances))
    assert (found.flatten(1).norm(dim=1) > 0).sum() == kept
    assert torch.equal(projected(found, rate), found)


def solved(rho: float, updates: int) -> tuple[Splitting, nn.Module, torch.Tensor, list[frozenset[int]]]:
    """The loss 1/2 ||W - A||^2: its minimiser with the penalty in closed form, again after each update."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False)).double()
    target = torch.tensor([1.0, 1.3, 1.6, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    weight = model[0].weight
    weight.data = target.clone()
    state, chosen = Splitting(("0",), 0.5, rho, growth=1.0, updates=updates), []
    state.begin(model)
    for epoch in range(1, updates + 1):
        copies, duals = state.copies["0"], state.duals["0"]
        weight.data = (target + rho * (copies - duals)) / (1 + rho)
        loss = 0.5 * (weight - target).square().sum() + state.penalty(model, epoch)
        (gradient,) = torch.autograd.grad(loss, weight)
        # Zero at the minimiser, whatever the number of updates: U carries no graph of earlier W.
        assert gradient.abs().max() < 1e-6
        state.after_epoch(model, epoch)
        chosen.append(frozenset(state.copies["0"].flatten().nonzero().flatten().tolist()))
    return state, model, target, chosen


@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_a_strong_penalty_ends_in_the_projection(rho) -> None:
    state, model, target, chosen = solved(rho, 60)
    assert set(chosen) == {frozenset({2, 3})}
    torch.testing.assert_close(model[0].weight.data, projected(target, 0.5), atol=1e-6, rtol=0)
    assert state.disputed == [0] * 60


@pytest.mark.parametrize("rho", [0.001, 0.5])
def test_a_weak_one_never_settles_on_a_set(rho) -> None:
    """As in the published code, whose penalty is far below the curvature of the loss."""
    state, _, _, chosen = solved(rho, 60)
    assert len(set(chosen[30:])) > 1
    assert sum(state.disputed) > 0


def test_without_penalty_and_attack_it_is_plain_training(resnet8, images) -> None:
    plain, pulled, moved = (copy.deepcopy(resnet8) for _ in range(3))
    fine_tune(plain, images, RECIPE)
    for model, rho in ((pulled, 0.0), (moved, 1e-3)):
        session = begin(model, images, rho=rho, eps=0.0)
        recipe, after = session.recipes(RECIPE.scaled(4))
        assert recipe.epochs == after.epochs == 2
        fine_tune(model, images, recipe, hooks=session.hooks)
    assert same(plain, pulled)
    assert not same(plain, moved)


def test_the_penalty_pulls_filters_that_go_towards_zero(resnet8, images) -> None:
    ratios = []
    for rho in (0.0, 1e-3):
        model = copy.deepcopy(resnet8)
        session = begin(model, images, rho=rho, iterations=1)
        fine_tune(model, images, session.recipes(RECIPE.scaled(4))[0], hooks=session.hooks)
        session.finish(model)
        norms = model.layer1[0].conv1.weight.detach().flatten(1).norm(dim=1).sort().values
        ratios.append(norms[:7].mean() / norms[7:].mean())
    assert ratios[1] < 0.9 * ratios[0]


def test_training_is_adversarial_before_and_after_the_cut(resnet8, images) -> None:
    session = begin(copy.deepcopy(resnet8), images, eps=4 / 255, step=1 / 255, iterations=3)
    expected = Attack("pgd", eps=4 / 255, step=1 / 255, iterations=3, start="random")
    before, after = session.recipes(RECIPE.scaled(4))
    assert (before.adversarial, after.adversarial) == (expected, expected)
    assert replace(before, adversarial=None) == replace(after, adversarial=None) == RECIPE.scaled(2)


@pytest.mark.parametrize(
    ("epochs", "every", "updates", "rho"), [(400, 20, 9, 1e-3), (300, 15, 9, 1 / 750), (4, 1, 1, 0.1)]
)
def test_updates_and_growth_are_the_published_ones_in_the_time_there_is(
    epochs, every, updates, rho, resnet8, images
) -> None:
    model = copy.deepcopy(resnet8)
    session = begin(model, images, epochs=epochs)
    assert session.hooks.state_dict()["rho"] == pytest.approx(rho)
    seen = []
    for epoch in range(1, epochs // 2 + 1):
        before = session.hooks.state_dict()["rho"]
        session.hooks.after_epoch(model, epoch)
        if session.hooks.state_dict()["rho"] != before:
            seen.append(epoch)
    assert seen == [every * (n + 1) for n in range(updates)]
    assert session.hooks.state_dict()["rho"] == pytest.approx(rho * 1.3**9)


def test_a_killed_run_continues_to_the_same_network(resnet8, images, tmp_path) -> None:
    class Killed(Exception):
        pass

    def train(state_path=None, kill_in=None):
        model = copy.deepcopy(resnet8)
        session = begin(model, images, epochs=6)

        def before_step(model, at):
            if at.epoch == kill_in:
                raise Killed

        session.hooks.before_step = before_step
        recipe, _ = session.recipes(RECIPE.scaled(6))
        fine_tune(model, images, recipe, hooks=session.hooks, state_path=state_path)
        return session.finish(model)(0.4375), session.notes

    whole, notes = train()
    with pytest.raises(Killed):
        train(tmp_path / "state.pt", kill_in=3)
    resumed, again = train(tmp_path / "state.pt")
    assert same(whole, resumed)
    assert notes == again
    assert len(notes["disputed_filters"]) == 3  # two updates and the end


def test_prune_gives_a_smaller_network_of_which_the_lowest_filters_went(resnet8, images) -> None:
    pruned = gkp.prune(resnet8, "rap-admm", rate=0.4375, data=images.take(16), recipe=RECIPE)
    x = default_input(resnet8, None)
    assert cost.count(pruned, x).macs < 0.7 * cost.count(resnet8, x).macs
    model = copy.deepcopy(resnet8)
    session = begin(model, images)
    assert same(session.finish(model)(0.4375), pruners.prepare(resnet8, "l2")(0.4375))


def test_filters_of_a_transposed_convolution_are_its_outputs(images) -> None:
    head = (nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 2), *head, nn.Linear(4, 10)).eval()
    example = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = begin(model, images, example_input=example, rate=0.5)
    copies = session.hooks.state_dict()["copies"]
    assert copies["0"].shape == (6, 3, 2, 2)
    assert (copies["0"].flatten(1).norm(dim=1) == 0).sum() == 3


def test_a_negative_penalty_is_refused(resnet8, images) -> None:
    with pytest.raises(ValueError, match="rho=-1"):
        begin(resnet8, images, rho=-1)
