"""A training that was interrupted or killed ends like one that was not."""

import copy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import QUICK, same_weights, small_net, train, without_seconds

from gkp.train.hooks import Hooks

REPOSITORY = Path(__file__).parents[2]


class Interrupted(Exception):
    pass


def interrupt_in(epoch, where):
    def raise_(_, at):
        if at == epoch or (where == "before_step" and (at.epoch, at.step) == (epoch, 2)):
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
    assert history.chosen["validation"].epoch == whole.chosen["validation"].epoch
    assert same_weights(history.chosen["validation"].weights, whole.chosen["validation"].weights)


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

        def count(model, at):
            state["steps"] += 1
            state["mask"] += at.epoch
            if at.epoch == stop:
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
sys.path.insert(0, "tests/helpers")
import torch
torch.set_num_threads({threads})
from gkp.train.hooks import Hooks
from small_training import train
def kill(model, at):
    if (at.epoch, at.step) == (3, 2):
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
