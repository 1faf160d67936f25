"""Claims: a miss is shown as a miss, and a number that is not there is no success."""

from pathlib import Path

import pytest
import torch
from record_factory import edited, make_record, measured, with_metrics

from gkp.attacks import Attack
from gkp.study.analysis import claims
from gkp.study.analysis.claims import Claim
from gkp.study.analysis.method import speed
from gkp.study.runs.record import Record
from gkp.study.runs.run import UNPRUNED, Run
from gkp.utils.stats import paired_difference, student

BENIGN = {"suite": "small", "attack": "benign"}


def make_claim(**fields: object) -> Claim:
    known = {"id": "T1", "statement": "accuracy", "unit": "%", "why": "a test", "ours": BENIGN}
    return Claim(**known | fields)


def verdict_of(claim: Claim, *corrects: int) -> claims.Verdict:
    runs = [Run("digits", "resnet8", "l1", weights="x", rate=0.4, seed=seed) for seed in range(len(corrects))]
    records = [make_record(run, correct=correct) for run, correct in zip(runs, corrects, strict=True)]
    return claims.judge([claim], lambda suite: records)[0]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"expect": 90.0}, "OK"),
        ({"expect": 89.5, "tolerance": 0.5}, "OK"),
        ({"expect": 89.4, "tolerance": 0.5}, "MISS"),
        ({"at_least": 90}, "OK"),
        ({"at_least": 90.1}, "MISS"),
        ({"at_most": 90}, "OK"),
        ({"at_most": 89.9}, "MISS"),
    ],
)
def test_status(fields: dict, status: str) -> None:
    assert verdict_of(make_claim(**fields), 90).status == status


def test_only_an_explained_miss_is_as_expected_and_it_stays_a_miss() -> None:
    explained = make_claim(expect=80.0, verdict="miss", explanation="another seed")
    verdict = verdict_of(explained, 90)
    assert verdict.as_expected
    assert verdict.line.startswith("[MISS]    T1")
    assert verdict.line.endswith("another seed")
    assert not verdict_of(make_claim(expect=80.0), 90).as_expected
    # An explanation that is no longer needed is wrong too.
    assert not verdict_of(explained, 80).as_expected


def test_two_attacks_are_compared_on_the_images_that_both_saw() -> None:
    """60 of 100 right under one, the first 40 of its first 50 under the other: 50 of 50 minus 40 of 50."""
    record, seen = make_record(), torch.arange(100)
    long, short = (
        measured(Attack("fgsm", eps=eps), seen[:n] < right)
        for eps, n, right in ((0.1, 100, 60), (0.2, 50, 40))
    )
    record = with_metrics(record, {"long": long, "short": short})
    claim = make_claim(ours={"suite": "small", "attack": "short", "over": "long"}, expect=-20.0)
    verdict = claims.judge([claim], lambda suite: [record])[0]
    assert (verdict.ours, verdict.status) == (pytest.approx(-20), "OK")
    record = with_metrics(record, {"short": short})
    assert claims.judge([claim], lambda suite: [record])[0].status == "MISSING"
    with pytest.raises(ValueError, match="over needs an attack"):
        make_claim(ours={"suite": "small", "path": ["facts"], "over": "long"}, expect=0.0)


def test_a_missing_record_and_a_nan_are_failures() -> None:
    claim = make_claim(expect=90.0, tolerance=100.0)
    assert claims.judge([claim], lambda suite: [])[0].status == "MISSING"
    path = ("checkpoints", "last", "metrics", "benign", "accuracy")
    record = edited(make_record(), (path, float("nan")))
    verdict = claims.judge([claim], lambda suite: [record])[0]
    assert (verdict.status, verdict.as_expected) == ("MISSING", False)
    assert "no record" in verdict.line


def test_seeds_give_mean_and_spread() -> None:
    verdict = verdict_of(make_claim(expect=91.0), 90, 92)
    assert (verdict.status, verdict.ours_text) == ("OK", "91.00 ± 1.41 (n=2)")


def test_each_is_judged_by_the_worst() -> None:
    claim = make_claim(expect=91.0, tolerance=2.0, each=True)
    assert verdict_of(claim, 90, 92).status == "OK"
    assert verdict_of(claim, 90, 92, 88).ours_text == "88.00 (worst of 3)"
    assert verdict_of(claim, 90, 92, 88).status == "MISS"


