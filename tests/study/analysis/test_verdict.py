"""The table of the abstract's statements: what its sentences count."""

import itertools
from pathlib import Path

import pytest
from many_records import comparison
from record_factory import edited, with_right

from gkp.attacks import Attack
from gkp.study.analysis import paired, verdict
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title
from gkp.study.report import tables
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def records():
    return comparison(("sr-gkp", "l1", "random", "chip"))


def test_one_sentence_each_way_for_every_statement(records, tmp_path):
    frame = tables.abstract(verdict.findings(tmp_path, records))
    assert list(frame.columns) == ["the paper says", "for", "against", "how sure", "notebook"]
    assert len(frame) == 6
    assert not frame.map(lambda text: text.strip() == "").any().any()
    assert "no record yet" in frame["for"].iloc[-1]  # the facts are of other suites


def test_differences_are_the_paired_tests(records, tmp_path):
    frame = paired.against(records, BENIGN).set_index("method")
    lost = -frame.loc[["sr-gkp", "l1", "chip"], "difference"]
    _, sentence, against, *_ = statement(tmp_path, records, "clean accuracy")
    worse = frame.loc[["sr-gkp", "l1", "chip"], "verdict"] == "worse"
    count, nearest = sentence.split("; ")
    assert count == f"{3 - worse.sum()} of 3 methods come without a significant loss"
    assert nearest.startswith(f"nearest to {CONTROL}: ")
    assert sentence.endswith(f"{method_title(lost.idxmin())}, {-lost.min():+.1f} points")
    assert worse.any()
    assert against == (
        f"{worse.sum()} of 3 lose significantly, {lost[worse].min():.1f} to {lost[worse].max():.1f} points"
    )


def test_gains_and_losses_stand_on_their_own_side(records, tmp_path):
    _, gained, lost, *_ = statement(tmp_path, records, "gains robustness")
    lost, unclear = lost.split("; not significant: ")
    sides = [side.removeprefix("significant: ").split("; ") for side in (gained, lost, unclear)]
    assert len([part for side in sides for part in side if part != "none"]) == 8  # four attacks, two controls
    assert all(part[0] in "+n" for part in sides[0])
    assert all(part[0] in "-n" for part in sides[1])
    for attack, control in itertools.product((*PROTOCOL, sound_attack(records)), ("unpruned", CONTROL)):
        row = verdict.difference(records, attack, control)
        text = f"{tables.points_text(row.difference)} {records.titles[attack]} over {control}"
        place = {"better": 0, "worse": 1}.get(row.verdict, 2)
        assert text in sides[place]


def test_what_rounds_to_zero_has_no_sign():
    assert [tables.points_text(points) for points in (-0.04, 0.04, -0.06)] == ["0.0", "0.0", "-0.1"]


def test_only_filter_pruning_is_counted(tmp_path):
    """l1 and chip: neither the controls, random among them, nor other grouped kernels."""
    names = ("l1", "chip", "sr-gkp", "random", "tmi-gkp", "gkp-greedy")
    _, worse, better, *_ = statement(tmp_path, comparison(names), "filter pruning")
    counts = [part.split(" (")[0].split()[-1] for part in (*worse.split("; "), *better.split("; "))]
    assert set(counts) == {"2"}
    assert not any(name in worse + better for name in ("unpruned", "random", "tmi-gkp", "gkp-greedy"))


def test_autoattack_counts_where_it_ran(records, tmp_path):
    """SR-GKP keeps every image that it had right, l1 every other one; no other network is attacked."""
    without, store = statement(tmp_path, records, "filter pruning"), Store(tmp_path)
    for record in records:
        attacked = record
        if record.label in (CONTROL, "sr-gkp", "l1"):
            right = record.metrics()[BENIGN].right.clone()
            right[::2] &= record.label != "l1"
            attacked = with_right(record, Attack("autoattack", eps=0.5 / 255), right)
        store.write(edited(attacked, (("suite",), verdict.AUTOATTACK)))
    _, worse, better, images, _ = statement(tmp_path, records, "filter pruning")
    assert worse.endswith("AutoAttack 0.5/255: 1 of 1 (L1Norm)")
    assert better.endswith("AutoAttack 0.5/255: 0 of 1")
    assert images.endswith("; AutoAttack: 400 images")
    assert without[3] == images.removesuffix("; AutoAttack: 400 images")


def test_a_training_on_another_kind_of_device_is_no_measure_of_the_price(records, tmp_path):
    facts = {"networks": {"resnet20": {"seconds": 0.3}}}
    Store(tmp_path).write(Fact.of("pruning-time", "cost", facts, {"device": "cpu: a processor"}))
    own = next(record for record in records if record.label == "sr-gkp")
    for device, seconds in (("cpu: another", own.training_seconds), ("cuda: a GPU", None)):
        trained = Comparison([edited(own, (("provenance", "device"), device))])
        price = verdict.price(tmp_path, trained)
        assert (price.seconds, price.training_seconds) == (0.3, seconds)


def test_the_committed_facts_are_found():
    suite = Comparison(Store(ROOT).of_suite("cifar10-resnet20-short"))
    _, smoothest, text, groups, _ = statement(ROOT, suite, "smooth kernels")
    facts = Store(ROOT).fact(*verdict.ABLATIONS).facts
    alphas = [
        entry["networks"]["all networks"]["same_groups"]
        for title, entry in facts["searches"].items()
        if title.startswith("alpha")
    ]
    assert f" {min(alphas)} of 960 groups or more keep" in text
    assert groups.startswith("960 groups of 4")
    benign = {
        record.label: record.metrics()[BENIGN].accuracy
        for record in Store(ROOT).of_suite(verdict.ABLATIONS[0])
        if record.run.seed == 0 and record.run.recipe
    }
    lost = 100 * (benign["sr-gkp"] - benign[verdict.SMOOTHEST])
    assert f"-{lost:.1f} points benign (significant)" in smoothest


def statement(root, comparison, words):
    """The row of the abstract whose statement has these words."""
    rows = tables.abstract(verdict.findings(root, comparison)).itertuples(index=False)
    return next(row for row in rows if words in row[0])
