"""Estimates are in proportion."""

import dataclasses

import pytest

from gkp.study.runs import pace as estimates
from gkp.study.runs import suites
from gkp.study.runs.run import Run
from gkp.train.recipe import PAPER

RUN = Run("cifar10", "resnet20", "sr-gkp", weights="authors", rate=0.4375, recipe=PAPER)


def test_the_digits_take_few_minutes() -> None:
    assert 0.2 < sum(estimates.minutes(run) for run in suites.get("digits").ordered()) < 4


def test_estimates_grow_with_epochs_and_shrink_on_a_gpu() -> None:
    longer = dataclasses.replace(RUN, recipe=PAPER.scaled(600))
    assert estimates.minutes(longer) == pytest.approx(2 * estimates.minutes(RUN))
    assert estimates.minutes(RUN, "cuda") < estimates.minutes(RUN)


def test_attacks_after_every_epoch_take_time() -> None:
    tested, attacked = (
        dataclasses.replace(RUN, rules=("last", rule)) for rule in ("best-test", "best-fgsm-0.01")
    )
    assert estimates.training_minutes(tested) == estimates.training_minutes(RUN)
    assert estimates.training_minutes(attacked) > estimates.training_minutes(RUN)
