"""Methods that prune in training, and those that score with images, as runs of a suite."""

import copy
import dataclasses
import shutil
import time
from pathlib import Path

import pytest
import torch

from gkp import data, pruners
from gkp.attacks import Attack
from gkp.nets import models
from gkp.nets.checkpoint import load_file
from gkp.study.execute import one_run as execute
from gkp.study.execute import steps
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import MACS_RATIO, Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites import recipes
from gkp.train import snapshots
from gkp.utils.progress import Progress

RECIPE = dataclasses.replace(recipes.DIGITS_RECIPE, epochs=3)
BASELINE = dataclasses.replace(recipes.DIGITS_RECIPE, epochs=1)
COMMON = Run(
    "digits",
    "resnet8",
    "unpruned",
    baseline=BASELINE,
    macs_ratio=MACS_RATIO,
    recipe=RECIPE,
    validation=10,
    rules=("last", "best-validation"),
    evaluation=(Entry(Attack("none"), 20),),
)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, part, **_: load(name, part).take(60))


def context(root: Path, deadline: float | None = None, device: str = "cpu") -> Context:
    return Context(Store(root), torch.device(device), deadline=deadline)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


def with_baseline(root: Path) -> Path:
    if Store(root).find(COMMON.start()) is None:
        execute.execute(COMMON.start(), "tiny", context(root))
    return root


@pytest.mark.parametrize(
    "method",
    ["slimming", "sfp", "fpgm-training", "hesso", "otov2-dhspg", "group-sl", "dhp", "rap-admm"],
)
def test_a_method_that_prunes_in_training_gets_the_same_epochs_and_macs(method, root) -> None:
    run = dataclasses.replace(COMMON, method=method)
    record = execute.execute(run, "tiny", context(with_baseline(root)))
    assert [row.epoch for row in record.epochs] == [1, 2, 3]
    assert record.cost.macs_ratio == pytest.approx(MACS_RATIO, rel=0.012)
    assert record.pruning.data_images == 0
    assert record.pruning.seconds > 0
    # Only a network that is cut already can be chosen: slimming's last epoch, the masked ones' end.
    assert {kept.epoch for kept in record.kept.values()} <= {2, 3}
    assert not list((root / "work" / "state").iterdir())


def test_a_network_without_blocks_is_kept_and_what_its_masks_became_is_in_the_record(root) -> None:
    record = execute.execute(dataclasses.replace(COMMON, method="gal"), "tiny", context(with_baseline(root)))
    assert record.source["pruning"]["masks"] == 3
    assert record.source["pruning"]["zero_masks"] in range(4)
    assert record.cost.macs_ratio < 0.8  # a block of three is a coarse knob
    model = load_file(root / record.kept["last"].file)
    assert any(isinstance(module, models.Nothing) for module in model.modules())


def test_a_run_stopped_in_either_part_ends_in_the_same_weights(root) -> None:
    run = dataclasses.replace(COMMON, method="sfp", options=(("share", 0.7),))
    whole = execute.execute(run, "tiny", context(with_baseline(root))).kept["last"].sha256
    record = context(root).store.find(run)
    (context(root).store.path("tiny", record.stem)).unlink()
    for _ in range(3):  # out of time after every epoch: two with the masks, one after the cut
        with pytest.raises(OutOfTime):
            execute.execute(run, "tiny", context(root, deadline=time.monotonic()))
    again = execute.execute(run, "tiny", context(root))
    assert again.kept["last"].sha256 == whole


def test_the_record_counts_the_images_that_were_scored(root) -> None:
    counted = {}
    for options in ((), (("images", 7),)):
        run = dataclasses.replace(COMMON, method="hrank", options=options, recipe=BASELINE)
        counted[options] = execute.execute(run, "tiny", context(with_baseline(root))).pruning.data_images
    assert counted == {(): 50, (("images", 7),): 7}


def test_tmi_gkp_scores_with_snapshots_of_the_training_of_its_start(root) -> None:
    run = dataclasses.replace(COMMON, method="tmi-gkp", recipe=BASELINE)
    place = context(with_baseline(root))
    record = execute.execute(run, "tiny", place)
    assert record.pruning.data_images == 0  # the baseline's training is not the method's
    (snapshot,) = steps.earlier_weights(run, place)
    end = place.store.find(run.start()).kept["last"].file
    last = load_file(root / end).state_dict()
    assert all(torch.equal(last[name], weight) for name, weight in snapshot.items())  # of a single epoch


def test_lost_snapshots_of_a_baseline_are_named(root, tmp_path) -> None:
    run = dataclasses.replace(COMMON, method="tmi-gkp")
    shutil.copytree(with_baseline(root), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "work" / "snapshots")
    with pytest.raises(ValueError, match="delete the record baseline-s0-"):
        execute.execute(run, "tiny", context(tmp_path))


def test_a_public_checkpoint_is_fine_tuned_for_its_snapshots_and_that_is_counted(
    root, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_model(with_baseline(root))
    monkeypatch.setattr(execute, "start_model", lambda *_: copy.deepcopy(start))
    run = dataclasses.replace(COMMON, method="tmi-gkp", weights="authors", baseline=None, seed=3)
    seen = []
    monkeypatch.setattr(snapshots, "read", lambda *a, read=snapshots.read: seen.append(read(*a)) or seen[-1])
    record = execute.execute(run, "tiny", context(tmp_path))
    assert (record.pruning.epochs, record.pruning.data_images) == (3, 3 * 50)
    assert [row.epoch for row in record.epochs] == [1, 2, 3]
    control = execute.execute(
        dataclasses.replace(run, method="unpruned", macs_ratio=None), "tiny", context(tmp_path)
    )
    tuned = load_file(tmp_path / control.kept["last"].file).state_dict()
    assert len(seen[0]) == 3
    assert all(torch.equal(tuned[name], weight) for name, weight in seen[0][-1].items())
    assert not list((tmp_path / "work" / "snapshots").iterdir())


def test_without_training_there_are_no_snapshots_of_a_public_checkpoint(tmp_path) -> None:
    run = dataclasses.replace(COMMON, method="tmi-gkp", weights="authors", baseline=None, recipe=None)
    with pytest.raises(ValueError, match="give a recipe"):
        steps.prune_and_train(models.create("resnet8"), run, context(tmp_path), Progress("off"))


def start_model(root: Path) -> torch.nn.Module:
    return execute.start_model(dataclasses.replace(COMMON, method="tmi-gkp"), context(root))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("method", pruners.methods())
def test_every_method_runs_where_the_network_is(method, root) -> None:
    run = dataclasses.replace(COMMON, method=method, recipe=BASELINE, seed=1)
    record = execute.execute(run, "tiny", context(with_baseline(root), device="cuda"))
    assert record.cost.macs_ratio == pytest.approx(MACS_RATIO, rel=0.012)
