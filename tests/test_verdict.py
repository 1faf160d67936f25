"""The table of the abstract's statements: what its sentences count."""

from pathlib import Path

import pytest
from many_records import many_records

from gkp import paired, verdict
from gkp.compare import BENIGN, CONTROL
from gkp.records import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def records():
    return many_records(("sr-gkp", "l1", "random", "chip"))


def test_one_sentence_each_way_for_every_statement(records, tmp_path):
    frame = verdict.abstract(tmp_path, records)
    assert list(frame.columns) == list(verdict.COLUMNS)
    assert len(frame) == 6
    assert not frame.map(lambda text: text.strip() == "").any().any()
    assert "no record yet" in frame["for"].iloc[-1]  # the facts are of other suites


def test_differences_are_the_paired_tests(records):
    frame = paired.against(records, BENIGN).set_index("method")
    lost = -frame.loc[["sr-gkp", "l1", "chip"], "difference"]
    _, sentence, against, *_ = verdict.clean(records)
    assert sentence == f"3 methods lose {lost.min():.1f} to {lost.max():.1f} points against {CONTROL}"
    worse = (frame.loc[["sr-gkp", "l1", "chip"], "verdict"] == "worse").sum()
    assert against.startswith(f"{worse} of 3 ")


def test_gains_and_losses_stand_on_their_own_side(records):
    _, gained, lost, *_ = verdict.kept(records)
    parts = [part for side in (gained, lost) for part in side.removeprefix("points: ").split("; ")]
    assert len([part for part in parts if part != "none"]) == 8  # four attacks, two controls
    assert all(part[0] in "+n" for part in gained.removeprefix("points: ").split("; "))
    assert all(part[0] in "-n" for part in lost.removeprefix("points: ").split("; "))


def test_methods_are_counted_without_the_controls(records):
    _, worse, better, *_ = verdict.milder(records)
    assert " of 3" in worse  # l1, chip and random, which is compared but is no unpruned control
    assert "unpruned" not in worse + better


def test_the_committed_facts_are_found():
    _, _, text, groups, _ = verdict.smooth(ROOT)
    fact = next(r for r in Store(ROOT).all(verdict.ABLATIONS[0]) if r["label"] == verdict.ABLATIONS[1])
    alphas = [
        entry["networks"]["all networks"]["same_percent"]
        for title, entry in fact["facts"]["searches"].items()
        if title.startswith("alpha")
    ]
    assert f"{min(alphas):.1f} %" in text
    assert groups.startswith("960 groups of 4")
