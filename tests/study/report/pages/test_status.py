"""The status of the replication: every claim is counted once, and the counts add up."""

import re

import pytest

from gkp.study.analysis.claims import Claim, Verdict
from gkp.study.report import build
from gkp.study.report.pages import status
from gkp.study.report.pages.evidence import Evidence
from gkp.study.runs.store import Store


def verdict(name: str, found: str, **ours: str) -> Verdict:
    expected = "ok" if found == "MISSING" else found.lower()
    bound = {"at_least": 0.0} if "against" in ours else {"expect": 1.0}
    place = {"suite": "s", "attack": "a", **ours}
    why = "" if expected == "ok" else "because"
    claim = Claim(name, "statement", "%", "w", place, verdict=expected, explanation=why, **bound)
    return Verdict(claim, (1.0,), found)


JUDGED = [
    verdict("C1", "OK"),
    verdict("P-resnet56-unpruned-benign", "MISS"),
    verdict("W1", "OK"),
    verdict("N2", "MISS"),
    verdict("F1", "OPEN", label="sr-gkp", against="unpruned"),
    verdict("F2", "MISS", label="sr-gkp", against="unpruned + fine-tune"),
    verdict("F3", "OK", label="sr-gkp", against="l1"),
    verdict("K3", "OK", label="sr-gkp", against="sr-gkp (alpha-0.0)"),
    verdict("M1", "MISS", label="sr-gkp", against="l1", rule="best-test"),
    verdict("K8", "OK", label="l1", against="sr-gkp"),
    verdict("K9", "OPEN", label="l1", against="sr-gkp"),
    verdict("A1", "MISS"),
    verdict("D1", "OK", suite="digits"),
]


@pytest.fixture(scope="module")
def committed() -> Evidence:
    return Evidence(Store("."), build.verdicts("."), build.waiting("."))


def test_every_claim_has_one_group_and_live_ones_have_none() -> None:
    groups = status.grouped(JUDGED)
    assert {name: [v.claim.id for v in found] for name, found in groups.items()} == {
        "paper": ["C1", "P-resnet56-unpruned-benign", "W1"],
        "release": ["N2"],
        "differences": ["F1", "F2", "F3", "K3", "M1"],
        "statements": ["K8", "K9"],
        "assumptions": ["A1"],
    }


def test_printed_numbers_count_those_without_a_record() -> None:
    frame = status.printed(JUDGED[:4], {"cifar10-resnet32": 5, "cifar10-vgg16": 2}).set_index("printed")
    assert list(frame.loc["paper: accuracies of Tables 9 to 12, a row per method"]) == [0, 1, 7, 8]
    assert list(frame.loc["sum"]) == [2, 2, 7, 11]


def test_differences_are_counted_by_direction() -> None:
    frame = status.directions(status.grouped(JUDGED)["differences"]).set_index("SR-GKP, beside")
    assert list(frame.loc["the untouched network"]) == [0, 0, 1, 1]
    assert list(frame.loc["the equally fine-tuned network"]) == [0, 1, 0, 1]
    assert list(frame.loc["other methods"]) == [1, 0, 0, 1]
    assert list(frame.loc["its own variants"]) == [1, 0, 0, 1]
    assert list(frame.loc[status.CHOSEN]) == [0, 1, 0, 1]
    assert list(frame.loc["sum"]) == [2, 2, 1, 5]


def test_differences_and_further_statements_are_counted_by_how_they_come_out() -> None:
    text = status.status(Evidence(Store("."), JUDGED, {}))
    assert "Of 5 differences of SR-GKP" in text
    assert "shown ahead in 2 and behind in 2; 1 are open" in text
    assert "Of 3 further statements" in text
    assert "1 hold, 1 are refuted and 1 are open" in text
    assert "4 + 5 + 3 = 12 claims" in text


def test_the_committed_counts_add_up(committed: Evidence) -> None:
    text = status.status(committed)
    parts, total = re.search(r"In sum ([\d+ ]+) = (\d+) claims", text).groups()
    assert sum(map(int, parts.split("+"))) == int(total)
    assert int(total) == len([v for v in committed.judged if v.claim.ours["suite"] != "digits"])
    for whole, *kinds in re.findall(r"Of (\d+) \D+ (\d+) \D+ (\d+)\D+ (\d+) (?:are|is) open", text):
        assert int(whole) == sum(map(int, kinds))
    tables = text + status.compared(committed)
    rows = re.findall(r"^\| (.*?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", tables, flags=re.MULTILINE)
    assert len(rows) == 14
    assert all(sum(map(int, row[1:4])) == int(row[4]) for row in rows)
    printed, differences = rows[:7], rows[8:13]
    for part, sums in ((printed, rows[7]), (differences, rows[13])):
        assert [sum(int(row[place]) for row in part) for place in range(1, 5)] == [int(n) for n in sums[1:]]


def test_all_claims_stand_on_the_page_once(committed: Evidence) -> None:
    text = "".join(status.all_of(committed, name) for name in status.GROUPS)
    ids = re.findall(r"^\| (?:OK|MISS|OPEN)\s+\| (\S+)", text, flags=re.MULTILINE)
    assert sorted(ids) == sorted(v.claim.id for v in committed.judged if v.claim.ours["suite"] != "digits")
    with pytest.raises(ValueError, match="no group of claims 'ours': use one of paper"):
        status.all_of(committed, "ours")


def test_a_difference_claims_no_less_than_zero(committed: Evidence) -> None:
    """ "Ahead" and "behind" are what OK and MISS mean only where the bound is zero."""
    for found in status.grouped(committed.judged)["differences"]:
        assert found.claim.at_least == 0, found.claim.id
        assert found.claim.tolerance == 0, found.claim.id


def test_a_report_of_few_claims_ends_with_a_line_each_and_one_of_many_with_a_table():
    few = status.closing(JUDGED[:3], {})
    assert [line.split()[0] for line in few] == ["[OK]", "[MISS]", "[OK]", "3"]
    unexpected = verdict("C9", "MISSING")
    many = [verdict(f"C{number}", "OK") for number in range(status.FEW)] + [unexpected]
    lines = status.closing(many, {"s": 4})
    assert f"| {len(many) - 1} of {len(many)} " in lines[2].replace("  ", " ")
    assert [line for line in lines if line.startswith("[")] == [unexpected.line]
    assert lines[-2] == f"{len(many) - 1} of {len(many)} claims came out as expected"
    assert lines[-1].startswith("4 numbers of the paper's tables wait for records: 4 of s")
