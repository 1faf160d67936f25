"""The README's table of findings: answers follow from claims, sizes from records."""

from pathlib import Path

import pandas as pd
import pytest
from pages_factory import committed_evidence, verdict
from record_factory import make_record

from gkp.study.analysis import seeds
from gkp.study.analysis.labels import CONTROL
from gkp.study.report.pages import findings
from gkp.study.report.pages.evidence import Evidence, answer, compact
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store


@pytest.fixture(scope="module")
def committed() -> Evidence:
    return committed_evidence()


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        (["OK", "OK"], "yes"),
        (["MISS"], "no"),
        (["OPEN", "OPEN"], "open"),
        (["OPEN", "MISS", "OPEN", "OK"], "1 yes, 1 no, 2 open"),
        (["MISSING"], "no record"),
    ],
)
def test_an_answer_counts_what_differs(statuses: list[str], said: str) -> None:
    assert answer([verdict("A1", status) for status in statuses]) == said


def test_points_have_true_minus_signs_and_an_interval() -> None:
    assert findings.points_text(verdict("A", "MISS", (-1.0, -3.0), (-3.5, 0.5))) == "−2.00 (−3.50 to +0.50) A"
    assert findings.points_text(verdict("A", "MISSING", ())) == "no record"
    assert findings.span((-1.24, -20.3)) == "−20.3 to −1.2"


def test_a_claim_that_is_not_there_is_named(committed: Evidence) -> None:
    with pytest.raises(ValueError, match="has no claim 'Q99'"):
        committed.verdict("Q99")


def test_a_difference_is_judged_on_the_same_images(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for method, correct in (("sr-gkp", 60), ("l1", 90)):
        run = Run("digits", "resnet8", method, weights="resnet8", rate=0.4375)
        store.write(make_record(run, correct=correct))
    evidence, labels = Evidence(store), ("sr-gkp (untuned)", "l1 (untuned)")
    behind = evidence.difference("small", "benign", labels[1], labels[0])
    ahead = evidence.difference("small", "benign", labels[0], labels[1])
    assert (behind.status, ahead.status) == ("MISS", "OK")
    assert behind.ours == pytest.approx(-30)
    assert ahead.interval == pytest.approx([-bound for bound in reversed(behind.interval)])
    assert evidence.difference("small", "fgsm", labels[1], labels[0]).status == "MISSING"


def test_questions_have_sizes_and_notebooks_that_exist_and_are_linked_once(committed: Evidence) -> None:
    lines, linked = findings.findings(committed).splitlines(), set[str]()
    assert len(lines) == 2 + 13
    for line in lines[2:]:
        question, said, size, n, notebook = (cell.strip() for cell in line.strip("|").split(" | "))
        assert question.endswith("?")
        assert said
        assert any(character.isdigit() for character in size)
        assert n[0].isdigit()
        number, _, path = notebook.lstrip("[").partition("](")
        assert (number in linked) == (not path)
        assert not path or Path(path.rstrip(")")).is_file()
        linked.add(number)


def test_a_difference_that_is_a_claim_is_that_claim(committed: Evidence) -> None:
    claimed = committed.difference(findings.SEEDS_20, findings.HEADLINE, "unpruned + fine-tune")
    assert claimed is committed.verdict("Y2")
    assert findings.points_text(claimed).endswith(") Y2")
    asked = Evidence(committed.store).difference(findings.SEEDS_20, findings.HEADLINE, "unpruned + fine-tune")
    assert (asked.claim.id, asked.values, asked.interval) == ("", claimed.values, claimed.interval)


def test_the_table_shows_what_claims_say(committed: Evidence) -> None:
    table = findings.findings(committed)
    for name in ("Y2", "Y4", "Y8", "L17", "E3", "Z11", "Z13"):
        assert findings.points_text(committed.verdict(name)) in table, name
    # These are about one training: a row about several is not that claim.
    several = seeds.in_common(committed.comparison(findings.LONG_56), ("sr-gkp", CONTROL)) > 1
    for name in ("L1", "L2", "L5"):
        assert (findings.points_text(committed.verdict(name)) in table) != several, name


def test_a_compact_table_is_the_same_table() -> None:
    frame = pd.DataFrame({"a long title": ["x", "yy"], "b": ["1", "2"]})
    assert compact(frame) == "| a long title | b |\n|:--|:--|\n| x | 1 |\n| yy | 2 |\n"
