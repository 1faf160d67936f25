"""gkp.train.state: state files that must not be used, and places that cannot be written."""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import QUICK, TRAIN, VALIDATION, random_split, same_weights, small_net, train

from gkp.attacks import Attack
from gkp.nets.models import CifarResNet
from gkp.train import fine_tune
from gkp.train import state as run_state
from gkp.train.state import StateError


@pytest.fixture(scope="module")
def saved_state(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state.pt"
    train(replace(QUICK, epochs=1), state_path=path)
    return path.read_bytes()


def frozen_first():
    model = small_net()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("recipe", {"recipe": replace(QUICK, epochs=1, lr=0.01)}),
        ("seed", {"seed": 1}),
        ("training data", {"data": random_split(seed=5)}),
        ("test data", {"test": VALIDATION}),
        ("attacks, test data", {"test": VALIDATION, "attacks": {"fgsm": Attack("fgsm", eps=0.1)}}),
        ("initial weights", {"model": CifarResNet(8)}),
        ("frozen weights", {"model": frozen_first()}),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path, saved_state, what, options):
    path = tmp_path / "state.pt"
    path.write_bytes(saved_state)
    with pytest.raises(StateError, match=rf"belongs to another run \(different {what}\): choose another"):
        train(**{"recipe": replace(QUICK, epochs=1), "state_path": path, **options})
    assert path.read_bytes() == saved_state


def test_the_state_of_a_run_with_frozen_weights_is_refused_without_them(tmp_path):
    quick = {"recipe": replace(QUICK, epochs=1), "state_path": tmp_path / "state.pt"}
    train(**quick, model=frozen_first())
    with pytest.raises(StateError, match="different frozen weights"):
        train(**quick)


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


def test_a_state_saved_before_there_were_attacks_is_one_without(tmp_path):
    run_state.save_state(tmp_path / "s.pt", {"seed": "0"}, {"epochs": []})
    assert run_state.load_state(tmp_path / "s.pt", {"seed": "0", "attacks": "{}"}) == {"epochs": []}
    with pytest.raises(StateError, match="different attacks"):
        run_state.load_state(tmp_path / "s.pt", {"seed": "0", "attacks": '{"fgsm": {}}'})


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
