"""Fleets that attack their batches, penalise gradients or learn from a teacher, as fine_tune does."""

import copy
from dataclasses import replace

import pytest
import torch
from small_fleets import HELD, IMAGES, STEPS, assert_same, needs_gpu, pruned, resnet
from small_training import same_weights, small_net, without_seconds
from torch.utils._python_dispatch import TorchDispatchMode

import gkp
from gkp.attacks import Attack
from gkp.nets.models import CifarResNet
from gkp.train import fine_tune
from gkp.train.fleet import Member, train_together
from gkp.train.fleet.lane import Lane
from gkp.train.fleet.member import Images

FEW, STEPS = IMAGES.take(40), replace(STEPS, epochs=2, batch_size=16)
EPS = {"eps": 8 / 255}
ONE_STEP = Attack("pgd", step=10 / 255, start="random", **EPS)
ATTACKS = {
    "one step": ONE_STEP,
    "FGSM": Attack("fgsm", loss="float64", labels="predicted", **EPS),
    "several steps": replace(ONE_STEP, step=3 / 255, iterations=3),
    "restarts": replace(ONE_STEP, step=3 / 255, iterations=2, restarts=2, labels="predicted"),
    "from the image": replace(ONE_STEP, start="image", iterations=2, restarts=1),
    "normalised": replace(ONE_STEP, eps=0.1, step=0.12, space="normalized"),
}
OTHERS = {"penalty": {"gradient_penalty": 0.05}, "teacher": {"distillation": 0.7, "temperature": 2.0}}
WAYS = {name: {"adversarial": attack} for name, attack in ATTACKS.items()} | OTHERS


def member_of(way, method="l1", *, start=None, seed=3, path=None, **options):
    """A training of its own, whose teacher is its start."""
    start = start or resnet()
    recipe = replace(STEPS, **{**WAYS[way], **options})
    teacher = start if recipe.distillation else None
    model = pruned(start, method)
    return Member(model, FEW, recipe, HELD, HELD, seed, path, start=copy.deepcopy(start), teacher=teacher)


def alone(member, **options):
    """(network, history) of fine_tune."""
    model, held = copy.deepcopy(member.model), {"validation": HELD, "test": HELD}
    given = {**held, "seed": member.seed, "teacher": member.teacher, **options}
    return model, fine_tune(model, FEW, member.recipe, **given)


@pytest.mark.parametrize("method", ["unpruned", "sr-gkp", "l1"])
@pytest.mark.parametrize("way", ["one step", "several steps", "penalty", "teacher"])
def test_a_fleet_trains_as_fine_tune_does(way, method):
    member = member_of(way, method)
    expected = alone(member)
    (history,) = train_together([member])
    assert_same(expected, (member.model, history))


def test_every_way_is_another_training():
    losses = set()
    for way in ("one step", "several steps", "teacher"):
        (history,) = train_together([member_of(way, epochs=1)])
        losses.add(round(history.epochs[0].train_loss, 6))
    plain = fine_tune(pruned(resnet(), "l1"), FEW, replace(STEPS, epochs=1), seed=3)
    assert len({round(plain.epochs[0].train_loss, 6), *losses}) == 4


@pytest.mark.parametrize("way", ["FGSM", "restarts", "from the image", "normalised"])
def test_every_attack(way):
    member = member_of(way, "sr-gkp", schedule="cosine")
    expected = alone(member)
    assert_same(expected, (member.model, train_together([member])[0]))


@pytest.mark.parametrize("way", ["one step", "penalty", "teacher"])
def test_bfloat16_differs_by_rounding_alone(way):
    start = resnet().float()
    model = gkp.prune(start, "sr-gkp", example_input=FEW.pixels(slice(1)))
    member = replace(member_of(way, start=start, epochs=1, lr=1e-3, precision="bfloat16"), model=model)
    _, expected = alone(member)
    (history,) = train_together([member])
    assert history.epochs[0].train_loss == pytest.approx(expected.epochs[0].train_loss, abs=3e-2)


def crew(tmp_path=None):
    """Members that share images or starts, or neither, because of their seeds and batches."""
    kinds = (("one step", "sr-gkp", 3, {}), ("several steps", "l1", 3, {}), ("teacher", "l1", 3, {}))
    kinds += (("one step", "unpruned", 3, {"batch_size": 20}), ("penalty", "l1", 4, {"epochs": 3}))
    paths = (tmp_path / f"{i}.pt" if tmp_path else None for i in range(len(kinds)))
    return [
        member_of(way, method, seed=seed, path=path, **options)
        for (way, method, seed, options), path in zip(kinds, paths, strict=True)
    ]


