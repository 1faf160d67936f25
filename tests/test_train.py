"""gkp.train with augment, recipe, history and run_state: against PyTorch, plain loops, and kills."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gkp import data, run_state
from gkp.attacks import Attack
from gkp.augment import crop_and_flip, draw_epoch, stream_seed
from gkp.data import Split, fingerprint
from gkp.history import EpochRow, History
from gkp.models import CifarResNet, Normalize
from gkp.progress import Progress
from gkp.recipe import ONECYCLE_END, PAPER, SHORT, Recipe, learning_rate
from gkp.train import Hooks, StateError, fine_tune

REPOSITORY = Path(__file__).parent.parent
QUICK = Recipe(epochs=4, batch_size=16, lr=0.05, schedule="onecycle")


def small_net(dropout=0.0):
    """A network that a single core trains in milliseconds, with batch norm and, on request, dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )
    return nn.Sequential(Normalize((0.5,) * 3, (0.25,) * 3), net)


def random_split(n=70, size=8, seed=0, part="train"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return Split(images, labels, "random", part, tuple("0123456789"), fingerprint(images, labels), n)


TRAIN, VALIDATION = random_split(), random_split(30, seed=1, part="validation")


def train(recipe=QUICK, *, model=None, **options):
    model = model or small_net()
    return model, fine_tune(model, options.pop("data", TRAIN), recipe, validation=VALIDATION, **options)


def same_weights(a, b):
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_seconds(history):
    return [replace(row, seconds=0.0) for row in history.epochs]


# ---- augmentation


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    augment=st.sampled_from(["none", "crop", "crop+flip"]),
    seed=st.integers(0, 99),
)
def test_augmentation_equals_torchvision_image_by_image(n, height, width, padding, augment, seed):
    images = random_split(n, 9, seed).images[:, :, :height, :width]
    draws = draw_epoch(n, augment, padding, torch.Generator().manual_seed(seed))
    expected = []
    for image, top, left, flip in zip(
        images, draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True
    ):
        cropped = TF.crop(TF.pad(image, [padding]), top, left, height, width)
        expected.append(TF.hflip(cropped) if flip else cropped)
    result = crop_and_flip(images, draws.top, draws.left, draws.flip, padding)
    assert torch.equal(result, torch.stack(expected))
    if augment == "none":
        assert torch.equal(result, images)


def test_draws_are_uniform_and_each_image_comes_once():
    draws = draw_epoch(8100, "crop+flip", 4, torch.Generator().manual_seed(0))
    assert draws.order.sort().values.tolist() == list(range(8100))
    counts = torch.bincount(draws.top * 9 + draws.left, minlength=81)
    assert len(counts) == 81
    # 100 expected per corner; 60 and 140 are four standard deviations away.
    assert counts.min() > 60
    assert counts.max() < 140
    assert 0.47 < draws.flip.float().mean() < 0.53
    crop = draw_epoch(8100, "crop", 4, torch.Generator().manual_seed(0))
    assert not crop.flip.any()
    assert torch.equal(crop.top, draws.top)


