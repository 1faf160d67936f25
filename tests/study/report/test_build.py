"""Everything shown comes from records, and a difference is noticed."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from record_factory import RUN, edited, make_record, with_right

from gkp.attacks import Attack
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.report import build as report
from gkp.study.report.pages import blocks
from gkp.study.report.pages.evidence import Evidence
from gkp.study.runs.store import Store

REPOSITORY = Path(__file__).parents[3]
README = "# Title\n\n<!-- generated:table:method -->\nold\n<!-- end -->\n\nText.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    about = {"dataset": "digits", "images": 100, "official_size": 120}
    Store(tmp_path).write(edited(make_record(suite="method"), (("provenance", "data"), about)))
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "claims.toml").write_text(
        '[[claim]]\nid = "T1"\nstatement = "s"\nunit = "%"\nwhy = "w"\nexpect = 90\n'
        'ours = { suite = "method", attack = "benign" }\n'
    )
    return tmp_path


def write(root: Path) -> None:
    report.write(root, figures=False)


def test_check_fails_before_and_agrees_after_writing(root: Path) -> None:
    assert "-old" in report.check(root)
    write(root)
    assert report.check(root) == ""


def test_a_number_changed_by_hand_is_noticed(root: Path) -> None:
    write(root)
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("90.00", "91.00"))
    difference = report.check(root)
    assert "-| l1" in difference
    assert "91.00" in difference
    table = root / "figures" / "method" / "results.csv"
    table.write_text(table.read_text().replace("0.9", "0.8"))
    assert "results.csv (shown)" in report.check(root)


def test_a_changed_record_is_noticed(root: Path) -> None:
    write(root)
    record = Store(root).find(RUN)
    right = torch.arange(record.metrics()["benign"].n) < 89
    Store(root).write(with_right(record, Attack("none"), right))
    assert "+| l1" in report.check(root)


def test_records_with_the_papers_attacks_alone_are_reported(tmp_path: Path) -> None:
    """As on a machine where a suite was stopped before its attacks in pixels."""
    suite, paper = "cifar10-resnet56-57", {"benign", *PROTOCOL}
    (tmp_path / "expected").symlink_to(REPOSITORY / "expected")
    for record in Store(REPOSITORY).all(suite):
        if record.run.seed or record.label in ("fpgm", "l1-a", "l1-b"):  # three networks will do
            continue
        kept = record.kept["last"]
        metrics = {name: metric for name, metric in kept.metrics.items() if name in paper}
        Store(tmp_path).write(record.with_kept("last", replace(kept, metrics=metrics, self_check=())))
    report.write(tmp_path, suite)
    details = (tmp_path / "figures" / suite / "details.md").read_text()
    assert "PGD-3" in details
    assert "PGD-10" not in details


def test_every_page_under_figures_is_made_again() -> None:
    """Those of suites too that only attack other suites' networks, or hold facts alone."""
    tables = {path.parent.name for path in (REPOSITORY / "figures").glob("*/*.md")}
    assert tables <= set(report.measured_suites(Store(REPOSITORY)))


def test_text_outside_the_blocks_is_left_alone(root: Path) -> None:
    write(root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:table:method -->\n| method")
    assert text.endswith("<!-- end -->\n\nText.\n")


@pytest.mark.parametrize("page", ["README.md", "docs/more.md"])
def test_an_unknown_block_is_named_with_its_page(root: Path, page: str) -> None:
    (root / "docs").mkdir()
    (root / page).write_text(README.replace("table:method", "tables"))
    with pytest.raises(ValueError, match=f"{page}: no generated block 'tables'; use .*table"):
        report.check(root)


def test_pages_of_docs_are_filled_and_checked_where_they_have_blocks(root: Path) -> None:
    (root / "docs").mkdir()
    (root / "docs" / "results.md").write_text(README)
    (root / "docs" / "prose.md").write_text("Nothing generated.\n")
    assert {"README.md", "docs/results.md"} <= {path.as_posix() for path in report.generate(root)}
    assert Path("docs/prose.md") not in report.generate(root)
    write(root)
    assert "90.00" in (root / "docs" / "results.md").read_text()
    assert report.check(root) == ""
    page = root / "docs" / "results.md"
    page.write_text(page.read_text().replace("90.00", "91.00"))
    assert "docs/results.md (shown)" in report.check(root)
    assert Path("docs/results.md") not in report.generate(root, "method")


def test_the_verdict_block_has_every_statement_with_both_sides() -> None:
    frame = pd.DataFrame([["it is free", "0.9 s", "4.1 times", "one machine", "04_cost"]])
    assert blocks.statements(frame, Evidence(Store("."), up="../").notebook) == (
        "- ***it is free***\n  - for: 0.9 s\n  - against: 4.1 times\n"
        "  - one machine; [04_cost](../notebooks/04_cost.ipynb)\n"
    )


def test_the_last_lines_are_those_of_the_report(root: Path) -> None:
    evidence = Evidence(Store(root), report.verdicts(root), {"method": 7})
    first, second = blocks.last_lines(evidence).splitlines()[1:-1]
    assert first == "1 of 1 claims came out as expected"
    assert second == "7 numbers of the paper's tables wait for records: 7 of method"
    assert len(blocks.last_lines(evidence).splitlines()) == blocks.LAST_LINES + 2


def test_live_digits_are_judged_when_asked_for_or_present(root: Path) -> None:
    claims = root / "expected" / "claims.toml"
    claims.write_text(
        claims.read_text() + claims.read_text().replace("T1", "D1").replace('"method"', '"digits"')
    )
    assert [verdict.claim.id for verdict in report.verdicts(root)] == ["T1"]
    missing = report.verdicts(root, "digits")
    assert [(verdict.claim.id, verdict.status) for verdict in missing] == [("D1", "MISSING")]
    Store(root).write(make_record(suite="digits"))
    assert [verdict.status for verdict in report.verdicts(root)] == ["OK", "OK"]
    assert not any("digits" in str(path) for path in report.generate(root))


def test_the_pages_of_the_repository_show_what_the_records_give() -> None:
    assert report.check(".") == ""


def test_the_suites_say_what_is_recorded(tmp_path: Path) -> None:
    table = blocks.suites_table(Store(tmp_path)).set_index("suite")
    assert table.loc["cifar10-resnet20-selection", "complete"] == "0 of 2"
    assert table.loc["cost", "complete"] == "0 of 4"
    assert table.loc["digits", "complete"] == "made live"
    committed = blocks.suites_table(Store(".")).set_index("suite")
    assert committed.loc["cifar10-resnet20-selection", "complete"] == "2 of 2"
    assert "complete" not in blocks.suites_table()
