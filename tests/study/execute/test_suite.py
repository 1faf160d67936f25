"""Running suites: what a run leaves behind, and what nothing may destroy."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_suite import RECIPE, baseline_of, context

from gkp import data, evaluate
from gkp.attacks import Attack
from gkp.nets.checkpoint import load_file
from gkp.study.execute import one_run as execute
from gkp.study.execute.context import OutOfTime
from gkp.study.execute.suite import run_suite
from gkp.study.runs import suites
from gkp.study.runs.protocols import SELECTION, Entry
from gkp.study.runs.record import Record
from gkp.study.runs.run import MACS_RATIO
from gkp.study.runs.store import Store, is_complete
from gkp.study.runs.suites.grids import Suite


def test_a_suite_leaves_whole_records_and_is_not_done_twice(tiny: Suite, tmp_path: Path) -> None:
    summary = run_suite("tiny", root=tmp_path, device="cpu")
    stems = [run.stem for run in tiny.ordered()]
    assert (summary.done, summary.skipped, summary.left, summary.failed) == (stems, [], [], {})
    store = Store(tmp_path)
    assert len(store.all("tiny")) == len(stems) == 7
    assert not list((tmp_path / "work" / "state").iterdir())

    for record in store.all("tiny"):
        if record.pruned:
            assert record.cost.macs_ratio == pytest.approx(MACS_RATIO, rel=0.01)
            assert record.pruning.seconds > 0
        for kept in record.kept.values():
            assert [metric.n for metric in kept.metrics.values()] in ([80, 20], [80])

    written = {path: path.stat().st_mtime_ns for path in store.results.rglob("*.json")}
    again = run_suite("tiny", root=tmp_path, device="cpu")
    assert (again.done, again.skipped) == ([], stems)
    assert {path: path.stat().st_mtime_ns for path in store.results.rglob("*.json")} == written


def test_saved_weights_give_the_recorded_accuracy_again(tiny: Suite, tmp_path: Path) -> None:
    run = baseline_of(tiny)
    record = execute.execute(run, "tiny", context(tmp_path))
    kept = record.kept["last"]
    digits = data.load("digits", "test")
    model = load_file(tmp_path / kept.file)
    assert evaluate.accuracy(model, digits.pixels(), digits.labels) == kept.metrics["benign"].accuracy
    assert record.value(["provenance", "folded"]) is True


def test_rules_that_choose_the_same_epoch_share_a_file(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(
        baseline_of(tiny), rules=("last", "best-test", "best-fgsm-0.01", "best-fgsm-0.1")
    )
    record = execute.execute(run, "tiny", context(tmp_path))
    kept, rows, digits = record.kept, record.epochs, data.load("digits", "test")
    assert set(kept) == set(run.rules)
    for name in ("fgsm-0.01", "fgsm-0.1"):
        best = rows[kept[f"best-{name}"].epoch - 1].attacked
        assert best[name] == max(row.attacked[name] for row in rows)
        model, attack = load_file(tmp_path / kept[f"best-{name}"].file), SELECTION[name]
        again = evaluate.outcome(model, digits.pixels(), digits.labels, attack)
        assert again.accuracy == pytest.approx(best[name])
    files = {rule.epoch: rule.file for rule in kept.values()}
    assert all(rule.file == files[rule.epoch] for rule in kept.values())
    assert len(list((tmp_path / "checkpoints").rglob("*.safetensors"))) == len(files) <= RECIPE.epochs
    more = dataclasses.replace(run, evaluation=(*run.evaluation, Entry(Attack("fgsm", eps=4 / 255), 20)))
    attacked: list[str] = []
    whole = execute.attack
    monkeypatch.setattr(
        execute, "attack", lambda *given: attacked.append(given[2].attack.name) or whole(*given)
    )
    topped_up = execute.execute(more, "tiny", context(tmp_path))
    assert len(attacked) == len(files)  # once per file, however many rules chose it
    assert execute.missing_entries(topped_up, more) == {}
    manifest = json.loads(Store(tmp_path).update_manifest().read_text())
    assert sorted(", ".join(entry["rule"] for entry in manifest.values()).split(", ")) == sorted(run.rules)


def test_time_up_stops_after_an_epoch_and_continues_to_the_same_weights(tiny: Suite, tmp_path: Path) -> None:
    run = baseline_of(tiny)
    whole = execute.execute(run, "tiny", context(tmp_path / "whole"))
    with pytest.raises(OutOfTime):
        execute.execute(run, "tiny", context(tmp_path / "cut", deadline=time.monotonic()))
    assert (tmp_path / "cut" / "work" / "state" / f"{run.hash}.pt").exists()
    assert Store(tmp_path / "cut").find(run) is None
    cut = execute.execute(run, "tiny", context(tmp_path / "cut"))
    assert cut.kept["last"].sha256 == whole.kept["last"].sha256
    assert len(cut.epochs) == RECIPE.epochs


def test_without_time_nothing_is_begun(tiny: Suite, tmp_path: Path) -> None:
    summary = run_suite("tiny", root=tmp_path, device="cpu", budget_minutes=0)
    assert summary.left == [run.stem for run in tiny.ordered()]
    assert not Store(tmp_path).all()


def test_a_run_that_fails_is_named_and_does_not_cost_the_others(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dataclasses.replace(tiny.runs[2], options=(("typo", 1),))
    suite = dataclasses.replace(tiny, runs=(wrong, tiny.runs[0]))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    summary = run_suite("tiny", root=tmp_path, device="cpu")
    assert list(summary.failed) == summary.left == [wrong.stem]
    assert len(summary.done) == 2
    assert "typo" in summary.failed[wrong.stem]
    assert f"failed: {wrong.stem}" in capsys.readouterr().err


def test_a_full_disk_keeps_the_training_state(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, where = baseline_of(tiny), context(tmp_path)

    def full(record: Record) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where.store, "write", full)
        with pytest.raises(OSError, match="No space"):
            execute.execute(run, "tiny", where)
    state = where.state_path(run)
    assert state.exists()
    epochs = execute.execute(run, "tiny", where).epochs
    assert len(epochs) == RECIPE.epochs
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"jobs": 0}, "jobs=0"), ({"device": "cuda"}, "no GPU here")]
)
def test_arguments_that_cannot_be(tiny: Suite, tmp_path: Path, arguments: dict, message: str) -> None:
    if message == "no GPU here" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        run_suite("tiny", root=tmp_path, **arguments)


def run_digits(root: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "gkp", "run", "--suite", "digits", "--root", str(root), *arguments]
    environment = os.environ | {"GKP_PROGRESS": "lines", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # What starts the tests in the background may have them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_says_what_is_saved_and_how_to_continue(tmp_path: Path) -> None:
    with run_digits(tmp_path) as process:
        assert any("epoch 1/" in line for line in process.stdout)  # a slow machine says other things before
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "python -m gkp run --suite digits" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "work" / "state").glob("*.pt"))


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    with run_digits(tmp_path, "--jobs", "2") as process:
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    runs = suites.get("digits").ordered()
    assert f"{len(runs)} done" in output
    assert all(is_complete(run, Store(tmp_path)) for run in runs)