def test_ours_is_found_by_conditions_and_by_path() -> None:
    record, asked = make_record(), []

    def records_of(suite: str) -> list:
        asked.append(suite)
        return [record]

    ours = {"suite": "small", "label": "l1 (untuned)", "path": ["cost", "macs_ratio"]}
    assert claims.judge([make_claim(expect=1.0, ours=ours)], records_of)[0].values == (1.0,)
    assert asked == ["small"]
    for wrong in ({"label": "l2"}, {"seed": 3}, {"rule": "best-test"}):
        claim = make_claim(expect=1.0, ours=BENIGN | wrong)
        assert claims.judge([claim], records_of)[0].status == "MISSING"


def records_of_two(*corrects: tuple[int, int]) -> list[Record]:
    """l1 and random, one pair of seeds per argument: the first so many of 100 images are right."""
    records = []
    for seed, pair in enumerate(corrects):
        for method, correct in zip(("l1", "random"), pair, strict=True):
            run = Run("digits", "resnet8", method, weights="x", rate=0.4375, seed=seed)
            records.append(make_record(run, correct=correct))
    return records


AGAINST = BENIGN | {"label": "l1 (untuned)", "against": "random (untuned)"}


def test_a_difference_to_another_method_is_in_points_and_has_an_interval() -> None:
    """40 of 100 images that only one has right are no chance; the bound may lie inside the interval."""
    records = records_of_two((90, 50))
    for bound, status in ((0, "OK"), (20, "OK"), (35, "OPEN"), (45, "OPEN"), (60, "MISS")):
        verdict = claims.judge([make_claim(at_least=bound, ours=AGAINST)], lambda _: records)[0]
        assert (verdict.values, verdict.status) == ((pytest.approx(40),), status)
    low, high = paired_difference(torch.arange(100) < 90, torch.arange(100) < 50)
    assert verdict.ours_text == f"+40.00 ({100 * low:+.2f} to {100 * high:+.2f}, n=1)"
    assert claims.judge([make_claim(at_most=60, ours=AGAINST)], lambda _: records)[0].status == "OK"
    alone = claims.judge([make_claim(at_least=0, ours=AGAINST)], lambda _: records[:1])[0]
    assert alone.status == "MISSING"
    with pytest.raises(ValueError, match="against needs an attack and a label"):
        make_claim(at_least=0, ours={"suite": "small", "path": ["x"], "against": "random"})
    with pytest.raises(ValueError, match="against needs a bound"):
        make_claim(expect=0.0, ours=AGAINST)


def test_a_difference_within_chance_is_open_whichever_way_it_points() -> None:
    explained = make_claim(at_least=0, ours=AGAINST, verdict="open", explanation="too few images")
    for pair in ((90, 89), (89, 90)):
        verdict = claims.judge([explained], lambda _, pair=pair: records_of_two(pair))[0]
        assert (verdict.status, verdict.as_expected) == ("OPEN", True)
        assert verdict.line.startswith("[OPEN]    T1")
    assert not claims.judge([explained], lambda _: records_of_two((90, 50)))[0].as_expected


def test_a_difference_is_taken_seed_by_seed() -> None:
    """5 and 10 on two seeds, a third seed that has no partner; with three, the interval is over seeds."""
    claim = make_claim(at_least=0, ours=AGAINST)
    records = records_of_two((90, 85), (80, 70), (10, 99))
    two = claims.judge([claim], lambda _: records[:5])[0]
    assert two.values == pytest.approx((5, 10))
    pooled = [torch.stack([torch.arange(100) < n for n in side]) for side in ((90, 80), (85, 70))]
    assert two.interval == pytest.approx([100 * end for end in paired_difference(*pooled)])
    three = claims.judge([claim], lambda _: records_of_two((90, 85), (80, 70), (77, 70)))[0]
    assert three.interval == pytest.approx(student([5, 10, 7]))
    assert three.status == "OK"


def test_a_longer_training_is_compared_with_the_same_label_of_another_suite() -> None:
    """5 and 10 points on the two seeds that both suites have; a third has no shorter training."""
    ours = {"suite": "long", "label": "l1 (untuned)", "before": "short", "attack": "benign"}
    suites = {"long": records_of_one(90, 80, 10), "short": records_of_one(85, 70)}
    found = claims.judge([make_claim(at_least=0, ours=ours)], lambda suite: suites[suite])[0]
    assert found.values == pytest.approx((5, 10))
    assert found.status == "OK"
    pinned = make_claim(at_least=0, ours={**ours, "seed": 1})
    assert claims.judge([pinned], lambda suite: suites[suite])[0].values == pytest.approx((10,))


