"""Running suites: what a run leaves behind, and what nothing may destroy."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_suite import EVALUATION, RECIPE

import gkp
from gkp import data, evaluate
from gkp.attacks import Attack
from gkp.attacks.autoattack import autoattack
from gkp.nets import models
from gkp.nets.checkpoint import load_file
from gkp.study.execute import one_run as execute
from gkp.study.execute import steps
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.queue import claim_first, has_start, is_claimed, tidy
from gkp.study.execute.suite import run_suite
from gkp.study.runs import suites
from gkp.study.runs.protocols import SELECTION, Entry
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.run import MACS_RATIO, Run
from gkp.study.runs.store import Store, asked_for, is_complete
from gkp.study.runs.suites.grids import Suite
from gkp.utils.progress import Progress


def context(root: Path, deadline: float | None = None) -> Context:
    return Context(Store(root), torch.device("cpu"), deadline=deadline)


def baseline_of(suite: Suite) -> Run:
    return suite.ordered()[0]


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


def test_an_added_attack_needs_no_training(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(tiny.runs[0], weights=None)
    execute.execute(baseline_of(tiny), "tiny", context(tmp_path))
    before = execute.execute(run, "tiny", context(tmp_path))
    monkeypatch.setattr(steps, "fine_tune", None)
    more = dataclasses.replace(run, evaluation=(*EVALUATION, Entry(Attack("fgsm", eps=2 / 255), 30)))
    assert is_complete(run, Store(tmp_path))
    assert not is_complete(more, Store(tmp_path))
    after = execute.execute(more, "tiny", context(tmp_path))
    assert is_complete(more, Store(tmp_path))
    metrics = after.metrics()
    assert {name: metrics[name] for name in before.metrics()} == before.metrics()
    assert metrics["fgsm_pixel_2/255_true"].n == 30
    assert after.later == {"fgsm_pixel_2/255_true"}
    assert after.provenance == before.provenance


def test_an_attack_may_be_for_one_rule_alone(tiny: Suite, tmp_path: Path) -> None:
    """Asked for on the last epoch's weights, first with the run and then in addition."""
    first, second = (Attack("fgsm", eps=e / 255) for e in (2, 4))
    run = dataclasses.replace(baseline_of(tiny), rules=("last", "best-validation"))
    run = dataclasses.replace(run, evaluation=(*EVALUATION, Entry(first, 20, ("last",))))
    record = execute.execute(run, "tiny", context(tmp_path))
    added = dataclasses.replace(run, evaluation=(*run.evaluation, Entry(second, 20, ("last",))))
    missing = execute.missing_entries(record, added)
    assert {rule: [e.attack for e in entries] for rule, entries in missing.items()} == {"last": [second]}
    record = execute.execute(added, "tiny", context(tmp_path))
    assert is_complete(added, Store(tmp_path))
    for rule, kept in record.kept.items():
        whole = kept.sha256 == record.kept["last"].sha256
        assert ({first.name, second.name} <= kept.metrics.keys()) == whole, rule
        assert {entry.attack.name for entry in EVALUATION} <= kept.metrics.keys()
    shown = asked_for(record, run)
    assert second.name not in shown.metrics("last")
    assert first.name in shown.metrics("last")


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


def test_one_run_is_claimed_once_and_free_again_after_a_kill(tiny: Suite, tmp_path: Path) -> None:
    first, second = tiny.runs[:2]
    with claim_first([first, second], tmp_path) as mine:
        assert mine == first
        assert is_claimed(first, tmp_path)
        with claim_first([first, second], tmp_path) as other:
            assert other == second
        with claim_first([first], tmp_path) as none_left:
            assert none_left is None
    assert not is_claimed(first, tmp_path)

    lock = tmp_path / "work" / "locks" / f"{first.hash}.lock"
    hold = f"import fcntl, time; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert is_claimed(first, tmp_path)
        holder.kill()
        holder.wait()
    assert not is_claimed(first, tmp_path)


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


