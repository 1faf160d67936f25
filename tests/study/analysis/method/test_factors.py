"""Factors of grouped kernel pruning: levels, tables, analysis of variance and tests, on known effects."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from many_records import ATTACKS, a_record
from record_factory import measured, with_metrics

from gkp.attacks import Attack
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.method import factors, finetunings
from gkp.study.report.plots import fronts
from gkp.study.runs import suites
from gkp.study.runs.suites import stages

CLEAN, IMAGES = "benign", 1000
ROBUST = next(name for name in ATTACKS if name.startswith("pgd10"))
EFFECT = {"profile": {"6:3:1": 0.06, "1:3:6": -0.10}, "selection": {"random": -0.03}, "which": {}}


def right(share: float, first: int = 0) -> torch.Tensor:
    """So many images from the first on: nearly the same for all networks, so that none are twins."""
    return (torch.arange(IMAGES) - first) % IMAGES < round(share * IMAGES)


@pytest.fixture(scope="module")
def known() -> Comparison:
    """The suite's records with effects that add up; the robust accuracy is 0.4 less and has no effects."""
    records = []
    for place, run in enumerate(suites.get("cifar10-resnet20-profiles").runs):
        own = factors.levels(run) or {}
        share = 0.8 + sum(EFFECT[factor].get(level, 0) for factor, level in own.items())
        metrics = {
            CLEAN: measured(Attack("none"), right(share, place)),
            ROBUST: measured(ATTACKS[ROBUST], right(0.4 + 0.001 * (place % 2), place)),
        }
        records.append(with_metrics(a_record(run, place), metrics))
    return Comparison(records)


def test_levels_are_those_that_the_run_was_made_with() -> None:
    common = next(run for run in suites.get("cifar10-resnet20-short").runs if run.label == "sr-gkp")
    for profile in stages.PROFILES:
        for selection in stages.SELECTIONS:
            for which in stages.WHICH:
                run = stages.kernels(common, profile, selection, which)
                assert factors.levels(run) == {"profile": profile, "selection": selection, "which": which}
    assert factors.levels(replace(common, method="l1")) is None
    assert factors.levels(replace(common, groups=4)) is None
    assert factors.levels(replace(common, options=(("beta", "exact"),))) is None


def test_the_table_has_every_network_once_per_attack(known: Comparison) -> None:
    found = factors.table(known, [CLEAN, ROBUST])
    assert len(found) == 2 * len(known.labels)
    row = found[(found.label == "sr-gkp-b") & (found.attack == CLEAN)].iloc[0]
    assert (row.profile, row.selection, row["mean"], row.seeds) == ("6:3:1", "beam", pytest.approx(86), 3)
    filters = found[found.label == "fpgm (profile-6:3:1)"].iloc[0]
    assert (filters.profile, filters.selection) == ("6:3:1", "–")
    shown = factors.table_text(known, [CLEAN, ROBUST])
    assert shown.label.iloc[0].startswith(("sr-gkp-b", "gkp-greedy (profile-6:3:1"))
    assert len(shown) == len(known.labels)


def test_the_analysis_of_variance_finds_what_adds_up(known: Comparison) -> None:
    found = factors.variance(known, CLEAN).set_index("factor")
    assert found.loc["profile", ["best", "worst"]].tolist() == ["6:3:1", "1:3:6"]
    assert found.loc["profile", "points"] == pytest.approx(16)
    assert found.loc["selection", "points"] == pytest.approx(3)
    assert found.loc["which", "points"] == pytest.approx(0, abs=1e-6)
    assert found.share["profile"] > 90 > 10 > found.share["rest"]


def test_the_rest_of_the_variance_is_what_no_sum_of_single_factors_explains(known: Comparison) -> None:
    """The levels do not meet one another equally often, so that the shares need not add up."""
    frame, varied = factors._accuracies(known, CLEAN)
    levels = pd.get_dummies(frame[varied], drop_first=True).assign(constant=1).to_numpy(float)
    weights, *_ = np.linalg.lstsq(levels, frame.accuracy.to_numpy())
    unexplained = ((frame.accuracy - levels @ weights) ** 2).sum()
    total = ((frame.accuracy - frame.accuracy.mean()) ** 2).sum()
    found = factors.variance(known, CLEAN).set_index("factor")
    assert found.share["rest"] == pytest.approx(100 * unexplained / total)


