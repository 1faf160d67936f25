"""Ratios of speed: from times to a row, from records to tables, to the page and the figure."""

from pathlib import Path

import pytest

from benchmarks import ratios
from gkp.study.analysis.method import speed
from gkp.study.report import fact_plots
from gkp.study.report.pages.blocks import measured
from gkp.study.runs.provenance import provenance
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

TIMES = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 6.0, 8.0]}  # ratios 2, 3, 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [
        ratios.row("an attack", TIMES, "ours", "theirs", goal=1.5),
        ratios.row("another", TIMES, "theirs", "ours", goal=0.6),
        ratios.row("a third", TIMES, "ours", "theirs"),
    ]
    Store(tmp_path).write(Fact.of("attacks", speed.SUITE, {"rows": rows, "threads": 1}, provenance("cpu")))
    return tmp_path


def test_a_row_pairs_the_rounds() -> None:
    row = ratios.row("an attack", TIMES, "ours", "theirs")
    assert (row["seconds"], row["against_seconds"]) == (2.0, 6.0)
    assert (row["low"], row["ratio"], row["high"]) == (2.0, 2.0, 2.5)  # not 6 / 2, the ratio of the medians


def test_the_table_says_whether_a_goal_is_met(root) -> None:
    table = speed.ratios_text(speed.ratios(root))
    assert list(table["goal"]) == ["1.5: met", "0.6: missed", "–"]
    assert table["times as fast"].iloc[0] == "2.00 (2.00 to 2.50)"
    assert table["against"].iloc[0] == "theirs, 6.00 s"
    assert speed.ratios(root, "training").empty


def test_the_page_has_the_table_or_the_command(root, tmp_path) -> None:
    assert "2.00 (2.00 to 2.50)" in measured(Store(root), "attacks")
    assert "1 thread of cpu" in measured(Store(root), "attacks")
    assert measured(Store(root), "training") == "Not measured yet: `python -m benchmarks training`.\n"


def test_a_missed_goal_is_hollow(root) -> None:
    (axes,) = fact_plots.speedups(speed.ratios(root)).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False]
