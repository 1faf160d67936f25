"""What the longest trainings say: with one, two or three seeds, before and after the strong attacks."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages_factory import committed_evidence
from record_factory import edited, measured

from gkp.study.report import build
from gkp.study.report.pages import answer, details, findings, longer
from gkp.study.report.pages.evidence import Evidence
from gkp.study.report.pages.findings import LONG_56
from gkp.study.runs import protocols
from gkp.study.runs.record import Record
from gkp.study.runs.store import Store

SENTENCES = 7


@pytest.fixture(scope="module")
def committed() -> Evidence:
    return committed_evidence()


def copied(folder: Path) -> Store:
    """The committed records in a folder of their own, whose longest trainings may be changed.

    These are without the strong attacks, and of seed 0.
    """
    (folder / "results" / LONG_56).mkdir(parents=True)
    for place in Path("results").iterdir():
        if place.name != LONG_56 and place.is_dir():
            os.symlink(place.absolute(), folder / "results" / place.name)
    os.symlink(Path("expected").absolute(), folder / "expected")
    store = Store(folder)
    for record in Store(".").files(LONG_56):
        if not isinstance(record, Record):
            store.write(record)
        elif record.run.seed == 0:
            store.write(weakly(record))
    return store


def again(record: Record, seed: int) -> Record:
    """The same network as another seed would have it: each answer of the images moved on by the seed."""
    run = replace(record.run, seed=seed)
    changes = ((("hash",), run.hash), (("stem",), run.stem), (("config", "seed"), seed))
    kept = {}
    for rule, checkpoint in record.kept.items():
        metrics = {
            name: replace(measured(metric.attack, metric.right.roll(seed)), asked_n=metric.asked_n)
            for name, metric in checkpoint.metrics.items()
        }
        kept[rule] = replace(checkpoint, metrics=metrics, sha256=f"{checkpoint.sha256[:60]}{seed}")
    return replace(edited(record, *changes), kept=kept)


def weakly(record: Record) -> Record:
    """Without the strong attacks on the last epoch."""
    last, strong = record.kept["last"], {entry.attack.name for entry in protocols.strong()}
    metrics = {name: metric for name, metric in last.metrics.items() if name not in strong}
    return replace(record, kept={**record.kept, "last": replace(last, metrics=metrics)})


def attacked(record: Record) -> Record:
    """With the strong attacks on the last epoch, each leaving every third image."""
    more = {
        entry.attack.name: measured(entry.attack, torch.arange(entry.n or 1) % 3 == 0)
        for entry in protocols.strong()
    }
    last = record.kept["last"]
    return replace(record, kept={**record.kept, "last": replace(last, metrics={**last.metrics, **more})})


@pytest.mark.parametrize(("count", "strong"), [(1, True), (2, False), (3, True)])
def test_sentences_follow_more_seeds_and_attacks(tmp_path: Path, count: int, strong: bool) -> None:
    store = copied(tmp_path)
    for record in list(store.all(LONG_56)):
        for seed in range(1, count):
            store.write(again(record, seed))
    for record in store.all(LONG_56) if strong else ():
        store.write(attacked(record))
    evidence = Evidence(store, build.verdicts(tmp_path), build.waiting(tmp_path))
    text = longer.longer(evidence)
    assert text.count("\n") == SENTENCES + strong
    assert text.count("AutoAttack 0.5/255") == strong * (1 + len(longer.others()))  # the control and each
    seeds = f"ResNet-56, 57 epochs, {count} seed{'s' * (count > 1)}"
    assert seeds in text
    assert seeds in answer.first_lines(evidence)
    assert f"| {count} seed{'s' * (count > 1)}; 9,979" in findings.findings(evidence)
    assert ("cannot say how far another training" in text) == (count < 3)
    assert not re.search(r"\bnan\b|no record|without a record", text)
    page = details.details_of(LONG_56, store)
    assert ("Under the strongest attacks" in page) == strong
    assert "Whether the methods rank alike" in page
    assert ("Student's 95 % intervals" in page) == (count >= 3)
    unexpected = [v.claim.id for v in evidence.judged if not v.as_expected]
    # The claims about these networks are about one training, but for E, which take all that both suites have;
    # J are about the strong attacks.
    assert [name for name in unexpected if name[0] not in "EJ"] == []


def test_every_sentence_is_there_and_counts_add_up(committed: Evidence) -> None:
    text = longer.longer(committed)
    assert text.count("\n- ") >= SENTENCES - 1
    shown, same, other, away = map(
        int,
        re.search(
            r"Of (\d+) diff.*, (\d+) are so .* and (\d+) the other way; (\d+) are not significant",
            text,
        ).groups(),
    )
    assert shown == same + other + away
    alike, count = map(int, re.search(r"(\d+) of (\d+) comparisons come out", text).groups())
    long, attacks = committed.comparison(LONG_56), findings.differences(committed, LONG_56)
    met = {a: {r.label for r in long.trained if a in r.metrics("best-test")} for a in attacks}
    compared = [a for a, labels in met.items() if labels == {r.label for r in long.trained}]
    assert count == 5 * len(compared)
    assert text.count("beside ") >= count - alike


def test_the_repeated_attacks_are_those_of_the_fact(committed: Evidence) -> None:
    facts = committed.store.fact(LONG_56, "repeated").facts
    assert f"{sum(facts['differ'].values())} of {facts['answers'] * 4:,} answers" in longer.attacked_again(
        committed
    )
    assert facts["damaged"] == facts["self_checks_differ"] == 0
    assert longer.attacked_again(Evidence(Store("nowhere"))) == ""
