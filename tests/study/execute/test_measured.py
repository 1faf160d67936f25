"""Attacks of an unfinished run: none is made twice, and none is taken for another's."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from tiny_suite import COMMON, EVALUATION, context

from gkp.attacks import Attack
from gkp.study.execute import one_run
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.measured import Measured
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.run import BASELINE, Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites.grids import Suite

MORE = (*EVALUATION, *(Entry(Attack("fgsm", eps=e / 255), 20) for e in (1, 2, 4)))
RUN = dataclasses.replace(COMMON, method=BASELINE, macs_ratio=None, recipe=None, evaluation=MORE)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were made, in order; the third one is interrupted."""
    names, now = list[str](), one_run.attack

    def attack(attacked: one_run.Attacked, dataset: str, entry: Entry, *rest: object) -> object:
        names.append(entry.attack.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        return now(attacked, dataset, entry, *rest)

    monkeypatch.setattr(one_run, "attack", attack)
    return names


def accuracies(run: Run, where: Context) -> dict[str, dict[str, tuple[float, str]]]:
    record = one_run.execute(run, "tiny", where)
    return {
        rule: {name: (metric.accuracy, metric.bits) for name, metric in kept.metrics.items()}
        for rule, kept in record.kept.items()
    }


def test_a_killed_run_goes_on_with_the_attack_it_was_at(tiny: Suite, tmp_path: Path, made: list[str]) -> None:
    where = context(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        one_run.execute(RUN, "tiny", where)
    assert where.attacks_path(RUN).exists()
    found = accuracies(RUN, where)
    assert made[3] == made[2]
    assert not list(where.state_folder.iterdir())
    times = len(made)
    made[:] = ["first"] * 3  # nothing is killed any more
    assert found == accuracies(RUN, context(tmp_path / "whole"))
    assert times == len(made[3:]) + 1  # the one it was at was begun twice, no other


def test_the_time_may_be_up_between_two_attacks(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(RUN, baseline=dataclasses.replace(RUN.baseline, epochs=1))
    where, now = context(tmp_path), one_run.attack

    def last(*arguments: object) -> object:
        where.deadline = time.monotonic() - 1
        return now(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "attack", last)
        with pytest.raises(OutOfTime):
            one_run.execute(run, "tiny", where)
    assert where.attacks_path(run).exists()
    where.deadline = None
    assert {m.attack.name for m in one_run.execute(run, "tiny", where).measured()} == {
        entry.attack.name for entry in MORE
    }


def test_only_what_the_same_weights_gave_on_the_same_device_counts(tmp_path: Path) -> None:
    path, (entry, other) = tmp_path / "attacks.json", EVALUATION
    bits = torch.tensor([True, False, True])
    outcome = one_run.Outcome(entry.attack.name, bits, 0.5, entry.attack, None, True)
    Measured(path, "a", "cpu").add(Metric.of(outcome, entry))
    Measured(path, "b", "cpu").add(Metric.of(outcome, entry))
    assert Measured(path, "a", "cpu").has(entry)
    assert Measured(path, "b", "cpu").metrics[entry.attack.name].right.equal(bits)
    assert not Measured(path, "a", "cpu").has(other)
    assert not Measured(path, "a", "cpu").has(Entry(entry.attack, 2))  # on other images
    assert not Measured(path, "a", "cuda").has(entry)
    assert not Measured(None, "a", "cpu").has(entry)
    for damage in ("{", "[]", '{"a cpu": 3}'):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"attacks\.json is damaged: delete it"):
            Measured(path, "a", "cpu")


def test_autoattack_on_a_device_of_another_kind_has_the_batches_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def run_autoattack(*_: object, batch_size: int, state_path: Path, **__: object) -> None:
        sizes.append(batch_size)
        state_path.touch()

    monkeypatch.setattr("gkp.attacks.autoattack.autoattack", run_autoattack)
    attacked = one_run.Attacked("0" * 64, torch.nn.Identity())
    for device in ("cpu", "xpu"):
        where = Context(Store(tmp_path), torch.device(device))
        one_run.autoattack(attacked, torch.zeros(1), torch.zeros(1), Attack("autoattack", eps=0.1), where)
    assert sizes == [one_run.AUTOATTACK_BATCH["cpu"]] * 2
