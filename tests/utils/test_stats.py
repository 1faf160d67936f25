"""Intervals of differences against simulation, other formulas and their own properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gkp.utils.stats import paired_difference, student

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(outcomes)
def test_the_interval_holds_what_was_measured_and_turns_round_with_its_sides(pairs):
    a, b = torch.tensor(pairs).T
    low, high = paired_difference(a, b)
    assert -1 <= low <= (a.double().mean() - b.double().mean()).item() <= high <= 1
    assert paired_difference(b, a) == pytest.approx((-high, -low))


def test_it_holds_the_truth_in_about_95_of_100_draws():
    """Accuracies 0.70 and 0.65 of networks that agree on most images, 150 images a draw."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        kinds = random.choice(4, size=150, p=(0.60, 0.10, 0.05, 0.25))  # both, first, second, neither
        a, b = (torch.from_numpy(np.isin(kinds, right)) for right in ((0, 1), (0, 2)))
        low, high = paired_difference(a, b)
        hits += low < 0.05 < high
    assert 0.93 < hits / 2000 < 0.975


def test_more_images_and_less_disagreement_make_it_narrower():
    width = lambda a, b: np.diff(paired_difference(a, b)).item()  # noqa: E731
    few, many = (torch.arange(n) % 4 == 0 for n in (100, 1000))
    assert width(many, ~many) < width(few, ~few)
    assert width(few, few) < width(few, few.roll(1))


def test_the_same_network_three_times_is_one_observation_an_image():
    random = np.random.default_rng(1)
    a, b = (torch.from_numpy(random.random(500) < share) for share in (0.7, 0.6))
    once, thrice = paired_difference(a, b), paired_difference(a.expand(3, -1), b.expand(3, -1))
    assert thrice == pytest.approx(once, abs=0.002)
    assert paired_difference(a[None], b[None]) == once


def test_student_is_the_t_test_turned_round():
    values = [0.3, 1.1, 0.6, 0.9]
    low, high = student(values)
    assert stats.ttest_1samp(values, low).pvalue == pytest.approx(0.05)
    assert stats.ttest_1samp(values, high).pvalue == pytest.approx(0.05)
    assert np.diff(student(values, 0.99)) > high - low


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="2 values.*needs 3"):
        student([1.0, 2.0])
    with pytest.raises(ValueError, match="3 and 2 images"):
        paired_difference(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