def test_streams_of_seeds_and_epochs_are_all_different():
    seeds = {stream_seed("augment", seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert stream_seed("augment", 1, 2) == stream_seed("augment", 1, 2) != stream_seed("epoch", 1, 2)


# ---- recipes and schedules


def test_paper_recipe_has_the_papers_values():
    assert (PAPER.epochs, PAPER.lr, PAPER.schedule, PAPER.step_epochs, PAPER.gamma) == (
        300,
        0.01,
        "step",
        100,
        0.1,
    )
    assert (PAPER.momentum, PAPER.nesterov, PAPER.weight_decay, PAPER.batch_size) == (0.9, False, 5e-4, 64)
    assert (PAPER.augment, PAPER.padding, PAPER.precision, PAPER.adversarial) == (
        "crop+flip",
        4,
        "float32",
        None,
    )


def test_scaled_keeps_the_shape_of_the_schedule():
    assert (PAPER.scaled(30).epochs, PAPER.scaled(30).step_epochs) == (30, 10)
    assert PAPER.scaled(1).step_epochs == 1
    assert PAPER.scaled(300) == PAPER
    assert Recipe(epochs=0).scaled(5).epochs == 5


SCHEDULERS = {
    "step": lambda opt, recipe, steps: torch.optim.lr_scheduler.StepLR(
        opt, recipe.step_epochs * steps, recipe.gamma
    ),
    "onecycle": lambda opt, recipe, steps: torch.optim.lr_scheduler.OneCycleLR(
        opt, recipe.lr, total_steps=recipe.epochs * steps, pct_start=recipe.warmup, cycle_momentum=False
    ),
    "cosine": lambda opt, recipe, steps: torch.optim.lr_scheduler.CosineAnnealingLR(
        opt, recipe.epochs * steps
    ),
    "constant": lambda opt, recipe, steps: torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0),
}


@pytest.mark.parametrize("schedule", sorted(SCHEDULERS))
@settings(max_examples=15, deadline=None)
@given(
    epochs=st.integers(2, 12),
    steps=st.integers(3, 7),
    lr=st.floats(1e-3, 1.0),
    step_epochs=st.integers(1, 5),
    warmup=st.floats(0.2, 0.8),
)
def test_learning_rate_equals_pytorchs_schedulers(schedule, epochs, steps, lr, step_epochs, warmup):
    recipe = Recipe(epochs=epochs, lr=lr, schedule=schedule, step_epochs=step_epochs, warmup=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler = SCHEDULERS[schedule](optimizer, recipe, steps)
    for step in range(epochs * steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, step, steps) == pytest.approx(expected, rel=1e-6, abs=1e-12 * lr)
        optimizer.step()
        if step + 1 < epochs * steps:
            scheduler.step()


def test_one_cycle_of_a_single_step():
    assert learning_rate(replace(QUICK, epochs=1), 0, 1) == pytest.approx(QUICK.lr / 25 * ONECYCLE_END)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule", "linear", "choose one of step, onecycle, cosine, constant"),
        ("augment", "cutout", "choose one of none, crop, crop"),
        ("precision", "float16", "choose one of float32, tf32, bfloat16"),
        ("epochs", -1, "0 or more"),
        ("epochs", 1.5, "whole number"),
        ("batch_size", 0, "1 or more"),
        ("step_epochs", 0, "1 or more"),
        ("padding", True, "whole number"),
        ("lr", 0.0, "positive"),
        ("lr", math.nan, "positive"),
        ("lr", math.inf, "positive"),
        ("gamma", 1.5, "up to 1"),
        ("warmup", 1.0, "between 0 and 1"),
        ("momentum", 1.0, "below 1"),
        ("weight_decay", -1e-4, "0 or more"),
        ("nesterov", True, None),
    ],
)
def test_recipe_refuses_values_out_of_range(name, value, message):
    if message is None:
        assert replace(PAPER, **{name: value}).nesterov
        with pytest.raises(ValueError, match="nesterov=True needs momentum"):
            replace(PAPER, **{name: value}, momentum=0.0)
    else:
        with pytest.raises(ValueError, match=f"^{name}=.*{message}"):
            replace(PAPER, **{name: value})


def test_recipe_is_json_with_its_attack():
    recipe = replace(SHORT, adversarial=Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3))
    restored = json.loads(json.dumps(asdict(recipe)))
    assert Recipe(**{**restored, "adversarial": Attack(**restored["adversarial"])}) == recipe


# ---- the loop


