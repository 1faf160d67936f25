"""Suites whose trainings are done side by side: the same records, whatever ends them in the middle."""

import dataclasses
import os
import random
from pathlib import Path

import pytest
import torch
from tiny_checks import assert_same, undisturbed
from tiny_run import started
from tiny_suite import RECIPE, tiny_suite

from gkp.nets import models
from gkp.study.execute import fleet, steps
from gkp.study.execute.context import Context
from gkp.study.execute.queue import claim_first
from gkp.study.execute.suite import queue_of, run_suite
from gkp.study.runs import suites
from gkp.study.runs.record import Record
from gkp.study.runs.store import Store
from gkp.study.runs.suites.grids import Suite
from gkp.study.runs.suites.recipes import ONE_STEP
from gkp.utils.progress import Progress


@pytest.fixture
def few(tiny: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite "tiny" with one method that prunes once and one that prunes in training."""
    suite = tiny_suite("sr-gkp", "sfp")
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    return suite


def records(root: Path) -> dict[str, Record]:
    return {record.stem: record for record in Store(root).all("tiny") if isinstance(record, Record)}


def epochs(record: Record) -> list[int]:
    return [row["epoch"] for row in (record.json["history"] or {"epochs": []})["epochs"]]


def test_a_suite_in_fleets_has_the_records_of_one_without(few: Suite, tmp_path: Path) -> None:
    for name, options in {"plain": {}, "fleet": {"side_by_side": 3}}.items():
        summary = run_suite("tiny", root=tmp_path / name, device="cpu", **options)
        assert (len(summary.done), summary.left, summary.failed) == (len(few.ordered()), [], {})
        assert not list((tmp_path / name / "work" / "state").iterdir())
    expected, found = records(tmp_path / "plain"), records(tmp_path / "fleet")
    assert list(found) == list(expected)
    for stem, record in found.items():
        other = expected[stem]
        assert record.cost == other.cost
        assert record.kept.keys() == other.kept.keys()
        assert epochs(record) == epochs(other)
        trainer = record.json["provenance"].get("trainer", "")
        assert trainer.startswith("fleet: ") is (record.json["history"] is not None)
    # What all start from was trained in the same arithmetic, on one network, where little adds up.
    first = next(stem for stem in found if stem.startswith("baseline"))
    losses = [store[first].json["history"]["epochs"][0]["train_loss"] for store in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("way", [{"adversarial": ONE_STEP}, {"gradient_penalty": 0.1}, {"distillation": 0.5}])
def test_what_is_trained_otherwise_waits_for_a_fleet_too(few: Suite, tmp_path: Path, way: dict) -> None:
    context = Context(Store(tmp_path), torch.device("cpu"), gathering=True)
    run, recipe = few.runs[-1], dataclasses.replace(RECIPE, **way)
    model, parent = models.create("resnet8"), models.create("resnet8")
    with pytest.raises(steps.Unfinished) as waiting:
        steps.train(model, run, recipe, context, Progress("off"), parent=parent)
    member = waiting.value.member
    assert (member.model, member.recipe) == (model, recipe)
    assert member.teacher is (parent if recipe.distillation else None)


def test_a_fleet_leaves_alone_what_others_work_on(few: Suite, tmp_path: Path) -> None:
    run_suite("tiny", root=tmp_path, device="cpu", budget_minutes=1e-9)
    context = Context(Store(tmp_path), torch.device("cpu"))
    queue = queue_of(few)
    baseline = queue[0][1]
    with claim_first([baseline], tmp_path):
        assert fleet.train_queue(queue, context, 2) == ([], {})
    trained, failed = fleet.train_queue(queue, context, 2)
    assert ([run for _, run in trained], failed) == ([baseline], {})  # the others start from its record


def test_a_fleet_stops_when_the_time_is_up_and_continues(few: Suite, tmp_path: Path) -> None:
    rounds, minutes = 0, 0.01
    while run_suite("tiny", root=tmp_path, device="cpu", side_by_side=2, budget_minutes=minutes).left:
        rounds, minutes = rounds + 1, 1.5 * minutes  # on a busy machine all of it may pass before an epoch
        assert rounds < 20
    assert rounds  # it did stop
    assert len(records(tmp_path)) == len(few.ordered())


@pytest.mark.slow
def test_a_fleet_that_is_killed_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    methods, epochs, kills, moments = ("l1", "sr-gkp", "sfp"), 6, 20, random.Random(0)
    log, rounds, whole = tmp_path / "log", 0, 0
    expected = undisturbed(tmp_path / "whole", methods, 1, epochs, side_by_side=2)
    while rounds < kills:
        root = tmp_path / f"killed {whole}"
        for _ in range(100):
            options = {"TINY_FLEET": 2, "TINY_LOG": log, "OMP_NUM_THREADS": 1}
            with started(root, 1, methods, epochs, **options) as process:
                lines = moments.randint(1, 12)
                seen = [line for line, _ in zip(process.stdout, range(lines), strict=False)]
                if len(seen) < lines and process.wait() == 0:
                    break
                process.kill()
                rounds += 1
        assert_same(Store(root), expected)
        whole += 1
    written = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    records = [path for path in written if os.sep + "results" + os.sep in path]
    assert len(records) == len(set(records)) == 6 * whole
    print(f"{rounds} kills, {whole} suites of 6 runs: {len(records)} records, each written once")
