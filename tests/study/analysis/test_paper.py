"""The paper's rows: which are taken, and how they stand beside ours."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from many_records import START, a_record, comparison
from record_factory import with_metrics

from gkp.study.analysis import audit
from gkp.study.analysis import paper as published
from gkp.study.analysis.claims import CLAIMS
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.analysis.paper import ATTACKS
from gkp.study.report import build as report
from gkp.study.runs.store import Store
from gkp.study.runs.suites import SUITES
from gkp.study.runs.suites.recipes import SHORT_RECIPE

FGSM = PROTOCOL[0]
TABLES = Path(__file__).parents[3] / "expected" / "paper_cifar10.csv"


def test_one_row_per_method_and_network():
    frame = published.rows(TABLES)
    assert not frame.duplicated(["network", "method"]).any()
    assert set(frame.network) == {"resnet32", "resnet56", "resnet110", "vgg16"}
    own = frame[(frame.network == "resnet56") & (frame.label == "sr-gkp")].iloc[0]
    assert own["benign"] == 94.08  # the best-benign row of Table 10


def test_gain_is_pruned_minus_unpruned():
    frame = published.gain_over_unpruned(comparison(("sr-gkp",)), TABLES).set_index("network")
    assert frame.loc["ResNet-56", "benign"] == f"{94.08 - 93.24:+.2f}"
    ours = frame.loc[["ResNet-20"]]
    assert ours["compared with"].tolist() == ["unpruned (ours)", "unpruned + fine-tune (ours)"]


def test_beside_ours_needs_the_same_network():
    assert published.beside_ours(comparison(("sr-gkp",)), TABLES).empty
    run = replace(START, network="resnet56", method="sr-gkp", recipe=SHORT_RECIPE, macs_ratio=0.5625)
    record = a_record(run)
    frame = published.beside_ours(Comparison([record]), TABLES).set_index("method")
    accuracy = 100 * record.metrics()["benign"].accuracy
    assert frame.loc["SR-GKP", "benign"] == f"94.08 / {accuracy:.2f}"
    assert frame.loc["CC", "benign"].endswith("/ –")


def test_every_row_of_the_papers_tables_has_a_run_of_ours():
    from gkp.study.report.plots.style import LOOKS

    assert set(published.NAMES.values()) <= set(LOOKS)
    for network in ("resnet32", "resnet56", "resnet110", "vgg16"):
        there = {run.label for run in SUITES[f"cifar10-{network}"]().ordered()}
        assert set(published.rows(TABLES, network).label) <= there, network
    with pytest.raises(FileNotFoundError):
        published.rows("nowhere.csv")


def test_every_number_a_suite_can_reach_is_a_claim_and_waits_for_its_record(tmp_path):
    numbers = published.claims(TABLES)
    assert len({claim.id for claim in numbers}) == len(numbers) > 100
    assert {claim.ours["suite"] for claim in numbers} <= set(SUITES)
    rows = published.rows(TABLES)
    assert len(numbers) == rows[ATTACKS].notna().to_numpy().sum()
    assert {c.ours["rule"] for c in numbers if c.ours["label"] in ("gal", "rap-admm", "sfp")} == {"last"}
    own = next(c for c in numbers if c.id == "P-resnet56-sr-gkp-fgsm_0.01")
    assert (own.expect, own.ours["rule"]) == (75.89, "best-test")  # the best-benign row of Table 10

    (tmp_path / "expected").mkdir()
    (tmp_path / published.TABLES).write_bytes(TABLES.read_bytes())
    (tmp_path / CLAIMS).write_text("")
    count = sum(claim.ours["suite"] == "cifar10-resnet56" for claim in numbers)
    assert report.waiting(tmp_path, "cifar10-resnet56") == {"cifar10-resnet56": count}
    assert report.verdicts(tmp_path) == []

    store = Store(tmp_path)
    run = next(r for r in SUITES["cifar10-resnet56"]().ordered() if r.method == "sr-gkp")
    record = a_record(run, suite="cifar10-resnet56")
    record = with_metrics(record, record.metrics(), "best-test")
    store.write(record)
    assert report.waiting(tmp_path, "cifar10-resnet56") == {"cifar10-resnet56": count - 4}
    assert {v.claim.id for v in report.verdicts(tmp_path)} == {
        f"P-resnet56-sr-gkp-{column}" for column in published.COLUMNS
    }


def test_a_known_miss_of_the_papers_tables_is_explained_and_a_typing_error_is_named():
    name = "P-resnet56-unpruned-fgsm_0.01"
    found = {claim.id: claim for claim in published.claims(TABLES, {name: "another training"})}
    assert (found[name].verdict, found[name].explanation) == ("miss", "another training")
    assert {claim.verdict for claim in found.values() if claim.id != name} == {"ok"}
    with pytest.raises(ValueError, match="explained misses of no number.*P-resnet55"):
        published.claims(TABLES, {"P-resnet55-unpruned-benign": "a slip"})


def test_selection_against_the_printed_rows():
    """ResNet-32, FGSM 0.01 of SR-GKP: 70.57, 71.52 and 70.79 are printed."""
    frame = published.selection(TABLES).set_index(["network", "attack"])
    assert set(frame.index.get_level_values("attack")) == set(ATTACKS)
    assert frame.loc[("ResNet-32", FGSM), "own"] == pytest.approx(0.95)
    rows = pd.read_csv(TABLES, dtype=str)
    others = rows[(rows.table == "9") & ~rows.method.isin(("SR-GKP", "Unpruned"))]["fgsm_0.01"].astype(float)
    assert frame.loc[("ResNet-32", FGSM), "lead"] == pytest.approx(71.52 - others.max())


def test_the_text_of_the_selection_says_what_the_frame_does():
    frame, text = published.selection(TABLES), published.selection_text(TABLES, {FGSM: "FGSM"})
    for column in ("within", "own", "lead"):
        assert list(text[column].astype(float)) == pytest.approx(list(frame[column]), abs=0.0051)
    assert list(text[text.attack == "FGSM"].network) == list(frame[frame.attack == FGSM].network)
    said = "SR-GKP leads in 4 of 16 columns, and in 1 by more than what selection moves."
    assert published.lead_text(TABLES) == said


def test_columns_printed_in_each_others_place_are_put_back():
    frame = published.printed(TABLES)
    row = frame[
        (frame.network == "ResNet-56") & (frame.method == "DHP") & (frame.checkpoint_rule == "Best (b)")
    ]
    assert row[list(PROTOCOL[:2])].to_numpy().tolist() == [[70.42, 31.54]]
    assert (frame[PROTOCOL[0]] >= frame[PROTOCOL[1]]).all()


def test_fewer_of_the_papers_differences_are_visible_with_fewer_images():
    many, few_images = (published.visible(TABLES, {FGSM: 0.2}, n).iloc[0] for n in (10000, 500))
    assert many.pairs == few_images.pairs > 20
    assert few_images.better + few_images.worse < many.better + many.worse < many.pairs
    ten = published.visible(TABLES, {FGSM: 0.2}, 10).iloc[0]
    assert (ten.pairs, ten.better, ten.worse) == (many.pairs, 0, 0)  # ten images show no gap of the paper


def test_what_is_visible_is_counted_out_of_all_pairs():
    found = published.visible(TABLES, {FGSM: 0.2})
    shown = published.visible_text(found, {FGSM: "FGSM"}).iloc[0]
    assert shown["attack"] == "FGSM"
    assert shown["SR-GKP visibly better"] == f"{found.better[0]} of {found.pairs[0]}"
    assert shown["visible from (points)"] == f"{audit.significant(10000, 0.2):.2f}"
