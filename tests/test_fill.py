"""Filling a given time: the order, the end in time, and that transport changes no result."""

import copy
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_suite import COMMON, tiny_suite

from gkp import fill, run, suites
from gkp.configuration import Run
from gkp.context import Context, OutOfTime, Pace
from gkp.execute import execute
from gkp.pack import archives_in, pack
from gkp.records import Store
from gkp.run_state import epochs_done
from gkp.suites import Suite
from gkp.unpack import unpack
from gkp.workers import work_together


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often a run was interrupted."""
    record = copy.deepcopy(record)
    for part in (*record["checkpoints"].values(), {"metrics": {"pruning": record["pruning"]}}):
        for metric in part["metrics"].values():
            del metric["seconds"]
    for row in record["history"]["epochs"] if record["history"] else ():
        del row["seconds"]
    return {key: record[key] for key in ("stem", "config", "cost", "pruning", "history", "checkpoints")}


class OneEpoch(Pace):
    """The first epoch of a call seems to fit into the time left, a second one does not."""

    def epoch(self, run: Run) -> float:
        return 0.0 if self.factor == 1.0 else 3600.0

    def measured(self, run: Run, seconds: float) -> None:
        self.factor = seconds


def test_short_calls_on_other_machines_give_the_records_of_one_long_run(
    tmp_path: Path, tiny: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tiny_suite("random", "sfp", "tmi-gkp")
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    monkeypatch.setattr(fill, "Pace", OneEpoch)
    run.run_suite("tiny", root=tmp_path / "whole", device="cpu")
    home, states = tmp_path / "home", 0
    home.mkdir()
    for call in range(20):
        far, packs = tmp_path / f"far{call}", tmp_path / f"packs{call}"
        shutil.copytree(home, far)
        filled = fill.fill(10, packs, ["tiny"], root=far, device="cpu")
        assert not filled.summary.failed
        if archives_in(packs):
            unpack([packs], Store(home))
        states += len(list(home.glob("work/state/*.pt")))
        if not filled.summary.left:
            break
    assert states > 3  # calls ended within a run
    whole, filled_up = Store(tmp_path / "whole"), Store(home)
    assert [without_times(r) for r in filled_up.all()] == [without_times(r) for r in whole.all()]
    assert filled_up.manifest() == whole.manifest() != {}


def test_the_most_valuable_first_and_seed_0_before_seed_1() -> None:
    queue = fill.plan(["cifar10-resnet56", "cifar10-resnet20"])
    assert [suite for suite, _ in queue] == sorted((s for s, _ in queue), reverse=True)  # 56, then 20
    first = [run for suite, run in queue if suite == "cifar10-resnet56"]
    assert first[0].epochs == 0
    seeds = [run.seed for run in first[1:]]
    assert seeds == sorted(seeds)
    names = [run.method for run in first if run.epochs and run.seed == 0]
    known = [method for method in fill.METHODS if method in names]
    assert names[: len(known)] == known
    assert {"sr-gkp", "fpgm-training", "sfp", "unpruned", "random"} <= set(known)
    assert len({run.hash for _, run in fill.plan(["digits", "digits"])}) == len(fill.plan(["digits"]))


def test_all_cifar_suites_and_no_digits_without_a_choice() -> None:
    names = fill.default_suites()
    assert names[:2] == ("cifar10-resnet56", "cifar10-resnet20")
    assert sorted((*names, "digits")) == sorted(suites.SUITES)


@pytest.mark.parametrize(
    ("minutes", "jobs", "names", "message"),
    [(0, 1, ["tiny"], "minutes=0"), (1, 0, ["tiny"], "jobs=0"), (1, 1, ["none"], "unknown suite 'none'")],
)
def test_arguments_that_cannot_be(
    tiny: Suite, tmp_path: Path, minutes: float, jobs: int, names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fill.fill(minutes, tmp_path / "out", names, jobs=jobs, root=tmp_path, device="cpu")


def test_a_folder_with_archives_is_refused(tiny: Suite, tmp_path: Path) -> None:
    (tmp_path / "pack-00.tar").write_bytes(b"not yet unpacked")
    with pytest.raises(ValueError, match="holds archives already"):
        fill.fill(1, tmp_path, ["tiny"], root=tmp_path, device="cpu")


# ---- the end in time -----------------------------------------------------------------------------


def test_no_epoch_is_begun_that_would_end_too_late(tiny: Suite, tmp_path: Path) -> None:
    baseline = tiny.ordered()[0]
    # However fast the machine is, the next epoch is estimated to take days once the first is measured.
    pace = Pace("cpu", margin=1e9)
    context = Context(Store(tmp_path), torch.device("cpu"), deadline=time.monotonic() + 600, pace=pace)
    with pytest.raises(OutOfTime):
        execute(baseline, "tiny", context)
    state = torch.load(context.state_path(baseline), weights_only=True)
    assert len(state["content"]["epochs"]) == 1


def test_attacks_are_kept_one_by_one_where_time_is_short(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(Store(tmp_path), torch.device("cpu"), deadline=time.monotonic() + 600, pace=Pace("cpu"))
    baseline = tiny.ordered()[0]

    def no_more(*arguments: object) -> None:
        raise OutOfTime

    with monkeypatch.context() as patch:
        patch.setattr("gkp.execute.complete", no_more)
        with pytest.raises(OutOfTime):
            execute(baseline, "tiny", context)
    kept = context.store.find(baseline)["checkpoints"]["last"]["metrics"]
    assert list(kept) == ["benign"]
    assert len(execute(baseline, "tiny", context)["checkpoints"]["last"]["metrics"]) == 2


def test_the_pace_follows_what_is_measured() -> None:
    pace = Pace("cpu", margin=1.5)
    guess = pace.epoch(COMMON), pace.attack(COMMON)
    pace.measured(COMMON, 7.0)
    assert pace.epoch(COMMON) == pytest.approx(7.0 * 1.5)
    assert pace.attack(COMMON) / guess[1] == pytest.approx(pace.epoch(COMMON) / guess[0])
    pace.measured(COMMON, 5.0)
    assert pace.epoch(COMMON) == pytest.approx(5.0 * 1.5)


def test_only_what_can_end_or_be_continued_is_affordable() -> None:
    pace = Pace("cpu", margin=1.0)
    untrained = dataclasses.replace(COMMON, recipe=None)
    assert run.fits(COMMON, pace.epoch(COMMON) + 0.01, pace)
    assert not run.fits(COMMON, pace.epoch(COMMON) - 0.01, pace)
    assert run.fits(untrained, pace.attack(untrained) + 0.01, pace)
    assert not run.fits(untrained, pace.attack(untrained) - 0.01, pace)


def test_one_public_network_that_is_missing_does_not_stop_the_others(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GKP_CHECKPOINTS", str(tmp_path))
    absent = dataclasses.replace(COMMON, weights=str(tmp_path / "gone.safetensors"), macs_ratio=None)
    monkeypatch.setitem(suites.SUITES, "absent", lambda: Suite("absent", "", "", (absent,)))
    small = Suite("tiny", "", "", (tiny.runs[0],))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)
    filled = fill.fill(5, tmp_path / "out", ["absent", "tiny"], root=tmp_path, device="cpu")
    assert list(filled.summary.failed) == [absent.stem]
    assert len(filled.summary.done) == 2
    assert "gone.safetensors" in capsys.readouterr().err


# ---- several processes ---------------------------------------------------------------------------


def start_fill(root: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "gkp", "fill", "--suite", "digits", "--root", str(root), *arguments]
    environment = os.environ | {"GKP_PROGRESS": "lines", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_processes_that_take_too_long_are_stopped_and_leave_whole_files(tmp_path: Path) -> None:
    context = Context(Store(tmp_path), torch.device("cpu"))
    queue = fill.plan(["digits"])

    def an_epoch_is_saved() -> bool:
        states = [path.read_bytes() for path in tmp_path.glob("work/state/*.pt")]
        return any(epochs_done(data, "state") > 0 for data in states)

    assert work_together(queue, 2, context, an_epoch_is_saved) == {}
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not any(run.is_claimed(each, tmp_path) for _, each in queue)
    packed = pack(context.store, tmp_path / "out", {})
    assert unpack([tmp_path / "out"], Store(tmp_path / "home")).written == packed.files


@pytest.mark.slow
def test_a_machine_that_ends_the_command_gets_what_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with start_fill(tmp_path, "--minutes", "10", "--jobs", "2", "--out", str(out)) as process:
        assert any("epoch 1/" in line for line in process.stdout)  # a slow machine says other things before
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert any(name.startswith("work/state/") for name in unpack([out], Store(tmp_path / "home")).written)
    assert not list(tmp_path.rglob("*.tmp"))
