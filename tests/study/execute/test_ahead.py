"""Networks pruned once in a call, and several suites as one queue."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from tiny_checks import assert_same, undisturbed
from tiny_run import started
from tiny_suite import EVALUATION, tiny_suite

from gkp.attacks import Attack
from gkp.study.execute import ahead, fleet, steps
from gkp.study.execute import suite as execute
from gkp.study.execute.context import Context
from gkp.study.execute.one_run import start_model
from gkp.study.execute.suite import queue_of, run_suite
from gkp.study.runs import suites
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites.grids import Suite


@pytest.fixture
def few(tiny: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A method that prunes once, one in training, one that scores snapshots of the training."""
    suite = tiny_suite("sr-gkp", "sfp", "tmi-gkp")
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    return suite


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods of the networks that were pruned in this process, in order."""
    seen, now = list[str](), steps.pruned_now

    def pruned_now(model: torch.nn.Module, run: Run, context: Context) -> ahead.Pruned:
        seen.append(run.method)
        return now(model, run, context)

    monkeypatch.setattr(steps, "pruned_now", pruned_now)
    return seen


def test_a_kept_network_is_the_pruned_one_bit_for_bit(few: Suite, tmp_path: Path, cuts: list[str]) -> None:
    run_suite("tiny", root=tmp_path, device="cpu")
    run = next(run for run in few.runs if run.method == "sr-gkp")
    cuts.clear()
    with ahead.keeping(Context(Store(tmp_path), torch.device("cpu"))) as context:
        first, pruning = steps.prune(start_model(run, context), run, context)
        for other in (run, dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, epochs=9))):
            again, same = steps.prune(start_model(run, context), other, context)
            assert same == pruning
            assert again is not first
            assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
        folder = context.pruned
    expected, _ = steps.pruned_now(start_model(run, context), run, context)
    assert all(map(torch.equal, expected.state_dict().values(), first.state_dict().values()))
    assert cuts == ["sr-gkp", "sr-gkp"]  # the second by this test itself
    assert not folder.exists()


def test_a_fleet_prunes_each_network_once(few: Suite, tmp_path: Path, cuts: list[str]) -> None:
    summary = run_suite("tiny", root=tmp_path, device="cpu", side_by_side=2)
    assert len(summary.done) == len(few.ordered())
    assert sorted(name for name in cuts if name != "tmi-gkp") == ["sfp", "sr-gkp"]


def test_what_depends_on_the_training_or_seed_is_not_shared(few: Suite, tmp_path: Path) -> None:
    runs = {run.method: run for run in few.runs}
    with ahead.keeping(Context(Store(tmp_path), torch.device("cpu"))) as context:
        assert not ahead.keeps(runs["tmi-gkp"], context)
        assert not ahead.keeps(runs["unpruned"], context)
        assert ahead.keeps(runs["sr-gkp"], context)
    changes = {"seed": 1, "macs_ratio": 0.7, "groups": 4, "options": (("alpha", 0.5),), "validation": 20}
    named = {ahead.same_pruning(runs["sr-gkp"])}
    named |= {ahead.same_pruning(dataclasses.replace(runs["sr-gkp"], **{k: v})) for k, v in changes.items()}
    assert len(named) == 1 + len(changes)


def test_processes_prune_before_a_fleet_trains(few: Suite, tmp_path: Path, cuts: list[str]) -> None:
    run_suite("tiny", root=tmp_path, device="cpu", skip=[run.stem for run in few.runs])  # the baseline alone
    with ahead.keeping(Context(Store(tmp_path), torch.device("cpu"))) as context:
        assert fleet.prune_queue(queue_of(few), context) == {}
        assert sorted(cuts) == ["sfp", "sr-gkp"]
        assert len(os.listdir(context.pruned)) == 2
        assert fleet.prune_queue(queue_of(few), context) == {}
        assert len(cuts) == 2  # there already


def test_several_processes_prune_and_attack_what_one_does(tmp_path: Path) -> None:
    methods = ("l1", "sr-gkp")
    expected = undisturbed(tmp_path / "one", methods, threads=1, side_by_side=2)
    with started(tmp_path / "two", 2, methods, TINY_FLEET=2, OMP_NUM_THREADS=1) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert_same(Store(tmp_path / "two"), expected)


def test_nothing_is_pruned_again_that_has_its_record(few: Suite, tmp_path: Path) -> None:
    run_suite("tiny", root=tmp_path, device="cpu")
    with ahead.keeping(Context(Store(tmp_path), torch.device("cpu"))) as context:
        assert not any(fleet.to_prune(run, context) for _, run in queue_of(few))


def test_facts_about_trained_networks_wait_for_all_of_them(
    few: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[tuple[str, int]] = []  # fact, records of networks at that time
    monkeypatch.setattr(
        execute, "record_facts", lambda name, _, store: there.append((name, len(store.all())))
    )
    both = dataclasses.replace(few, facts=("latency", "repeated"))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: both)
    run_suite("tiny", root=tmp_path, device="cpu", skip=[few.runs[-1].stem])
    assert there == [("latency", 0)]
    run_suite("tiny", root=tmp_path, device="cpu")
    assert there[1:] == [("latency", len(few.ordered()) - 1), ("repeated", len(few.ordered()))]


def test_several_suites_are_one_queue(few: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = (*EVALUATION, Entry(Attack("fgsm", eps=4 / 255), 10))
    harder = dataclasses.replace(
        few,
        name="harder",
        runs=tuple(dataclasses.replace(run, evaluation=more) for run in few.runs if run.method == "sr-gkp"),
    )
    monkeypatch.setitem(suites.SUITES, "harder", lambda: harder)
    summary = run_suite(("tiny", "harder"), root=tmp_path, device="cpu", side_by_side=2)
    assert (len(summary.done), summary.left) == (len(few.ordered()), [])
    (record,) = (r for r in Store(tmp_path).all() if r.run.method == "sr-gkp")
    assert record.suite == "tiny"
    assert len(record.kept["last"].metrics) == len(more)