def test_intervals_of_the_analysis_are_tukeys(known: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """One factor alone, three networks of each level: the intervals of statsmodels' own Tukey test."""
    from statsmodels.stats.multicomp import pairwise_tukeyhsd

    random, cells = np.random.default_rng(0), []
    for place, record in enumerate(known.trained[:12]):
        metric = measured(Attack("none"), right(0.8 + 0.05 * random.random()))
        own = {**factors.PUBLISHED, "profile": f"p{place % 4}"}
        cells.append((own, with_metrics(record, {CLEAN: metric})))
    monkeypatch.setattr(factors, "crossed", lambda _: cells)
    row = factors.variance(known, CLEAN).iloc[0]
    values = [100 * record.metrics()[CLEAN].accuracy for _, record in cells]
    tukey = pairwise_tukeyhsd(values, [own["profile"] for own, _ in cells])
    pairs = list(itertools.combinations(tukey.groupsunique, 2))  # in the order of its rows
    place = next(number for number, pair in enumerate(pairs) if set(pair) == {row.best, row.worst})
    expected = sorted(abs(end) for end in tukey.confint[place])
    low = row.low if min(tukey.confint[place]) * max(tukey.confint[place]) > 0 else -row.low
    assert sorted([low, row.high]) == pytest.approx(expected, rel=1e-3)


def test_too_few_networks_are_refused(known: Comparison) -> None:
    few = Comparison([record for record in known if record.label in ("sr-gkp", "l1-b")])
    with pytest.raises(ValueError, match="too few to compare factors; run the suite"):
        factors.variance(few, CLEAN)


def test_levels_are_compared_in_networks_that_are_alike(known: Comparison) -> None:
    found = factors.contrasts(known, [CLEAN, ROBUST])
    clean = found[found.attack == CLEAN].set_index("level")
    assert clean.difference["6:3:1"] == pytest.approx(6)
    assert clean.difference["random"] == pytest.approx(-3)
    assert clean.difference["first"] == pytest.approx(0)
    assert clean.verdict[["6:3:1", "random", "first"]].tolist() == ["better", "worse", "not significant"]
    assert clean.networks["first"] == 16  # 4 profiles and 4 selections; 1:1:0 has no such network
    assert (clean.low <= clean.difference).all()
    assert (clean.difference <= clean.high).all()
    assert set(found[found.attack == ROBUST].verdict) == {"not significant"}
    assert len(found) == 2 * (4 + 3 + 1)


def test_the_finalist_is_compared_with_all_others_in_one_family(known: Comparison) -> None:
    found = factors.finalists(known, [CLEAN, ROBUST])
    assert set(found.against) == {
        "sr-gkp-b (strategy-random)", "l1-b", "unpruned + fine-tune", "sr-gkp", "random", "fpgm",
        "fpgm (profile-6:3:1)",
    }  # fmt: skip
    assert set(found.networks) == {3}
    clean = found[found.attack == CLEAN].set_index("against")
    assert clean.difference["sr-gkp"] == pytest.approx(6)
    assert clean.verdict["sr-gkp"] == "better"


def test_another_fine_tuning_is_compared_network_by_network(known: Comparison) -> None:
    changed = []
    for record in known:
        if record.label in ("sr-gkp", "fpgm") and record.run.seed == 0:
            more = 0.05 * (record.label == "sr-gkp")
            better = measured(ATTACKS[ROBUST], torch.arange(IMAGES) < round(IMAGES * (0.5 + more)))
            changed.append(with_metrics(record, {**record.metrics(), ROBUST: better}))
    plain = {r.label: r.metrics()[ROBUST].accuracy for r in known if r.run.seed == 0}
    found = finetunings.retrained(known, Comparison(changed), [CLEAN, ROBUST]).set_index(["label", "attack"])
    assert len(found) == 4
    assert found.difference["sr-gkp", ROBUST] == pytest.approx(100 * (0.55 - plain["sr-gkp"]))
    assert found.difference["fpgm", ROBUST] == pytest.approx(100 * (0.5 - plain["fpgm"]))
    assert found.difference["sr-gkp", CLEAN] == 0
    assert found.verdict["sr-gkp", ROBUST] == "better"


def test_the_front_is_what_nothing_beats_in_both(known: Comparison) -> None:
    found = factors.front(known, CLEAN, ROBUST)
    for row in found.itertuples():
        above = found[(found.clean >= row.clean) & (found.robust >= row.robust)]
        more = above[(above.clean > row.clean) | (above.robust > row.robust)]
        assert row.best == more.empty
    assert found.best.any()
    assert not found.best.all()


def test_the_front_says_how_far_the_trainings_of_a_network_lie_apart(known: Comparison) -> None:
    worse = [
        with_metrics(r, {**r.metrics(), CLEAN: measured(ATTACKS[CLEAN], torch.arange(IMAGES) < IMAGES // 10)})
        if r.label == "sr-gkp" and r.run.seed == 2
        else r
        for r in known
    ]
    found = factors.front(Comparison(worse), CLEAN, ROBUST).set_index("label")
    ours, accuracies = (
        found.loc["sr-gkp"],
        [100 * r.metrics()[CLEAN].accuracy for r in worse if r.label == "sr-gkp"],
    )
    assert (ours.clean_low, ours.clean_high) == (10, max(accuracies))
    assert ours.clean_low < ours.clean < ours.clean_high
    alone = found.loc["gkp-greedy"]  # one training
    assert alone.clean_low == alone.clean == alone.clean_high


def test_the_figure_has_a_marker_for_every_network(known: Comparison) -> None:
    figure = fronts.networks(known, CLEAN, ROBUST)
    axes = figure.axes[0]
    assert len(axes.lines) == 1 + len(factors.front(known, CLEAN, ROBUST))
    assert "accuracy" in axes.get_xlabel()


def test_measurements_go_with_accuracies(known: Comparison) -> None:
    records = [record for record in known.trained if record.label.startswith("sr-gkp")]
    entries = [
        {"label": r.label, "seed": r.run.seed, "hash": r.hash, "steepness": -r.metrics()[CLEAN].accuracy}
        for r in records
    ]
    frame = factors.why(known, [*entries, {"label": "gone", "seed": 0, "hash": "-"}], ROBUST)
    assert len(frame) == len(records)
    text = factors.why_text(frame).set_index("measurement")
    assert text.clean["steepness"] == pytest.approx(-1, abs=0.01)  # means of seeds tie up to last bits
