"""Claims: a miss is shown as a miss, and a number that is not there is no success."""

from pathlib import Path

import pytest
import torch
from record_factory import make_record

from gkp import claims
from gkp.claims import Claim
from gkp.configuration import Run
from gkp.evaluate import pack_bits

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
    record = make_record(correct=60)
    metrics = record["checkpoints"]["last"]["metrics"]
    seen = torch.arange(100)
    metrics["long"] = metrics["benign"] | {"bits": pack_bits(seen < 60), "n": 100}
    metrics["short"] = metrics["benign"] | {"bits": pack_bits(seen[:50] < 40), "n": 50}
    claim = make_claim(ours={"suite": "small", "attack": "short", "over": "long"}, expect=-20.0)
    verdict = claims.judge([claim], lambda suite: [record])[0]
    assert (verdict.ours, verdict.status) == (pytest.approx(-20), "OK")
    del metrics["long"]
    assert claims.judge([claim], lambda suite: [record])[0].status == "MISSING"
    with pytest.raises(ValueError, match="over needs an attack"):
        make_claim(ours={"suite": "small", "path": ["facts"], "over": "long"}, expect=0.0)


def test_a_missing_record_and_a_nan_are_failures() -> None:
    claim = make_claim(expect=90.0, tolerance=100.0)
    assert claims.judge([claim], lambda suite: [])[0].status == "MISSING"
    record = make_record()
    record["checkpoints"]["last"]["metrics"]["benign"]["accuracy"] = float("nan")
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


def test_a_difference_to_another_method_is_in_points() -> None:
    runs = [Run("digits", "resnet8", name, weights="x", rate=0.4) for name in ("l1", "random")]
    records = [make_record(run, correct=correct) for run, correct in zip(runs, (90, 87), strict=True)]
    labels = [record["label"] for record in records]
    ours = {"suite": "small", "attack": "benign", "label": labels[0], "against": labels[1]}
    for bound, status in ((3.0, "OK"), (3.1, "MISS")):
        assert claims.judge([make_claim(at_least=bound, ours=ours)], lambda _: records)[0].status == status
    alone = claims.judge([make_claim(at_least=0, ours=ours)], lambda _: records[:1])[0]
    assert alone.status == "MISSING"
    with pytest.raises(ValueError, match="against needs an attack and a label"):
        make_claim(at_least=0, ours={"suite": "small", "path": ["x"], "against": "random"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one"),
        ({"expect": 1.0, "at_least": 1.0}, "exactly one"),
        ({"expect": 1.0, "verdict": "miss"}, "explanation"),
        ({"expect": 1.0, "explanation": "why not"}, "explanation"),
        ({"expect": 1.0, "ours": {"suite": "small"}}, "attack or a path"),
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
    from gkp import suites

    chosen = claims.load()
    assert len(chosen) > 10
    assert {claim.ours["suite"] for claim in chosen} <= set(suites.SUITES)
    # Every claim is about something that its suite produces.
    for claim in chosen:
        suite = suites.get(claim.ours["suite"])
        labels = {run.label for run in suite.ordered()} | set(suite.facts)
        assert claim.ours.get("label") in {None, *labels}, claim.id
        for name in (claim.ours.get("attack"), claim.ours.get("over")):
            for run in suite.runs if name else ():
                about = claim.ours.get("label", run.label) == run.label
                assert not about or name in {e.attack.name for e in run.evaluation}, claim.id


def test_a_difference_is_taken_seed_by_seed() -> None:
    """90 and 80 against 85 and 70, and a third seed that has no partner: 5 and 10."""
    records = []
    for method, corrects in (("l1", (90, 80, 10)), ("random", (85, 70))):
        for seed, correct in enumerate(corrects):
            run = Run("digits", "resnet8", method, weights="x", rate=0.4, seed=seed)
            records.append(make_record(run, correct=correct))
    own, other = dict.fromkeys(record["label"] for record in records)
    claim = make_claim(at_least=0, ours=BENIGN | {"label": own, "against": other})
    assert claims.judge([claim], lambda suite: records)[0].values == pytest.approx((5, 10))