def test_fine_tune_equals_a_plain_loop():
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05, step_epochs=1, gamma=0.5)
    model = small_net()
    plain = copy.deepcopy(model)
    history = fine_tune(model, TRAIN, recipe, seed=7)

    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plain.train()
    for row in history.epochs:
        draws = draw_epoch(
            70, "crop+flip", 4, torch.Generator().manual_seed(stream_seed("augment", 7, row.epoch))
        )
        losses = []
        for batch in torch.arange(70).split(16):
            order, images = draws.order[batch], []
            for place, i in zip(batch, order, strict=True):
                image = TF.crop(TF.pad(TRAIN.images[i], [4]), draws.top[place], draws.left[place], 8, 8)
                images.append(TF.hflip(image) if draws.flip[place] else image)
            loss = F.cross_entropy(plain(torch.stack(images) / 255), TRAIN.labels[order], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses += loss.tolist()
        assert row.lr == pytest.approx(scheduler.get_last_lr()[0])
        assert row.train_loss == pytest.approx(sum(losses) / 70, rel=1e-4)
        scheduler.step()
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_learns_digits():
    digits = data.load("digits", "train")
    rest, validation = data.hold_out(digits, 300)
    model = small_net()
    recipe = Recipe(epochs=6, batch_size=32, lr=0.2, schedule="onecycle", augment="crop", padding=2)
    history = fine_tune(model, rest, recipe, validation=validation)
    assert history.epochs[-1].validation > 0.85
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss / 2


def test_last_weights_stay_in_the_model_and_validation_is_their_accuracy():
    model, history = train()
    assert not model.training
    with torch.no_grad():
        correct = (model(VALIDATION.pixels()).argmax(1) == VALIDATION.labels).float().mean().item()
    assert history.epochs[-1].validation == pytest.approx(correct)
    assert history.epochs[-1].test is None
    assert history.best_test is None
    assert [row.epoch for row in history.epochs] == [1, 2, 3, 4]


def test_best_weights_reproduce_the_best_accuracy():
    test = random_split(30, seed=2, part="test")
    model, history = train(test=test)
    for split, best, column in (
        (VALIDATION, history.best_validation, "validation"),
        (test, history.best_test, "test"),
    ):
        assert best.accuracy == max(getattr(row, column) for row in history.epochs)
        model.load_state_dict(best.weights)
        with torch.no_grad():
            accuracy = (model(split.pixels()).argmax(1) == split.labels).float().mean().item()
        assert accuracy == pytest.approx(best.accuracy)
    assert history.best_test.rule == "best on test (the paper's rule)"
    assert json.loads(json.dumps(history.as_dict()))["chosen"]["test"]["epoch"] == history.best_test.epoch


def test_the_later_of_equally_good_epochs_is_chosen():
    history, model = History(), nn.Linear(1, 1)
    for epoch, accuracy in enumerate([0.5, 0.7, 0.7, 0.6], start=1):
        nn.init.constant_(model.weight, epoch)
        history.add(EpochRow(epoch, 0.1, 1.0, accuracy, None, 0.0), model)
    assert history.best_validation.epoch == 3
    assert history.best_validation.weights["weight"].item() == 3


def test_measuring_does_not_change_training():
    with_validation, _ = train()
    alone = small_net()
    fine_tune(alone, TRAIN, QUICK)
    assert same_weights(with_validation, alone)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_weights_and_other_seed_other_weights(precision):
    recipe = replace(QUICK, epochs=2, precision=precision)
    (first, _), (again, _), (other, _) = (train(recipe, seed=seed) for seed in (3, 3, 4))
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert first[1][0].weight.dtype == torch.float32


def test_global_random_state_stays_untouched():
    model = small_net(dropout=0.5)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fine_tune(model, TRAIN, QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_epochs_change_nothing():
    model, history = train(replace(QUICK, epochs=0))
    assert same_weights(model, small_net())
    assert history.epochs == []


def test_a_cifar_resnet_trains():
    torch.manual_seed(0)
    model, history = train(replace(QUICK, epochs=1, batch_size=35), model=CifarResNet(8))
    assert math.isfinite(history.epochs[0].train_loss)


def test_progress_says_one_line_per_epoch(capsys):
    train(replace(QUICK, epochs=2), progress=Progress("lines"))
    out, err = capsys.readouterr()
    assert [line.split(" left  ")[1].split("  ")[0] for line in out.splitlines()] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert err == ""


# ---- hooks and attacks


def test_before_step_sees_every_step_and_its_gradients_count():
    calls = []

    def freeze(model, epoch, step):
        calls.append((epoch, step))
        for parameter in model.parameters():
            parameter.grad.zero_()

    model, _ = train(replace(QUICK, epochs=2, weight_decay=0.0), hooks=Hooks(before_step=freeze))
    assert calls == [(epoch, step) for epoch in (1, 2) for step in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small_net().parameters(), strict=True))


def test_penalty_is_minimised_and_stays_out_of_the_reported_loss():
    def size(model):
        return sum(p.abs().sum() for p in model.parameters())

    plain, _ = train()
    penalised, history = train(hooks=Hooks(penalty=lambda model, epoch: 0.01 * size(model)))
    assert size(penalised) < 0.9 * size(plain)
    _, constant = train(hooks=Hooks(penalty=lambda model, epoch: torch.tensor(100.0)))
    assert constant.epochs[-1].train_loss < 5
    unpenalised, _ = train(hooks=Hooks(penalty=lambda model, epoch: None))
    assert same_weights(unpenalised, plain)


def test_a_loss_of_ones_own_replaces_the_cross_entropy_but_not_in_the_history():
    plain, history = train()
    seen = []

    def same(model, x, y, logits, epoch):
        seen.append((x.min() >= 0 and x.max() <= 1, len(x) == len(y) == len(logits), epoch))
        return torch.nn.functional.cross_entropy(logits, y)

    equal, _ = train(hooks=Hooks(loss=same))
    assert same_weights(plain, equal)
    assert all(pixels and sizes for pixels, sizes, _ in seen)
    assert {epoch for *_, epoch in seen} == set(range(1, QUICK.epochs + 1))
    smoothed = Hooks(loss=lambda m, x, y, logits, e: torch.nn.functional.cross_entropy(1e-3 * logits, y))
    other, reported = train(hooks=smoothed)
    assert not same_weights(plain, other)
    first = [h.epochs[0].train_loss for h in (history, reported)]
    assert first[1] == pytest.approx(
        first[0], rel=0.5
    )  # the cross entropy of the logits, not of 1e-3 of them


def test_after_step_has_the_last_word_on_the_weights():
    steps = []

    def clamp(model, epoch, step):
        steps.append((epoch, step))
        for parameter in model.parameters():
            parameter.data.clamp_(-0.05, 0.05)

    model, history = train(hooks=Hooks(after_step=clamp))
    assert max(p.abs().max() for p in model.parameters()) <= 0.05
    assert len(set(steps)) == len(steps) == len(history.epochs) * math.ceil(70 / QUICK.batch_size)


def test_after_epoch_masks_before_the_evaluation():
    def mask(model, epoch):
        with torch.no_grad():
            model[1][3].weight[: 8 * epoch].zero_()

    model, history = train(hooks=Hooks(after_epoch=mask))
    assert not model[1][3].weight.any()
    with torch.no_grad():
        accuracy = (model(VALIDATION.pixels()).argmax(1) == VALIDATION.labels).float().mean().item()
    assert history.epochs[-1].validation == pytest.approx(accuracy)


def test_hooks_with_half_a_state_are_refused():
    with pytest.raises(ValueError, match="both state_dict and load_state_dict"):
        Hooks(state_dict=dict)


def test_adversarial_training_trains_on_perturbed_images_within_eps():
    seen = []

    def run(adversarial):
        model = small_net()
        model.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach()) if m.training else None)
        seen.clear()
        recipe = replace(QUICK, epochs=1, augment="none", adversarial=adversarial)
        fine_tune(model, TRAIN, recipe)
        return model, torch.cat(seen)

    eps = 8 / 255
    plain, clean = run(None)
    benign, _ = run(Attack("none"))
    hardened, perturbed = run(Attack("pgd", eps=eps, step=eps / 2, iterations=2, restarts=1))
    again, _ = run(Attack("pgd", eps=eps, step=eps / 2, iterations=2, restarts=1))
    distance = (perturbed - clean).abs().amax((1, 2, 3))
    assert distance.max() <= eps + 1e-6
    assert distance.min() > eps / 2
    assert same_weights(plain, benign)
    assert same_weights(hardened, again)
    assert not same_weights(plain, hardened)