def test_members_do_not_disturb_one_another_and_share_what_is_alike(monkeypatch):
    made = []
    begin = Images.__init__
    monkeypatch.setattr(Images, "__init__", lambda self, *given: made.append(given) or begin(self, *given))
    members = crew()
    expected = [alone(member) for member in members]
    results = train_together(members, side_by_side=5)
    for one, member, result in zip(expected, members, results, strict=True):
        assert_same(one, (member.model, result))
    assert len(made) == 4  # the first two see the same images from the same starts


def test_fine_tune_continues_a_fleet_and_a_fleet_fine_tune(tmp_path):
    expected = [alone(member) for member in crew()]
    for name in ("fleet", "alone"):
        (tmp_path / name).mkdir()
    train_together(crew(tmp_path / "fleet"), side_by_side=5, after_epoch=lambda: True)
    for one, member in zip(expected, crew(tmp_path / "fleet"), strict=True):
        assert member.epochs_saved() == 1
        assert_same(one, alone(member, state_path=member.state_path))
    for member in crew(tmp_path / "alone"):
        alone(member, state_path=member.state_path, after_epoch=lambda row: True)
    members = crew(tmp_path / "alone")
    assert [member.epochs_saved() for member in members] == [1] * len(members)
    for one, member, result in zip(expected, members, train_together(members), strict=True):
        assert_same(one, (member.model, result))


def test_a_teacher_that_is_the_network_itself_stays_what_it_was():
    member = member_of("teacher", "unpruned")
    expected = alone(member)
    member.teacher = member.model
    (history,) = train_together([member])
    assert_same(expected, (member.model, history))


def test_what_a_recipe_and_a_teacher_lack_is_said_before_the_first_step():
    member = member_of("teacher")
    other = CifarResNet(8, num_classes=7).double()
    for change, reason in (
        ({"teacher": None}, "needs a network to learn from"),
        ({"recipe": STEPS}, "nothing is learned from the teacher"),
        ({"teacher": other}, "the teacher has 7 outputs and the network 10"),
    ):
        with pytest.raises(ValueError, match=reason):
            train_together([replace(member, **change)])


def test_an_attack_on_a_network_that_gives_no_numbers_ends_its_member_alone():
    members = [member_of("one step", lr=1e30), member_of("one step")]
    expected = alone(members[1])
    results = train_together(members, side_by_side=2)
    assert "stopped being a finite number" in str(results[0])
    assert_same(expected, (members[1].model, results[1]))


# ---- what a graph must not hold ----------------------------------------------------------------------

WAITING = ("local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "rand", "uniform", "normal")


class Seen(TorchDispatchMode):
    """The operations of a step, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_same_operations_every_time_and_waits_for_none(way):
    member = member_of(way, "sr-gkp")
    member.model.eval()
    lane = Lane(member, member.held, torch.device("cpu"))
    lane.images = Images(FEW, member.recipe, member.seed, lane.batches)
    lane.record()
    lane.begin()
    seen = []
    for _ in range(2):
        with Seen() as operations:
            lane.launch["train 16"]()
        seen.append(operations.names)
    assert seen[0] == seen[1]
    assert not [name for name in seen[0] if name.strip("_").startswith(WAITING)]
    assert lane.model.training


def test_what_waits_would_be_seen():
    x = torch.rand(2, 3, 8, 8)
    with Seen() as operations:
        ONE_STEP.perturb(small_net(), x, torch.tensor([1, 2]))
    assert {"_local_scalar_dense", "rand"} <= set(operations.names)


# ---- on a GPU ----------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["one step", "restarts", "FGSM", "penalty", "teacher"])
def test_graphs_side_by_side_train_as_fine_tune_does(way, precision):
    start = resnet().float()
    example, options = FEW.pixels(slice(1)), {"lr": 1e-3, "precision": precision}

    def fresh():
        members = [member_of(way, "unpruned", start=copy.deepcopy(start), **options) for _ in range(3)]
        for member, method in zip(members[1:], ("sr-gkp", "l1"), strict=True):
            member.model = gkp.prune(start, method, example_input=example)
        return members

    members, again = fresh(), fresh()
    results = train_together(members, device="cuda", side_by_side=3)
    twice = train_together(again, device="cuda", side_by_side=3)
    for member, result, second, other, same in zip(members, results, twice, again, fresh(), strict=True):
        _, history = alone(same, device="cuda")
        # The sign of a gradient near zero is a matter of rounding, and moves a pixel by two steps.
        tolerance = 5e-3 if precision == "float32" else 5e-2
        for row, theirs in zip(history.epochs, result.epochs, strict=True):
            assert theirs.train_loss == pytest.approx(row.train_loss, abs=tolerance)
        assert without_seconds(result) == without_seconds(second)
        assert same_weights(member.model, other.model)