def test_autoattack_is_an_entry_like_the_others(tiny: Suite, tmp_path: Path) -> None:
    attack = Attack("autoattack", eps=8 / 255)
    run = dataclasses.replace(baseline_of(tiny), evaluation=(Entry(Attack("none"), 20), Entry(attack, 4)))
    kept = execute.execute(run, "tiny", context(tmp_path)).kept["last"]
    metric, test = kept.metrics[attack.name], data.load("digits", "test")
    model = load_file(tmp_path / kept.file)
    outcome = autoattack(model, test.pixels(slice(4)), test.labels[:4], eps=8 / 255, batch_size=64)
    assert metric.correct == int(outcome.correct.sum())
    assert metric.n == metric.asked_n == 4
    assert [path for path in (tmp_path / "work" / "state").iterdir() if path.suffix == ".json"] == []


def test_autoattack_stops_between_batches_and_continues_there(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(execute.AUTOATTACK_BATCH, "cpu", 2)
    attack = Attack("autoattack", eps=8 / 255)
    run = dataclasses.replace(baseline_of(tiny), evaluation=(Entry(Attack("none"), 20),))
    record = execute.execute(run, "tiny", context(tmp_path))
    more = dataclasses.replace(run, evaluation=(*run.evaluation, Entry(attack, 4)))
    late = context(tmp_path, deadline=0.0)
    with pytest.raises(OutOfTime):
        execute.complete(record, more, late, late.titled(more.label))
    (state,) = (tmp_path / "work" / "state").glob("autoattack-*.json")
    assert len(json.loads(state.read_text())["batches"]) == 1
    assert attack.name not in metrics_of(run, tmp_path)
    resumed = context(tmp_path)
    execute.complete(resumed.store.find(run), more, resumed, resumed.titled(more.label))
    assert metrics_of(more, tmp_path)[attack.name].n == 4
    assert not state.exists()


def test_attacks_that_are_added_are_kept_one_by_one(tiny: Suite, tmp_path: Path) -> None:
    first, second = (Entry(Attack("fgsm", eps=e / 255), 6) for e in (3, 5))
    run = dataclasses.replace(baseline_of(tiny), evaluation=(Entry(Attack("none"), 20),))
    execute.execute(run, "tiny", context(tmp_path))
    run = dataclasses.replace(run, evaluation=(*run.evaluation, first, second))
    with pytest.raises(OutOfTime):
        execute.execute(run, "tiny", context(tmp_path, deadline=time.monotonic()))
    assert set(metrics_of(run, tmp_path)) == {"benign", first.attack.name}
    execute.execute(run, "tiny", context(tmp_path))
    assert set(metrics_of(run, tmp_path)) == {"benign", first.attack.name, second.attack.name}


def test_suites_that_share_runs_see_the_attacks_they_ask_for(
    tiny: Suite, tmp_path: Path, monkeypatch
) -> None:
    predicted = Attack("fgsm", eps=8 / 255, labels="predicted")
    run = dataclasses.replace(baseline_of(tiny), evaluation=(*EVALUATION, Entry(predicted, 20)))
    more = Suite("more", "", "", (run,))
    monkeypatch.setitem(suites.SUITES, "more", lambda: more)
    execute.execute(run, "tiny", context(tmp_path))
    few, all_of_them = (Store(tmp_path).of_suite(name)[0] for name in ("tiny", "more"))
    assert set(all_of_them.metrics()) == {e.attack.name for e in run.evaluation}
    assert set(few.metrics()) == {e.attack.name for e in EVALUATION}
    assert any(predicted.name in text for text in all_of_them.kept["last"].self_check)
    assert not any(predicted.name in text for text in few.kept["last"].self_check)


def metrics_of(run: Run, root: Path) -> Mapping[str, Metric]:
    return Store(root).find(run).metrics()


# ---- several processes at one queue ----------------------------------------------------------------


def test_a_lock_that_is_only_looked_at_ends_nobodys_work(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that asks whether a run is taken holds its lock for that moment."""
    monkeypatch.setattr("gkp.study.execute.queue.POLL_SECONDS", 0.0)
    small, calls = Suite("tiny", "", "", (tiny.runs[0],)), 0
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)

    @contextmanager
    def taken_once(runs: list[Run], root: Path) -> Iterator[Run | None]:
        nonlocal calls
        calls += 1
        with claim_first([] if calls == 1 else runs, root) as claimed:
            yield claimed

    monkeypatch.setattr("gkp.study.execute.queue.claim_first", taken_once)
    assert len(run_suite("tiny", root=tmp_path, device="cpu").done) == 2


def test_what_ends_while_we_look_is_seen(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process ends the baseline after we saw that nothing can be begun."""
    small = Suite("tiny", "", "", (tiny.runs[0],))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)
    baseline, seen = baseline_of(tiny), []

    def ended_now(other: Run, root: Path) -> bool:
        if not seen:
            execute.execute(baseline, "tiny", context(root))
        seen.append(other)
        return False

    monkeypatch.setattr(
        "gkp.study.execute.queue.has_start", lambda r, store: r != baseline and has_start(r, store)
    )
    monkeypatch.setattr("gkp.study.execute.queue.is_claimed", ended_now)
    summary = run_suite("tiny", root=tmp_path, device="cpu")
    assert seen
    assert len(summary.done) == 2


def test_what_a_killed_process_left_is_removed(tiny: Suite, tmp_path: Path) -> None:
    one, baseline = tiny.runs[0], baseline_of(tiny)
    queue, where = [("tiny", baseline), ("tiny", one)], context(tmp_path)
    execute.execute(baseline, "tiny", where)
    left = [
        where.state_path(baseline),  # killed between the record and this
        where.state_folder / f".{baseline.hash}.pt.ab12.tmp",
        where.store.results / "tiny" / f".{one.stem}.json.ab12.tmp",
        where.store.checkpoints / "tiny" / f".{one.stem}-best-test.safetensors.ab12.tmp",
    ]
    kept = [
        where.state_path(one),  # to be continued
        where.state_folder / ".0123456789abcdef.pt.ab12.tmp",  # of another suite
        where.snapshots_folder(baseline) / "epoch-001.safetensors",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    tidy(queue, where)
    assert [path.name for path in (*left, *kept) if path.exists()] == [path.name for path in kept]


def test_what_a_living_process_writes_is_not_removed(tiny: Suite, tmp_path: Path) -> None:
    where, first = context(tmp_path), baseline_of(tiny)
    path = where.state_folder / f".{first.hash}.pt.ab12.tmp"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"being written")
    with claim_first([first], tmp_path):
        tidy([("tiny", first)], where)
        assert path.exists()
    tidy([("tiny", first)], where)
    assert not path.exists()


@pytest.mark.parametrize("method", ["l1", "sfp"], ids=["one-shot", "in training"])
def test_a_pruned_network_learns_from_the_network_before_pruning(tmp_path: Path, method: str) -> None:
    splits = {("digits", part): data.load("digits", part).take(40) for part in ("train", "test")}
    few, progress = dataclasses.replace(context(tmp_path), splits=splits), Progress("off")
    recipe = dataclasses.replace(RECIPE, distillation=1.0, temperature=1.0)
    run = Run("digits", "resnet8", method, baseline=RECIPE, macs_ratio=MACS_RATIO, recipe=recipe)
    torch.manual_seed(0)
    parent = models.create("resnet8")
    pruned, _, _ = steps.prune_and_train(copy.deepcopy(parent), run, few, progress)
    if method == "l1":
        expected, _ = steps.prune(parent, run, few)
        gkp.fine_tune(expected, splits["digits", "train"], recipe, teacher=parent)
        assert all(map(torch.equal, expected.state_dict().values(), pruned.state_dict().values()))
    plain = dataclasses.replace(run, recipe=RECIPE)
    other, _, _ = steps.prune_and_train(parent, plain, few, progress)
    assert not all(map(torch.equal, other.state_dict().values(), pruned.state_dict().values()))


def test_a_baseline_has_no_teacher() -> None:
    recipe = dataclasses.replace(RECIPE, distillation=0.5)
    with pytest.raises(ValueError, match="trained from scratch and has no teacher: leave distillation out"):
        Run("digits", "resnet8", "l1", baseline=recipe, macs_ratio=MACS_RATIO)