# ---- resuming


class Interrupted(Exception):
    pass


def interrupt_in(epoch, where):
    def raise_(_, at, step=2):
        if at == epoch and step == 2:
            raise Interrupted

    return Hooks(**{where: raise_})


@pytest.mark.parametrize("where", ["before_step", "after_epoch"])
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, where, epoch):
    expected, whole = train(model=small_net(0.3))
    path = tmp_path / "new" / "state.pt"
    with pytest.raises(Interrupted):
        train(model=small_net(0.3), state_path=path, hooks=interrupt_in(epoch, where))
    resumed, history = train(model=small_net(0.3), state_path=path)
    assert same_weights(expected, resumed)
    assert without_seconds(history) == without_seconds(whole)
    assert history.best_validation.epoch == whole.best_validation.epoch
    assert same_weights(history.best_validation.weights, whole.best_validation.weights)


def test_resuming_does_only_the_missing_epochs(tmp_path):
    with pytest.raises(Interrupted):
        train(state_path=tmp_path / "s.pt", hooks=interrupt_in(3, "before_step"))
    epochs = []
    train(state_path=tmp_path / "s.pt", hooks=Hooks(after_epoch=lambda m, e: epochs.append(e)))
    assert epochs == [3, 4]
    finished, history = train(
        state_path=tmp_path / "s.pt", hooks=Hooks(after_epoch=lambda m, e: epochs.append(e))
    )
    assert epochs == [3, 4]
    assert len(history.epochs) == 4
    assert same_weights(finished, train()[0])


