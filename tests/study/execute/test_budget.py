"""Suites that are trained in as many epochs as a budget allows: chosen once, kept, part of every hash."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from tiny_suite import RECIPE, tiny_suite

from gkp.study.execute import suite as execution
from gkp.study.execute.context import Context
from gkp.study.execute.fleet import measured
from gkp.study.execute.suite import fitting_epochs, run_suite
from gkp.study.runs import pace, suites
from gkp.study.runs.run import BASELINE
from gkp.study.runs.store import EPOCHS, Store
from gkp.study.runs.suites.grids import Suite


@pytest.fixture
def elastic(tiny: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite "tiny" with two networks to fine-tune in at most 9 epochs, three at each learning rate."""
    recipe = dataclasses.replace(RECIPE, epochs=9, schedule="step", step_epochs=3)
    plain = tiny_suite("l1")
    runs = tuple(dataclasses.replace(r, recipe=recipe if r.recipe else None) for r in plain.runs)
    suite = dataclasses.replace(plain, runs=runs, epochs_within_budget=True)
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    return suite


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a measurement says instead: seconds of an epoch, and of a pass; and a clock that stands still."""
    seconds = [1.0, 0.0]
    monkeypatch.setattr(execution, "measured", lambda *_: tuple(seconds))
    monkeypatch.setattr(execution.time, "monotonic", lambda: 0.0)
    return seconds


def chosen(suite: Suite, root: Path, minutes: float) -> int:
    context = Context(Store(root), torch.device("cpu"))
    return int(fitting_epochs(suite, minutes, context, None)["epochs"])


def minutes_for(epochs: float) -> float:
    """A budget for the baseline's two epochs and so many of both networks, at a second each."""
    return (2 + 2 * epochs) / execution.BUDGET_SHARE / 60


@pytest.mark.parametrize(("fit", "epochs"), [(3.01, 3), (5.9, 3), (6.01, 6), (8.99, 6), (9.01, 9), (400, 9)])
def test_as_many_as_fit_rounded_down_to_equal_phases(
    elastic: Suite, pretended: list[float], tmp_path: Path, fit: float, epochs: int
) -> None:
    assert chosen(elastic, tmp_path, minutes_for(fit)) == epochs


def test_attacks_are_paid_first_and_too_little_time_is_refused(
    elastic: Suite, pretended: list[float], tmp_path: Path
) -> None:
    pretended[1] = 6 / sum(map(pace.evaluation_passes, elastic.ordered()))  # six seconds: three epochs less
    assert chosen(elastic, tmp_path, minutes_for(9.01)) == 6
    with pytest.raises(ValueError, match=r"0.18 minutes are too few for tiny: give 1 or more"):
        chosen(elastic, tmp_path, 0.18)
    pretended[0] = 600.0
    with pytest.raises(ValueError, match=r"give (\d+) or more") as refusal:
        chosen(elastic, tmp_path, 60)
    enough = int(str(refusal.value).split("give ")[1].split()[0])
    assert chosen(elastic, tmp_path, enough) == 3
    with pytest.raises(ValueError, match="too few"):
        chosen(elastic, tmp_path, enough - 1)


def test_the_first_call_chooses_and_the_next_ones_resume(
    elastic: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes = 1000  # by a measurement that says far too much, so that a busy machine does not matter
    seconds = minutes / minutes_for(5)
    monkeypatch.setattr(execution, "measured", lambda *_: (seconds, 0.0))
    first = run_suite("tiny", root=tmp_path, device="cpu", budget_minutes=minutes)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("tiny: 3 of 9 epochs, chosen for 1000 minutes: ")]
    store = Store(tmp_path)
    assert (first.left, first.failed) == ([], {})
    assert set(first.done) == {run.stem for run in elastic.in_epochs(3).ordered()}
    trained = [record for record in store.of_suite("tiny") if record.run.recipe]
    assert {record.run.recipe.epochs for record in trained} == {3}
    assert {record.run.recipe.step_epochs for record in trained} == {1}
    assert all(len(record.epochs) == 3 for record in trained)

    monkeypatch.setattr(execution, "measured", lambda *_: pytest.fail("measured anew"))
    for other in (None, 9000):
        again = run_suite("tiny", root=tmp_path, device="cpu", budget_minutes=other)
        assert (again.done, again.left, len(again.skipped)) == ([], [], len(first.done))
    assert "tiny: 3 of 9 epochs, chosen for 1000 minutes: " in capsys.readouterr().err
    assert store.suite("tiny") == elastic.in_epochs(3)
    store.path("tiny", store.fact("tiny", EPOCHS).stem).unlink()
    assert store.suite("tiny") == elastic


def test_one_of_many_jobs_chooses_nothing(elastic: Suite, tmp_path: Path) -> None:
    run_suite("tiny", root=tmp_path, device="cpu", budget_minutes=1e-9, fit_epochs=False)
    assert Store(tmp_path).files() == []


@pytest.mark.parametrize("side_by_side", [None, 2])
def test_a_measurement_takes_seconds_and_tells_them(
    elastic: Suite, tmp_path: Path, side_by_side: int | None
) -> None:
    context = Context(Store(tmp_path), torch.device("cpu"))
    tuned = [run for run in elastic.runs if run.recipe]
    started = time.perf_counter()
    epoch, per_pass = measured(tuned, context, side_by_side)
    whole = time.perf_counter() - started
    assert 0 < epoch < whole
    assert 0 < 80 * per_pass < whole
    assert not context.store.results.exists()


def test_the_suites_that_let_a_budget_choose_can() -> None:
    elastic = [suite for suite in map(suites.get, suites.SUITES) if suite.epochs_within_budget]
    assert [suite.name for suite in elastic] == ["cifar10-resnet56-budget"]
    for suite in elastic:
        (recipe,) = {run.recipe for run in suite.runs if run.recipe}
        assert recipe.phases == 3
        assert not any(run.selecting for run in suite.runs)
        assert all(run.method != BASELINE for run in suite.ordered())
        # What a choice of 57 epochs trains has a record already.
        longer = {run.hash for run in suites.get("cifar10-resnet56-57").runs if run.seed == 0}
        assert {run.hash for run in suite.in_epochs(57).runs} == longer
