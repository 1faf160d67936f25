"""gkp.train: the loop against one in plain PyTorch, what its history says, and what it refuses."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from small_training import QUICK, TRAIN, VALIDATION, random_split, same_weights, small_net, train
from torch import nn

from gkp import data
from gkp.attacks import Attack
from gkp.evaluate import outcome
from gkp.nets.models import CifarResNet
from gkp.train import fine_tune
from gkp.train.augment import draw_epoch, stream_seed
from gkp.train.history import EpochRow, History
from gkp.train.hooks import Hooks
from gkp.train.recipe import Recipe
from gkp.utils.progress import Progress


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_gradients_are_there_wherever_the_call_is_made(without):
    expected, model = small_net(), small_net()
    fine_tune(expected, TRAIN, QUICK)
    with without():
        fine_tune(model, TRAIN, QUICK)
        assert not torch.is_grad_enabled()
    assert same_weights(model, expected)


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
    assert "test" not in history.chosen
    assert [row.epoch for row in history.epochs] == [1, 2, 3, 4]


def test_best_weights_reproduce_the_best_accuracy():
    test = random_split(30, seed=2, part="test")
    model, history = train(test=test)
    for split, best, column in (
        (VALIDATION, history.chosen["validation"], "validation"),
        (test, history.chosen["test"], "test"),
    ):
        assert best.accuracy == max(getattr(row, column) for row in history.epochs)
        model.load_state_dict(best.weights)
        with torch.no_grad():
            accuracy = (model(split.pixels()).argmax(1) == split.labels).float().mean().item()
        assert accuracy == pytest.approx(best.accuracy)
    assert history.chosen["test"].rule == "best on test (the paper's rule)"
    kept = json.loads(json.dumps(history.as_dict()))["chosen"]
    assert kept["test"]["epoch"] == history.chosen["test"].epoch


def test_the_best_weights_under_an_attack_are_kept_and_the_attack_changes_no_training():
    test = random_split(30, seed=2, part="test")
    attack = Attack("fgsm", eps=0.05, labels="predicted")
    model, history = train(test=test, attacks={"fgsm-0.05": attack})
    plain, _ = train()
    assert same_weights(model, plain)
    best = history.chosen["fgsm-0.05"]
    assert best.accuracy == max(row.attacked["fgsm-0.05"] for row in history.epochs)
    model.load_state_dict(best.weights)
    again = outcome(model, test.pixels(), test.labels, attack).accuracy
    assert again == pytest.approx(best.accuracy)
    assert f"fgsm-0.05 {100 * history.epochs[0].attacked['fgsm-0.05']:.2f} %" in history.epochs[0].text(4)


def test_attacks_after_every_epoch_need_test_images():
    with pytest.raises(ValueError, match="give test too"):
        train(attacks={"fgsm": Attack("fgsm", eps=0.1)})


@pytest.mark.parametrize("name", ["test", "validation"])
def test_an_attack_is_not_called_as_a_clean_score(name):
    with pytest.raises(ValueError, match=f"an attack is called '{name}', as a clean score is"):
        train(attacks={name: Attack("fgsm", eps=0.1)}, test=VALIDATION)


def test_the_later_of_equally_good_epochs_is_chosen():
    history, model = History(), nn.Linear(1, 1)
    for epoch, accuracy in enumerate([0.5, 0.7, 0.7, 0.6], start=1):
        nn.init.constant_(model.weight, epoch)
        history.add(EpochRow(epoch, 0.1, 1.0, accuracy, None, 0.0), model)
    assert history.chosen["validation"].epoch == 3
    assert history.chosen["validation"].weights["weight"].item() == 3


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
