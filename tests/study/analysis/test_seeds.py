"""Spread over seeds and differences paired by seed."""

import numpy as np
import pytest
from many_records import comparison
from scipy.stats import ttest_1samp

from gkp.study.analysis import seeds
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.analysis.labels import CONTROL
from gkp.study.runs.suites import recipes

FGSM = PROTOCOL[0]


def test_spread_by_hand():
    records = comparison(("l1",), seeds=(0, 1, 2))
    frame = seeds.spread(Comparison([*records, *records]), ["benign"]).set_index("label")  # each counts once
    values = [100 * r.metrics()["benign"].accuracy for r in records if r.label == "l1"]
    assert frame.loc["l1", "seeds"] == 3
    assert frame.loc["l1", "epochs"] == recipes.SHORT_RECIPE.epochs
    assert "unpruned" not in frame.index
    assert frame.loc["l1", "range"] == pytest.approx(max(values) - min(values))
    assert frame.loc["l1", "deviation"] == pytest.approx(np.std(values, ddof=1))


def test_spread_is_shown_one_row_per_network():
    records = comparison(("l1", "l2"), seeds=(0, 1, 2))
    shown = seeds.spread_text(records, ["benign", FGSM])
    assert list(shown.columns) == ["network", "epochs", "seeds", "benign", "FGSM 0.01 norm., pred."]
    assert {"l1", "l2"} <= set(shown.network)
    frame = seeds.spread(records, ["benign"]).set_index("label")
    row = frame.loc["l1"]
    cell = shown.set_index("network").loc["l1", "benign"]
    assert cell == f"{row['mean']:.2f} ± {row.deviation:.2f} ({row['range']:.2f})"


def test_differences_are_paired_by_seed_and_the_interval_is_that_of_students_test():
    records = comparison(("l1", "l2"), seeds=(0, 1, 2))
    percent = {(r.label, r.run.seed): 100 * r.metrics()[FGSM].accuracy for r in records}
    row = seeds.against(records, FGSM, CONTROL).set_index("method").loc["l1"]
    expected = [percent["l1", seed] - percent[CONTROL, seed] for seed in range(3)]
    assert row.differences == pytest.approx(expected)
    interval = ttest_1samp(expected, 0).confidence_interval(0.95)
    assert [row.low, row.high] == pytest.approx([interval.low, interval.high])


@pytest.mark.parametrize("few", [(0,), (0, 1)])
def test_two_seeds_tell_nothing_about_seeds(few):
    records = comparison(("l1",), seeds=few)
    assert seeds.against(records, FGSM, CONTROL).empty
    assert seeds.against_text(records, [FGSM], CONTROL).empty


def test_uncorrected_intervals_are_shown_without_bold():
    records = comparison(("l1", "l2", "sr-gkp"), seeds=(0, 1, 2))
    found = seeds.against(records, FGSM, CONTROL).set_index("method")
    shown = seeds.against_text(records, [FGSM], CONTROL).set_index("method").iloc[:, 0]
    assert set(shown.index) == set(found.index)
    for label, cell in shown.items():
        row = found.loc[label]
        assert cell == f"{row['mean']:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
