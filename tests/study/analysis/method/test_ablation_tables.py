"""The ablations as tables: what has no record says so, and the paper's rows are those printed."""

from pathlib import Path

import numpy as np
import pytest
from many_records import a_record
from search_facts import FACTS

from gkp.study.analysis.method import ablation_tables as tables
from gkp.study.runs import suites
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

EXPECTED = Path(__file__).parents[4] / "expected"
SUITE = "cifar10-resnet20-ablations"


@pytest.fixture
def root(tmp_path):
    """Untuned records of three variants: the default, one that equals it, one that does not."""
    store = Store(tmp_path)
    for run in suites.get(SUITE).runs:
        if not run.prunes or (run.label, run.seed) == ("sr-gkp", 0):
            store.write(a_record(run, suite=SUITE))
        if run.label in ("sr-gkp (untuned)", "sr-gkp (alpha-1.0-untuned)", "sr-gkp (groups-4-untuned)"):
            store.write(a_record(run, suite=SUITE, sha256="other" if "groups" in run.label else "same"))
    return tmp_path


def test_networks_say_what_is_not_recorded_and_what_is_the_default(root):
    frame = tables.networks_text(SUITE, root, []).set_index("network")
    assert list(frame.index[:3]) == ["unpruned", "unpruned + fine-tune", "sr-gkp"]
    assert frame.benign["sr-gkp (alpha-1.0)"] == "as sr-gkp"
    assert frame.benign["sr-gkp (groups-4)"] == tables.MISSING
    assert frame.benign["sr-gkp (beam_width-1)"] == tables.MISSING
    assert "±" in frame.benign["sr-gkp"]
    assert "±" in frame["untuned, benign"]["sr-gkp (groups-4)"]
    assert frame["untuned, benign"]["sr-gkp (alpha-0.0)"] == tables.MISSING
    assert len(frame.index) == len(set(frame.index))


def test_every_network_of_the_suite_has_one_row(root):
    rows = set(tables.networks_text(SUITE, root, []).network)
    assert {run.label for run in suites.get(SUITE).runs if run.recipe} <= rows
    assert not [row for row in rows if "untuned" in row]


def test_searches_in_other_groups_have_no_sets_to_compare():
    frame = tables.search_text(FACTS).set_index("search")
    assert frame["groups with the same set"].tolist() == ["8 of 8", "4 of 8", "other groups"]
    assert frame["kernels, lowest to highest network"]["alpha 0"] == "85.0 to 95.0"
    assert frame["cost of Eq. 3 (reference 100)"]["4 groups"] == "–"


def test_smoother_sets_by_width_in_ascending_order():
    frame = tables.smoother_text(FACTS)
    assert list(frame.columns[2:4]) == ["16 channels", "64 channels"]
    assert frame["least"].tolist() == ["90.0"]


def test_the_papers_rows_are_those_printed():
    selection = tables.paper_selection(EXPECTED / "paper_selection.csv")
    row = selection[(selection.network == "ResNet-56") & (selection.selection == "Least Smooth")].iloc[2]
    assert (row.benign, row["FGSM 0.1"]) == ("90.59", "26.40")
    alpha = tables.paper_alpha(EXPECTED / "paper_cifar10.csv")
    assert alpha.groupby("network").size().to_dict() == {"ResNet-32": 5, "ResNet-56": 4, "ResNet-110": 5}
    assert alpha[alpha.network == "ResNet-110"].alpha.tolist() == ["0.1", "0.25", "0.5", "0.75", "0.9"]


def test_the_papers_rows_agree_between_its_tables_but_for_one():
    """The two files hold different tables; ResNet-32's SR-GKP row is printed differently in them."""
    import pandas as pd

    one = pd.read_csv(EXPECTED / "paper_selection.csv")
    two = pd.read_csv(EXPECTED / "paper_cifar10.csv", dtype={"table": str})
    for network, table in (("ResNet-32", "9"), ("ResNet-56", "10")):
        for method, other in (("Unpruned", "Unpruned"), ("Smooth Beam Greedy (SR-GKP)", "SR-GKP")):
            a = one[(one.network == network) & (one.selection == method)].iloc[0]
            b = two[(two.table == table) & (two.method == other)].iloc[0]
            equal = all(a[column] == b[column] for column in tables.PAPER_COLUMNS)
            assert equal == ((network, other) != ("ResNet-32", "SR-GKP"))


def test_the_spread_of_alpha_and_what_chance_allows():
    row = tables.paper_alpha_spread(EXPECTED / "paper_cifar10.csv").set_index("network").loc["ResNet-56"]
    assert row["benign"].startswith(f"{94.08 - 93.72:.2f} ")
    # Four networks of 93.85 % on 10,000 images each, by drawing instead of by the studentized range.
    drawn = np.random.default_rng(0).binomial(10_000, 0.9385, size=(40_000, 4))
    chance = np.quantile(np.ptp(drawn, axis=1) / 100, 0.95)
    assert float(row["benign"].split("up to ")[1].rstrip(")")) == pytest.approx(chance, abs=0.02)


def test_a_missing_fact_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="run --suite cost"):
        tables.facts(tmp_path, "cost", "latency")
    Store(tmp_path).write(Fact.of("latency", "cost", {"x": 1}, {}))
    assert tables.facts(tmp_path, "cost", "latency") == {"x": 1}
