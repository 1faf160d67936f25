"""gkp.train.fleet: the same training as fine_tune's, whoever continues whose state."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from small_fleets import HELD, IMAGES, STEPS, assert_same, needs_gpu, pruned, resnet
from small_training import QUICK, TRAIN, same_weights, small_net, without_seconds
from torch import nn

import gkp
from gkp.attacks import Attack
from gkp.nets.grouped_base import GroupedKernels
from gkp.nets.models import CifarResNet
from gkp.train import Hooks, StateError, fine_tune
from gkp.train.fleet import Member, train_together
from gkp.train.fleet.wide import widened


def both(model, recipe, *, start=None, hooks=Hooks):
    """(network, history) of fine_tune and of a fleet of one."""
    alone, together = copy.deepcopy(model), copy.deepcopy(model)
    given = {"validation": HELD, "test": HELD, "seed": 3}
    first = fine_tune(alone, IMAGES, recipe, hooks=hooks(), **given)
    (second,) = train_together([Member(together, IMAGES, recipe, hooks=hooks(), start=start, **given)])
    return (alone, first), (together, second)


@pytest.mark.parametrize("method", ["unpruned", "sr-gkp", "l1", "l1-b", "random", "lrf"])
def test_a_fleet_trains_as_fine_tune_does(method):
    start = resnet()
    assert_same(*both(pruned(start, method), STEPS, start=start))


@pytest.mark.parametrize(
    "recipe",
    [
        replace(STEPS, nesterov=True, schedule="onecycle"),
        replace(STEPS, momentum=0.0, weight_decay=0.0, augment="none"),
        replace(STEPS, batch_size=200),  # one step an epoch
        replace(STEPS, batch_size=50, schedule="cosine", augment="crop"),  # no smaller last batch
        replace(STEPS, epochs=0),
    ],
)
def test_every_recipe(recipe):
    start = resnet()
    assert_same(*both(pruned(start, "l1"), recipe, start=start))


def test_bfloat16_and_float32_differ_by_rounding_alone():
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2)):
        start = resnet().float()
        recipe = replace(STEPS, epochs=1, lr=1e-3, precision=precision)
        model = gkp.prune(start, "sr-gkp", example_input=IMAGES.pixels(slice(1)))
        (_, first), (_, second) = both(model, recipe, start=start)
        assert second.epochs[0].train_loss == pytest.approx(first.epochs[0].train_loss, abs=tolerance)


@pytest.mark.parametrize("method", ["l1", "sr-gkp", "l1-b"])
def test_pruned_networks_have_the_shape_of_their_start(method):
    start = resnet()
    model, example = pruned(start, method), HELD.pixels(slice(8))
    wide = widened(model, start, example)
    assert [p.shape for p in wide.model.parameters()] == [p.shape for p in start.parameters()]
    assert not any(isinstance(module, GroupedKernels) for module in wide.model.modules())
    kept = sum(int(m.sum()) for m in wide.mask().values())
    masked = {name for name, places in wide.places.items() if places is not None}
    whole = sum(p.numel() for name, p in model.named_parameters() if name in masked)
    assert 0 < kept == whole
    assert same_weights(wide.narrowed(wide.widen(model.state_dict())), wide.narrowed(wide.model.state_dict()))


def test_what_does_not_fit_into_its_start_is_trained_as_it_is():
    start = resnet()
    other = CifarResNet(14).double()
    for model in (pruned(start, "lrf"), other):
        assert widened(model, start, HELD.pixels(slice(8))).model is model


def test_a_network_that_only_seems_to_fit_is_trained_as_it_is():
    class Halves(nn.Module):
        """Its second layer reads what the first gives from the end: kept channels must not come first."""

        def __init__(self, channels):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 4, 3)

        def forward(self, x):
            return self.b(self.a(x).flip(1)).mean((2, 3))

    torch.manual_seed(0)
    small, large = Halves(3), Halves(5)
    assert widened(small, large, HELD.pixels(slice(4))).model is small


# ---- hooks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["sfp", "fpgm-training", "slimming", "hesso", "otov2-dhspg", "group-sl", "dhp"]
)
def test_methods_that_prune_in_training(method):
    def hooks_for(model):
        return gkp.pruners.start(
            model, method, rate=0.4, epochs=4, data=IMAGES, example_input=IMAGES.pixels(slice(1)).double()
        ).hooks

    models = [resnet(), resnet()]
    given = {"validation": HELD, "test": HELD}
    first = fine_tune(models[0], IMAGES, STEPS, seed=3, hooks=hooks_for(models[0]), **given)
    member = Member(models[1], IMAGES, STEPS, seed=3, hooks=hooks_for(models[1]), **given)
    (second,) = train_together([member])
    assert_same((models[0], first), (models[1], second))


def test_after_step_sees_and_changes_the_weights():
    seen = []

    def clamp(model, at):
        seen.append(at)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.05, 0.05)

    start = resnet()
    recipe = replace(STEPS, epochs=2, schedule="cosine")
    assert_same(*both(start, recipe, hooks=lambda: Hooks(after_step=clamp)))
    assert seen[:8] == seen[8:]  # fine_tune's, then the fleet's
    assert [at.number for at in seen[:8]] == list(range(8))


# ---- several ---------------------------------------------------------------------------------------


def several(tmp_path=None, epochs=4):
    """Four members that differ in method, seed and recipe."""
    start = resnet()
    kinds = (("unpruned", 0, STEPS), ("sr-gkp", 1, STEPS), ("l1", 0, replace(STEPS, batch_size=50)))
    kinds += (("random", 2, replace(STEPS, lr=0.01)),)
    members = []
    for i, (method, seed, recipe) in enumerate(kinds):
        path = tmp_path / f"{i}.pt" if tmp_path else None
        recipe = replace(recipe, epochs=epochs - i % 2)
        members.append(Member(pruned(start, method), IMAGES, recipe, HELD, HELD, seed, path, start=start))
    return members


def alone(members):
    for member in members:
        model = copy.deepcopy(member.model)
        yield model, fine_tune(model, IMAGES, member.recipe, validation=HELD, test=HELD, seed=member.seed)


@pytest.mark.parametrize("side_by_side", [1, 3, 8])
def test_members_do_not_disturb_one_another(side_by_side):
    members = several(epochs=2)
    expected = list(alone(members))
    results = train_together(members, side_by_side=side_by_side)
    for one, member, result in zip(expected, members, results, strict=True):
        assert_same(one, (member.model, result))


def test_members_of_one_seed_may_be_in_different_epochs():
    members = [replace(member, seed=0) for member in several(epochs=3)]
    expected = list(alone(members))
    results = train_together(
        members, side_by_side=2
    )  # of three and two epochs: the third joins in the middle
    for one, member, result in zip(expected, members, results, strict=True):
        assert_same(one, (member.model, result))


def test_a_fleet_that_is_stopped_anywhere_continues(tmp_path):
    expected = list(alone(several()))
    stops = random.Random(0)
    for _ in range(50):
        members = several(tmp_path)
        countdown = stops.randint(1, 3)

        def stop():
            nonlocal countdown
            countdown -= 1
            return countdown <= 0

        results = train_together(members, side_by_side=2, save_epochs=stops.randint(1, 3), after_epoch=stop)
        if all(results):
            break
    else:
        raise AssertionError("the fleet never ended")
    for one, member, result in zip(expected, members, results, strict=True):
        assert_same(one, (member.model, result))


def test_a_killed_fleet_loses_at_most_the_epochs_since_its_last_state(tmp_path):
    class Killed(Exception):
        pass

    done = 0

    def kill():
        nonlocal done
        done += 1
        if done == 3:
            raise Killed
        return False

    expected = list(alone(several()))
    with pytest.raises(Killed):
        train_together(several(tmp_path), side_by_side=4, save_epochs=2, after_epoch=kill)
    members = several(tmp_path)
    assert [member.epochs_saved() for member in members] == [2, 3, 2, 3]  # two have three epochs in all
    for one, member, result in zip(expected, members, train_together(members), strict=True):
        assert_same(one, (member.model, result))


def test_fine_tune_continues_a_fleet_and_a_fleet_fine_tune(tmp_path):
    expected = list(alone(several()))
    for i, one in enumerate(expected):
        for order in ("fleet first", "fine_tune first"):
            path = tmp_path / f"{i} {order}.pt"

            def tune(last, member, path=path):
                return fine_tune(
                    member.model,
                    IMAGES,
                    member.recipe,
                    validation=HELD,
                    test=HELD,
                    seed=member.seed,
                    state_path=path,
                    after_epoch=None if last else lambda row: row.epoch == 2,
                )

            def sail(last, member, path=path):
                member = replace(member, state_path=path)
                epochs = iter(range(1, 9))
                stop = (lambda: False) if last else (lambda: next(epochs) == 2)
                return train_together([member], after_epoch=stop)[0]

            parts = (sail, tune) if order == "fleet first" else (tune, sail)
            parts[0](False, several()[i])
            member = several()[i]
            assert_same(one, (member.model, parts[1](True, member)))


def test_a_loss_that_is_no_number_ends_its_member_alone():
    members = several(epochs=2)
    members[1].recipe = replace(members[1].recipe, lr=1e30)
    expected = next(alone([members[0]]))
    results = train_together(members, side_by_side=4)
    assert isinstance(results[1], RuntimeError)
    assert "lower Recipe.lr" in str(results[1])
    assert_same(expected, (members[0].model, results[0]))


# ---- what is refused -------------------------------------------------------------------------------


class Normed(nn.Module):
    """A convolution, a norm that runs `times`, and a line; with functional dropout where asked for."""

    def __init__(self, norm, times=1, p=0.0):
        super().__init__()
        self.conv, self.norm, self.line, self.times, self.p = (
            nn.Conv2d(3, 8, 3),
            norm,
            nn.Linear(8, 10),
            times,
            p,
        )

    def forward(self, x):
        x = self.conv(x)
        for _ in range(self.times):
            x = self.norm(x)
        return self.line(nn.functional.dropout(x.relu(), self.p, self.training).mean((2, 3)))


def tied_net():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(1), nn.LazyLinear(10)
    )
    net(torch.zeros(1, 3, 8, 8))
    net[2].weight = net[1].weight
    return net


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": tied_net()}, "shared"),
        ({"model": Normed(nn.InstanceNorm2d(8, track_running_stats=True))}, "changes norm.running_mean"),
        ({"model": Normed(nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)))}, "changes norm.weight_u"),
        ({"model": Normed(nn.BatchNorm2d(8), times=2)}, "norm runs more than once"),
        ({"model": Normed(nn.BatchNorm2d(8), p=0.5)}, "draws random numbers"),
        ({"recipe": replace(QUICK, adversarial=Attack("highpass", theta=0.1))}, "neither FGSM nor PGD"),
        ({"hooks": Hooks(penalty=lambda model, epoch: None)}, "adds to the loss"),
        ({"model": small_net(0.5)}, "dropout"),
        ({"model": small_net().requires_grad_(False)}, "frozen"),
        ({"attacks": {"a": Attack("fgsm", eps=0.01)}}, "chosen by attacks"),
    ],
)
def test_what_a_fleet_refuses(change, reason):
    member = replace(Member(small_net(), TRAIN, QUICK, title="mine"), **change)
    with pytest.raises(ValueError, match=f"mine cannot be trained in a fleet: .*{reason}.*fine_tune"):
        train_together([member])


def test_numbers_and_states_that_do_not_fit(tmp_path):
    member = Member(small_net(), TRAIN, QUICK, state_path=tmp_path / "a.pt")
    for option in ("side_by_side", "save_epochs"):
        with pytest.raises(ValueError, match="give 1 or more"):
            train_together([member], **{option: 0})
    (history,) = train_together([member])
    (again,) = train_together([replace(member, model=small_net())])  # done already: nothing is said anew
    assert again == replace(history, chosen=again.chosen)
    with pytest.raises(StateError, match="different seed"):
        train_together([replace(member, model=small_net(), seed=1)])


# ---- on a GPU --------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_side_by_side_train_as_fine_tune_does(precision):
    start = resnet().float()
    recipe = replace(STEPS, epochs=2, lr=1e-3, precision=precision)
    example = IMAGES.pixels(slice(1))
    models = [start, *(gkp.prune(start, m, example_input=example) for m in ("sr-gkp", "l1", "lrf"))]
    members = [Member(copy.deepcopy(m), IMAGES, recipe, HELD, HELD, start=start) for m in models]
    results = train_together(members, device="cuda", side_by_side=4)
    again = [replace(member, model=copy.deepcopy(m)) for member, m in zip(members, models, strict=True)]
    twice = train_together(again, device="cuda")  # measures how many
    for model, member, result, second, other in zip(models, members, results, twice, again, strict=True):
        history = fine_tune(
            copy.deepcopy(model), IMAGES, recipe, validation=HELD, test=HELD, seed=member.seed, device="cuda"
        )
        tolerance = 1e-4 if precision == "float32" else 3e-2
        for row, theirs in zip(history.epochs, result.epochs, strict=True):
            assert theirs.train_loss == pytest.approx(row.train_loss, abs=tolerance)
        assert without_seconds(result) == without_seconds(second)
        assert same_weights(member.model, other.model)


@needs_gpu
def test_hooks_and_resuming_on_a_gpu(tmp_path):
    def member(path=None):
        model = resnet().float()
        session = gkp.pruners.start(
            model, "fpgm-training", rate=0.4, epochs=5, data=IMAGES, example_input=IMAGES.pixels(slice(1))
        )
        return Member(model, IMAGES, replace(STEPS, epochs=4), HELD, HELD, 0, path, hooks=session.hooks)

    whole = member()
    train_together([whole], device="cuda")
    epochs = iter(range(1, 9))
    train_together([member(tmp_path / "a.pt")], device="cuda", after_epoch=lambda: next(epochs) == 2)
    rest = member(tmp_path / "a.pt")
    (history,) = train_together([rest], device="cuda")
    assert len(history.epochs) == 4
    assert same_weights(whole.model, rest.model)


def test_a_trial_leaves_network_and_random_numbers_alone():
    member = Member(Normed(nn.BatchNorm2d(8)), TRAIN, QUICK)
    before, state = copy.deepcopy(member.model.state_dict()), torch.get_rng_state()
    member.model.train()
    assert member.why_alone() == ""
    assert member.model.training
    assert all(torch.equal(value, before[name]) for name, value in member.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_one_network_is_trained_once():
    member = Member(small_net(), TRAIN, QUICK)
    with pytest.raises(ValueError, match=r"train the same network: give each a copy"):
        train_together([member, replace(member, seed=1)])


def test_a_state_may_be_named_by_text(tmp_path):
    member = Member(small_net(), TRAIN, QUICK, state_path=str(tmp_path / "a.pt"))
    train_together([member])
    assert member.epochs_saved(replace(member, model=small_net()).identity()) == QUICK.epochs