def test_hooks_get_their_state_back(tmp_path):
    def counting(stop=None):
        state = {"steps": 0, "mask": torch.zeros(3)}

        def count(model, epoch, step):
            state["steps"] += 1
            state["mask"] += epoch
            if epoch == stop:
                raise Interrupted

        return Hooks(before_step=count, state_dict=lambda: state, load_state_dict=state.update), state

    hooks, expected = counting()
    train(hooks=hooks)
    with pytest.raises(Interrupted):
        train(hooks=counting(stop=2)[0], state_path=tmp_path / "s.pt")
    hooks, state = counting()
    train(hooks=hooks, state_path=tmp_path / "s.pt")
    assert state["steps"] == expected["steps"] == 20
    assert torch.equal(state["mask"], expected["mask"])


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import torch
torch.set_num_threads({threads})
from test_train import Hooks, train
def kill(model, epoch, step):
    if (epoch, step) == (3, 2):
        os.kill(os.getpid(), signal.SIGKILL)
train(state_path={path!r}, hooks=Hooks(before_step=kill))
"""


def test_a_killed_process_loses_at_most_an_epoch(tmp_path):
    path = tmp_path / "state.pt"
    script = KILLED.format(threads=torch.get_num_threads(), path=str(path))
    process = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    epochs = []
    resumed, _ = train(state_path=path, hooks=Hooks(after_epoch=lambda m, e: epochs.append(e)))
    assert epochs == [3, 4]
    assert same_weights(resumed, train()[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_gpu_resumes_to_the_same_weights(tmp_path, precision):
    recipe, path = replace(QUICK, precision=precision), tmp_path / "s.pt"
    start = small_net(0.3)
    expected, _ = train(recipe, model=copy.deepcopy(start), device="cuda")
    with pytest.raises(Interrupted):
        train(
            recipe,
            model=copy.deepcopy(start),
            device="cuda",
            state_path=path,
            hooks=interrupt_in(3, "before_step"),
        )
    resumed, _ = train(recipe, model=start, device="cuda", state_path=path)
    assert next(resumed.parameters()).is_cuda
    assert same_weights(expected, resumed)


# ---- state files that must not be used, and places that cannot be written


@pytest.fixture(scope="module")
def saved_state(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state.pt"
    train(replace(QUICK, epochs=1), state_path=path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("recipe", {"recipe": replace(QUICK, epochs=1, lr=0.01)}),
        ("seed", {"seed": 1}),
        ("training data", {"data": random_split(seed=5)}),
        ("test data", {"test": VALIDATION}),
        ("initial weights", {"model": CifarResNet(8)}),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path, saved_state, what, options):
    path = tmp_path / "state.pt"
    path.write_bytes(saved_state)
    with pytest.raises(StateError, match=rf"belongs to another run \(different {what}\): choose another"):
        train(**{"recipe": replace(QUICK, epochs=1), "state_path": path, **options})
    assert path.read_bytes() == saved_state


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_state_is_refused(tmp_path_factory, saved_state, place, flip, cut):
    position = int(place * len(saved_state))
    changed = bytearray(saved_state)
    changed[position] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(saved_state[:position] if cut else changed)
    with pytest.raises(StateError, match=r"damaged\.pt is damaged .*: delete it to start the run again"):
        run_state.load_state(path, {})


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    run_state.save_state(tmp_path / "s.pt", {}, {})
    monkeypatch.setattr(run_state, "FORMAT", 2)
    with pytest.raises(StateError, match="another version"):
        run_state.load_state(tmp_path / "s.pt", {})


def test_a_state_holds_nothing_but_tensors_and_plain_values(tmp_path):
    train(replace(QUICK, epochs=1), state_path=tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True)["content"]
    assert content["epochs"][0]["epoch"] == 1


def test_a_place_that_cannot_be_written_shows_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    model = small_net()
    with pytest.raises(OSError, match=r"cannot save the training state .*choose another state_path"):
        fine_tune(model, TRAIN, QUICK, state_path=tmp_path / "file" / "s.pt")
    assert same_weights(model, small_net())


def test_a_full_disk_keeps_the_last_state(tmp_path, monkeypatch):
    path, replace_file, saves = tmp_path / "s.pt", os.replace, []

    def full_after_two(source, target):
        saves.append(target)
        if len(saves) > 2:
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full_after_two)
    with pytest.raises(OSError, match="No space left on device"):
        train(state_path=path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["s.pt"]
    resumed, history = train(state_path=path)
    assert same_weights(resumed, train()[0])


# ---- input that cannot be trained on


def test_a_loss_that_is_not_finite_names_epoch_and_remedy():
    def spoil(model, epoch):
        return torch.tensor(math.nan) if epoch == 2 else None

    with pytest.raises(RuntimeError, match=r"in epoch 2: lower Recipe\.lr \(now 0\.05\)"):
        train(hooks=Hooks(penalty=spoil))


def test_unusable_data_are_refused():
    empty = replace(TRAIN, images=TRAIN.images[:0], labels=TRAIN.labels[:0])
    for part, message in (("data", "training data are empty"), ("test", "test data are empty")):
        with pytest.raises(ValueError, match=message):
            train(**{part: empty})
    with pytest.raises(ValueError, match="training images are torch.float32: give uint8"):
        train(data=replace(TRAIN, images=TRAIN.pixels()))
    with pytest.raises(ValueError, match="label 10 but the model has 10 outputs"):
        train(test=replace(VALIDATION, labels=VALIDATION.labels.clamp(min=1) * 10 // 9))
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        train(model=small_net().requires_grad_(False))
