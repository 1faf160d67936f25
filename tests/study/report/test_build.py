"""Everything shown comes from records, and a difference is noticed."""

from pathlib import Path

import pandas as pd
import pytest
from record_factory import RUN, make_record

from gkp.study.report import build as report
from gkp.study.report import readme
from gkp.study.runs.store import Store

README = "# Title\n\n<!-- generated:table:method -->\nold\n<!-- end -->\n\nText.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    record = make_record(suite="method")
    record["provenance"]["data"] = {"images": 100, "official_size": 120}
    Store(tmp_path).write(record)
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
    record["checkpoints"]["last"]["metrics"]["benign"]["accuracy"] = 0.89
    Store(root).write(record)
    assert "+| l1" in report.check(root)


def test_text_outside_the_blocks_is_left_alone(root: Path) -> None:
    write(root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:table:method -->\n| method")
    assert text.endswith("<!-- end -->\n\nText.\n")


def test_an_unknown_block_is_named(root: Path) -> None:
    (root / "README.md").write_text(README.replace("table:method", "tables"))
    with pytest.raises(ValueError, match="'tables'"):
        report.check(root)


def test_the_verdict_block_has_every_statement_with_both_sides() -> None:
    frame = pd.DataFrame([["it is free", "0.9 s", "4.1 times", "one machine", "04_cost"]])
    assert readme.statements(frame) == (
        "- ***it is free***\n  - for: 0.9 s\n  - against: 4.1 times\n"
        "  - one machine; [04_cost](notebooks/04_cost.ipynb)\n"
    )


def test_the_claims_block_shows_status_and_numbers(root: Path) -> None:
    block = readme.block("claims", Store(root), report.verdicts(root))
    assert "| OK | T1 | s" in " ".join(block.split())
    assert "90.00 (n=1)" in block
    assert "- Statements about our networks and our code: **1 of 1 claims hold, 0 miss, 0 are open**" in block
    assert "**0 of 0 claims hold" in block  # none is of the paper's own numbers
    assert "<details>\n<summary>All of them, expected and ours</summary>\n\n|" in block
    assert block.endswith("|\n\n</details>\n")


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


def test_the_readme_of_the_repository_shows_what_the_records_give() -> None:
    assert report.check(".") == ""


def test_the_suites_of_the_readme_say_what_is_recorded(tmp_path: Path) -> None:
    table = readme.suites_table(Store(tmp_path)).set_index("suite")
    assert table.loc["cifar10-resnet20-selection", "records"] == "0 of 2"
    assert table.loc["cost", "records"] == "0 of 4"
    assert table.loc["digits", "records"] == "made live"
    committed = readme.suites_table(Store(".")).set_index("suite")
    assert committed.loc["cifar10-resnet20-selection", "records"] == "2 of 2"
    assert "records" not in readme.suites_table()


def test_every_suite_with_comparisons_has_a_page_of_details() -> None:
    texts = report.generate(".")
    page = texts[Path("figures/cifar10-resnet20-short/details.md")]
    assert page.startswith("# CIFAR-10, ResNet-20")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## Points against {control}; McNemar's exact test on the same images, Holm-corrected"
        for control in ("unpruned + fine-tune", "unpruned", "sr-gkp")
    ]
    assert "paired by seed" in texts[Path("figures/cifar10-resnet20-seeds/details.md")]
    assert "batch 64: over unpruned" in texts[Path("figures/cost/details.md")]


def test_figures_below_figures_are_those_that_are_drawn_and_no_more() -> None:
    """An old figure would stay for ever: nothing compares pictures."""
    names = {path.stem for path in Path("figures").glob("*/*.png")}
    assert names == {"differences", "trainings", "epsilon", "ladder", "choices"}
    for path in Path("figures").rglob("*.png"):
        assert path.with_suffix(".pdf").exists()
    assert Path("figures/verdict.png").exists()
