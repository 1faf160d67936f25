"""Ratios of speed: from times to a row, from records to tables, to the page and the figure."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import __main__ as main
from benchmarks import attacks, deployment, ratios
from gkp.deploy import runtimes
from gkp.study.analysis.method import speed
from gkp.study.report.pages.blocks import measured
from gkp.study.report.plots import times
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
    assert "at the peak" not in table
    assert table["times as fast"].iloc[0] == "2.00 (2.00 to 2.50)"
    assert table["against"].iloc[0] == "theirs, 6.00 s"
    assert speed.ratios(root, "training").empty


def test_other_runs_of_a_network_stand_beside_the_newest(tmp_path: Path, monkeypatch) -> None:
    milliseconds = {"dense": [4.0, 4.0], "sr-gkp": [2.0, 2.0], "l1": [5.0, 5.0]}

    def found(name: str, batch: int, runtime: str, **options: int) -> dict:
        return {"network": name, "batch": batch, "runtime": runtime, "layers": [], "times": milliseconds}

    monkeypatch.setattr(deployment, "measure", found)
    monkeypatch.setattr(deployment, "machine", lambda threads: {"operations": 1e9, "bytes": 1e12})
    monkeypatch.setattr(deployment, "least_ratio", lambda name, batch, groups, machine: 0.8)
    for dense in (4.0, 6.0, 3.0):
        milliseconds["dense"] = [dense, dense]
        for runtime in runtimes.SUFFIXES:
            parts = {**main.of_deployment(1, "resnet50", 1, runtime, tmp_path), "threads": 1}
            Store(tmp_path).write(Fact.of("deployment", speed.SUITE, parts, provenance("cpu")))
    table = speed.text(tmp_path, "deployment")
    assert len(table) == 6
    assert set(table["times as fast"]) == {"1.50", "0.60"}
    assert set(table["in other runs"]) == {"2.00, 3.00", "0.80, 1.20"}
    assert list(speed.roofline_text(tmp_path)["groups"]) == [2, 8]


def test_what_the_peak_allows_stands_beside_the_ratio(tmp_path: Path) -> None:
    rows = [ratios.row(what, TIMES, "ours", "theirs") for what in ("an attack", "training")]
    rows[0]["at_peak"] = 2.5
    Store(tmp_path).write(Fact.of("attacks", speed.SUITE, {"rows": rows, "threads": 1}, provenance("cpu")))
    assert list(speed.text(tmp_path, "attacks")["at the peak"]) == ["2.50", "–"]


def test_an_attack_multiplies_to_the_loss_and_back_in_every_iteration() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten())
    once = 4 * 3 * 3 * 3 * 8 * 8
    assert attacks.operations(model, torch.rand(5, 3, 8, 8), iterations=10) == 2 * once * 2 * 5 * 10


def test_the_page_has_the_table_or_the_command(root, tmp_path) -> None:
    assert "2.00 (2.00 to 2.50)" in measured(Store(root), "attacks")
    assert "1 thread of cpu" in measured(Store(root), "attacks")
    assert measured(Store(root), "training") == "Not measured yet: `python -m benchmarks training`.\n"


def test_a_missed_goal_is_hollow(root) -> None:
    (axes,) = times.speedups(speed.ratios(root)).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False]


def test_methods_on_one_network_share_a_row_in_their_colours() -> None:
    seconds = {"dense": [2.0, 2.0], "sr-gkp": [1.0, 1.0], "l1": [1.5, 1.5]}
    rows = [ratios.row(what, seconds, ours, "dense") for what in ("a", "b") for ours in ("sr-gkp", "l1")]
    frame = pd.DataFrame([{"part": "deployment", "earlier": None, **row} for row in rows])
    (axes,) = times.speedups(frame).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    dots = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_ydata())]
    assert [dot.get_ydata()[0] for dot in dots] == [0, 0, 1, 1]
    assert len({dot.get_color() for dot in dots}) == 2


def test_parts_without_ratios_have_tables_of_their_own(root) -> None:
    shares = [
        {
            "beta": "exact",
            "share": 0.05,
            "sets": 3.25,
            "eq3_percent": 96.04,
            "eq3_least_percent": 90.0,
            "changed_percent": 12.0,
        }
    ]
    percent = {"exact": [0.0, 0.5], "reference": [20.0, 30.0]}
    gaps = {
        "layers": [{"layer": "a", "proved": 1, "groups": 2, "gap_percent": percent}],
        "proved": 1,
        "groups": 2,
        "mean_gap_percent": {"exact": 0.25, "reference": 25.0},
    }
    store = Store(root)
    before = speed.ratios(root)
    for name, found in (("sharing", {"shares": shares}), ("optimality", gaps)):
        store.write(Fact.of(name, speed.SUITE, found | {"threads": 1}, provenance("cpu")))
    assert speed.ratios(root).equals(before)
    assert list(speed.text(root, "sharing").iloc[0]) == [
        "beta of Eq. 3",
        "0.05",
        "3.2",
        "96.0 %",
        "90.0 %",
        "12.0 %",
    ]
    row = speed.text(root, "optimality").iloc[-1]
    assert row["proved"] == "1 of 2 groups"
    assert row["beta of Eq. 3"] == "0.25 % (0.00 to 0.50)"
    assert row["beta of the released code"] == "25.00 % (20.00 to 30.00)"
    assert "25.00 %" in measured(store, "optimality")


def test_the_figure_of_seconds_has_a_line_for_each_number_of_groups(root) -> None:
    rows = [
        {"width": w, "groups": g, "median": w * g / 1e3, "least": 0, "most": 1}
        for w in (16, 64)
        for g in (2, 8)
    ]
    Store(root).write(
        Fact.of("search", speed.SUITE, {"by_size": rows, "rows": [], "threads": 1}, provenance("cpu"))
    )
    (axes,) = times.search_seconds(speed.by_size(root)).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {"2": [0.032, 0.128], "8": [0.128, 0.512]}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