def test_the_untouched_network_is_compared_with_every_training() -> None:
    """80, 85 and 90 of 100 against the one network of 70, which no seed made."""
    runs = [Run("digits", "resnet8", "l1", weights="x", rate=0.4375, seed=seed) for seed in range(3)]
    records = [make_record(run, correct=80 + 5 * run.seed) for run in runs]
    records.append(make_record(Run("digits", "resnet8", UNPRUNED, weights="x"), correct=70))
    ours = {**BENIGN, "label": records[0].label, "against": "unpruned"}
    found = claims.judge([make_claim(at_least=0, ours=ours)], lambda _: records)[0]
    assert found.values == pytest.approx((10, 15, 20))


def records_of_one(*corrects: int) -> list[Record]:
    runs = [Run("digits", "resnet8", "l1", weights="x", rate=0.4375, seed=s) for s in range(len(corrects))]
    return [make_record(run, correct=correct) for run, correct in zip(runs, corrects, strict=True)]


def test_a_network_under_two_names_counts_once_where_each_counts() -> None:
    claim = make_claim(expect=90.0, tolerance=5.0, each=True)
    records = records_of_two((90, 90))
    assert claims.judge([claim], lambda _: records)[0].ours_text == "90.00 (worst of 1)"
    assert claims.judge([claim], lambda _: records_of_two((90, 89)))[0].ours_text == "89.00 (worst of 2)"


def test_labels_can_be_left_out() -> None:
    methods = {"l1": 90, "gal": 70, "random": 91}
    runs = [Run("digits", "resnet8", name, weights="x", rate=0.4375) for name in methods]
    records = [make_record(run, correct=methods[run.method]) for run in runs]
    every = {"suite": "s", "attack": "benign"}
    for but, worst in (((), "70.00 (worst of 3)"), ((records[1].label,), "91.00 (worst of 2)")):
        claim = make_claim(expect=90.0, tolerance=2.0, each=True, ours={**every, "but": list(but)})
        assert claims.judge([claim], lambda _: records)[0].ours_text == worst


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one"),
        ({"expect": 1.0, "at_least": 1.0}, "exactly one"),
        ({"expect": 1.0, "verdict": "miss"}, "explanation"),
        ({"expect": 1.0, "explanation": "why not"}, "explanation"),
        ({"expect": 1.0, "ours": {"suite": "small"}}, "attack or a path"),
        ({"at_least": 0.0, "ours": {**BENIGN, "before": "other"}}, "before needs an attack and a label"),
        ({"expect": 1.0, "ours": {**BENIGN, "label": "a", "before": "other"}}, "before needs a bound"),
        ({"at_least": 0.0, "ours": {**BENIGN, "label": "a", "before": "b", "over": "c"}}, "one of against"),
    ],
)
def test_a_claim_that_could_be_read_in_two_ways_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_claim(**fields)


def test_a_file_that_is_not_well_formed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    for text in ("[[claim]\n", '[[claim]]\nid = "X"\ntypo = 1\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="claims.toml"):
            claims.load(path)


def test_the_committed_claims_are_well_formed_and_about_known_suites() -> None:
    from gkp.study.runs import suites

    chosen = claims.load()
    assert len(chosen) > 10
    measured_parts = [claim for claim in chosen if claim.ours["suite"] == speed.SUITE]
    assert {claim.ours["label"] for claim in measured_parts} <= {fact.label for fact in speed.facts(".")}
    chosen = [claim for claim in chosen if claim not in measured_parts]
    assert {claim.ours["suite"] for claim in chosen} <= set(suites.SUITES)
    # Every claim is about something that its suite produces.
    for claim in chosen:
        suite = suites.get(claim.ours["suite"])
        labels = {run.label for run in suite.ordered()} | set(suite.facts)
        assert claim.ours.get("label") in {None, *labels}, claim.id
        every = all if "label" in claim.ours else any  # without one it is about the networks that met it
        for name in filter(None, (claim.ours.get("attack"), claim.ours.get("over"))):
            about = [run for run in suite.runs if claim.ours.get("label", run.label) == run.label]
            assert every(name in {e.attack.name for e in run.evaluation} for run in about), claim.id


@pytest.mark.parametrize(
    ("bound", "values", "worst"),
    [
        ({"at_least": 0.0}, (5.0, 0.2, 3.0), 0.2),
        ({"at_most": 1.0}, (-5.0, 0.9, -3.0), 0.9),
        ({"expect": 1.0}, (0.8, 1.5), 1.5),
    ],
)
def test_the_worst_of_those_that_meet_a_bound_is_the_nearest_to_it(
    bound: dict, values: tuple[float, ...], worst: float
) -> None:
    assert claims.Verdict(make_claim(**{"expect": None, **bound}, each=True), values, "OK").ours == worst
