"""What is still to be computed, in hours: as measured, and only of what has no record."""

import dataclasses
from pathlib import Path

import pytest
from many_records import a_record
from pages_factory import committed_evidence

from gkp.study.report.pages import gpu
from gkp.study.runs import pace, suites
from gkp.study.runs.store import Store


def hours(text: str) -> float:
    return float(text.split()[0].replace(",", ""))


def test_estimates_are_of_runs_that_have_no_record(tmp_path: Path) -> None:
    nothing = gpu.estimates_table(Store(tmp_path)).set_index("suite")
    committed = gpu.estimates_table(Store(".")).set_index("suite")
    assert "cifar10-resnet20-selection" in nothing.index
    assert "cifar10-resnet20-selection" not in committed.index
    assert "digits" not in nothing.index
    cpu, alone, together = (hours(text) for text in committed.loc["cifar10-resnet56"].iloc[1:])
    assert cpu > 20 * alone > 20 * together


def test_a_record_that_lacks_an_attack_needs_that_attack_alone(tmp_path: Path) -> None:
    store, run = Store(tmp_path), suites.get("cifar10-resnet20-short").runs[1]
    assert gpu.left_minutes(run, store, "fleet") == pace.minutes(run, "fleet")
    store.write(a_record(run))  # its attacks saw other images than the suite asks for, but for those on all
    lacking = [entry for entry in run.evaluation if entry.n is not None]
    assert gpu.left_minutes(run, store, "fleet") == pytest.approx(
        pace.evaluation_minutes(run, "fleet", lacking)
    )
    assert gpu.needed_minutes(run, store) == 0
    other = dataclasses.replace(run, seed=1)
    assert gpu.needed_minutes(other, store) > pace.training_minutes(other, "fleet")


def test_each_of_the_papers_tables_has_a_row() -> None:
    evidence = committed_evidence()
    table = gpu.papers_tables(evidence).set_index("paper")
    assert list(table.index) == [f"Table {number}" for number in gpu.TABLES]
    for _, row in table.iterrows():
        assert row["numbers that wait"] == str(evidence.waiting.get(row["suite"].strip("`"), 0))
        assert 0 < hours(row["GPU minutes"]) < 60 * hours(row["GPU hours"])


def test_rates_are_said_with_what_is_inferred_from_them() -> None:
    text = gpu.rates()
    assert "1.51 ms for each of 6" in text
    assert "other networks are taken to need time in proportion" in text
