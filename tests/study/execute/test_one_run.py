"""Attacks of one run: added later, for one rule alone, and those that can be continued."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_suite import EVALUATION, baseline_of, context

from gkp import data
from gkp.attacks import Attack
from gkp.attacks.autoattack import autoattack
from gkp.nets.checkpoint import load_file
from gkp.study.execute import one_run as execute
from gkp.study.execute import steps
from gkp.study.execute.context import OutOfTime
from gkp.study.runs import suites
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store, asked_for, is_complete
from gkp.study.runs.suites.grids import Suite


def metrics_of(run: Run, root: Path) -> Mapping[str, Metric]:
    return Store(root).find(run).metrics()


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
