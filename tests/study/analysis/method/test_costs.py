"""Costs as tables: units, missing measurements, ratios."""

from pathlib import Path

import pytest
from many_records import comparison, counted
from record_factory import edited
from search_facts import FACTS

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.method import costs as tables
from gkp.study.facts.ablations import ALL
from gkp.study.report.plots import search, times
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

PRINTED = Path(__file__).parents[4] / "expected" / "paper_times.csv"


def timing(seconds):
    return {"seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "ratio": seconds / 0.01}


BATCH = {"unpruned": timing(0.01), "pruned, grouped": timing(0.02)}
LATENCY = {"threads": 1, "networks": {"resnet20": {"batch 1": BATCH, "batch 64": BATCH}}}


def fact(label, facts):
    return Fact.of(label, "cost", {"threads": 2, **facts}, {"device": "cpu: a model"})


def test_times_beside_the_papers(tmp_path):
    missing = tables.times_text(tmp_path, PRINTED).set_index("network")
    assert set(missing["SR-GKP, ours"]) == {tables.MISSING}
    own = {
        "weights": "akamaster",
        "layers": 30,
        "seconds": 1.5,
        "least": 1,
        "most": 2,
        "grouping_seconds": 0.01,
    }
    record = fact("pruning-time", {"networks": {"resnet32": own}})
    Store(tmp_path).write(record)
    frame = tables.times_text(tmp_path, PRINTED).set_index("network")
    assert frame.loc["ResNet-32", ["SR-GKP, paper", "SR-GKP, ours", "of these, snaking"]].tolist() == [
        "11m36s",
        "1.50 s",
        "10 ms",
    ]
    assert frame["SR-GKP, ours"]["ResNet-56"] == tables.MISSING
    assert "VGG-16" not in frame.index  # neither printed nor measured
    assert tables.measured_on(record) == "2 threads of cpu: a model"


def test_the_printed_times_are_the_printed_seconds():
    import pandas as pd

    for row in pd.read_csv(PRINTED).itertuples():
        parts = row.printed.rstrip("s").replace("h", ":").replace("m", ":").split(":")
        assert sum(int(part) * 60**power for power, part in enumerate(reversed(parts))) == row.seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0041, "4.1 ms"), (0.0123, "12 ms"), (0.85, "0.85 s"), (12.34, "12.3 s")]
)
def test_seconds_have_a_unit(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_a_step_is_the_median_of_calls_or_else_that_of_the_run():
    records = comparison(("l1", "sr-gkp", "sfp"))
    frame = tables.steps(records, {"methods": {"l1": {"seconds": 0.02}}}).set_index("method")
    assert frame["seconds"].to_dict() == {"sr-gkp": 0.5, "l1": 0.02}  # SFP prunes in training
    assert frame["warm"].to_dict() == {"sr-gkp": False, "l1": True}
    assert not tables.steps(records, None)["warm"].any()


def test_what_is_left_is_counted_in_both_conventions():
    before = counted(40_000_000, 300_000)
    records = [edited(record, (("cost", "before"), before)) for record in comparison(("l1",))]
    frame = tables.left(Comparison(records))
    assert frame["label"].tolist() == ["l1"]
    assert frame["macs_usual"].tolist() == [pytest.approx(57.5)]
    assert frame["params_paper"].tolist() == [pytest.approx(50)]


def test_counts_mark_what_differs():
    row = {"network": "vgg16", "rate": 0.0, "macs": "2", "macs_paper": "1", "macs_equal": False}
    row |= {"params": "3", "params_paper": "3", "params_equal": True}
    frame = tables.counts_text({"rows": [row]})
    assert frame.iloc[0].tolist() == ["VGG-16", "0 %", "1", "2 ≠", "3", "3"]


def test_latency_is_shown_over_the_unpruned_network():
    frame = tables.latency_text(LATENCY)
    assert frame["batch 64: over unpruned"].tolist() == ["1.00 (0.90 to 1.10)", "2.00 (1.80 to 2.20)"]
    assert frame["batch 1: milliseconds"].tolist() == ["10.0", "20.0"]


def test_figures_show_the_facts():
    axes = times.latency(LATENCY).axes[0]
    assert "time over" in axes.get_xlabel()
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() in "os"] == pytest.approx([2, 2])
    axes = search.search_changes(FACTS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["alpha 0", "4 groups"]
    bars = [float(segment[1, 0]) for segment in axes.collections[0].get_segments()]
    shared = (FACTS["searches"][t]["networks"][ALL]["shared_percent"] for t in ("alpha 0", "4 groups"))
    assert bars == pytest.approx([100 - percent for percent in shared])  # changed, the least first
    assert axes.get_xscale() == "log"
    assert "(%, log axis)" in axes.get_xlabel()
