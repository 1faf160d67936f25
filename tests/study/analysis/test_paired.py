"""Paired tests, Holm's correction, ranks and the effect of predicted labels."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from many_records import comparison
from record_factory import RUN, make_record, measured, with_metrics
from statsmodels.stats.multitest import multipletests

from gkp.attacks import Attack
from gkp.study.analysis import paired
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import CONTROL
from gkp.study.runs.run import UNPRUNED
from gkp.train.recipe import Recipe
from gkp.utils.stats import paired_difference

STRONG = Attack("pgd", eps=0.5 / 255, step=0.125 / 255, iterations=10)
ATTACK = STRONG.name


@pytest.fixture(scope="module")
def few():
    return comparison(("random", "l1", "sr-gkp"))


def _with_right(label, right, seed=0):
    method = UNPRUNED if label == CONTROL else label
    run = replace(RUN, method=method, recipe=Recipe(), rate=None if label == CONTROL else RUN.rate, seed=seed)
    return with_metrics(make_record(run), {ATTACK: measured(STRONG, right)})


def test_holm_by_hand_and_by_statsmodels():
    assert paired.holm(pd.Series([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    values = torch.rand(15, generator=torch.Generator().manual_seed(0)).square().tolist()
    expected = multipletests(values, method="holm")[1]
    assert paired.holm(pd.Series(values, index=range(20, 35))) == pytest.approx(list(expected))


def test_a_clear_difference_is_found_and_a_small_one_is_not():
    right = torch.ones(200, dtype=torch.bool)
    worse, alike = right.clone(), right.clone()
    worse[:40], alike[:2] = False, False
    records = Comparison([_with_right(CONTROL, right), _with_right("l1", worse), _with_right("l2", alike)])
    frame = paired.against(records, ATTACK).set_index("method")
    assert frame.verdict.to_dict() == {"l1": "worse", "l2": "not significant"}
    assert frame.difference.to_dict() == pytest.approx({"l1": -20, "l2": -1})
    turned = paired.against(records, ATTACK, control="l1").set_index("method")
    assert turned.verdict[CONTROL] == "better"


def test_seeds_are_paired_with_their_own_control():
    right, wrong = torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)
    records = [_with_right(CONTROL, right, 0), _with_right(CONTROL, wrong, 1)]
    records += [_with_right("l1", right, 0), _with_right("l1", wrong, 1), _with_right("l1", right, 2)]
    frame = paired.against(Comparison(records), ATTACK)
    assert frame.difference.tolist() == [0]
    assert frame.p.tolist() == [1]


def test_networks_on_more_images_are_compared_on_the_common_ones():
    right = torch.ones(60, dtype=torch.bool)
    frame = paired.against(Comparison([_with_right(CONTROL, right[:40]), _with_right("l1", right)]), ATTACK)
    assert frame.difference.tolist() == [0]


def test_a_missing_control_is_named(few):
    with pytest.raises(ValueError, match="no record of 'nobody'"):
        paired.against(few, ATTACK, control="nobody")


def test_text_has_a_column_per_attack(few):
    frame = paired.against(few, ATTACK)
    text = paired.against_text({"one": frame, "two": frame})
    assert list(text.columns) == ["method", "one", "two"]
    assert len(text) == len(frame)
    assert text["one"].str.contains("p [=<] ").all()
    assert list(text["method"]) == ["unpruned", "random", "sr-gkp", "l1"]


def test_counts_are_of_methods_and_not_of_controls():
    verdicts = {"unpruned": "better", "random": "better", "l1": "better", "l2": "worse", "sr-gkp": "worse"}
    frame = pd.DataFrame({"method": list(verdicts), "verdict": list(verdicts.values()), "difference": -1.5})
    (row,) = paired.counts_text({"one": frame}).to_dict("records")
    assert row == {
        "attack": "one", "methods": "3", "less accurate": "2", "more": "1", "not significant": "0",
        "sr-gkp": "-1.50, worse",
    }  # fmt: skip
    assert paired.counts_text({"one": frame[:3]})["sr-gkp"].tolist() == ["–"]


def test_intervals_hold_the_difference_and_are_of_the_same_images(few):
    frame = paired.intervals(few, ATTACK)
    pd.testing.assert_frame_equal(frame[list(paired.against(few, ATTACK))], paired.against(few, ATTACK))
    assert (frame.low < frame.difference).all()
    assert (frame.difference < frame.high).all()
    own, other = (few.right(label, ATTACK)[0] for label in ("l1", CONTROL))
    low, high = paired_difference(own, other)
    row = frame.set_index("method").loc["l1"]
    assert (row.low, row.high, row.n, row.seeds) == (100 * low, 100 * high, len(own), 1)


def test_predicted_labels_add_what_the_records_say(few):
    """The synthetic networks lose 2 points of threshold to true labels."""
    frame = paired.label_effect(few)
    assert set(frame.attack) == {"fgsm_norm_0.01_predicted", "fgsm_norm_0.1_predicted"}
    assert (frame.effect >= 0).all()
    own = few.records[0].metrics()
    gain = own["fgsm_norm_0.01_predicted"].accuracy - own["fgsm_norm_0.01_true"].accuracy
    assert frame.effect.iloc[0] == pytest.approx(100 * gain)
    first = frame[frame.label == few.records[0].label]
    assert list(first["benign error"]) == [pytest.approx(100 - 100 * own["benign"].accuracy)] * 2
    text = paired.label_effect_text(frame, dict.fromkeys(frame.attack, "title"))
    assert text["networks"].tolist() == [5, 5]


def test_p_text():
    assert [paired.p_text(p) for p in (0.0002, 0.0491, 1.0)] == ["p < 0.001", "p = 0.049", "p = 1.000"]
