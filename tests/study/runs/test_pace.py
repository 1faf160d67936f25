"""Estimates are in proportion."""

import dataclasses

import pytest

from gkp.attacks import Attack
from gkp.study.runs import pace as estimates
from gkp.study.runs import protocols, suites
from gkp.study.runs.run import Run
from gkp.train.recipe import PAPER

RUN = Run("cifar10", "resnet20", "sr-gkp", weights="authors", rate=0.4375, recipe=PAPER)


def test_the_digits_take_few_minutes() -> None:
    assert 0.2 < sum(estimates.minutes(run) for run in suites.get("digits").ordered()) < 4


def test_estimates_grow_with_epochs_and_shrink_on_a_gpu() -> None:
    longer = dataclasses.replace(RUN, recipe=PAPER.scaled(600))
    assert estimates.minutes(longer) == pytest.approx(2 * estimates.minutes(RUN))
    assert estimates.minutes(RUN, "fleet") < estimates.minutes(RUN, "cuda") < estimates.minutes(RUN) / 20


def test_the_measured_network_takes_what_was_measured() -> None:
    """Six side by side: 6.8 s an epoch of 47,918 images were measured, with 749 steps of 1.51 ms."""
    run = dataclasses.replace(RUN, network="resnet56", validation=2000, recipe=PAPER.scaled(57))
    seconds = 60 * estimates.training_minutes(run, "fleet") / 57
    assert 6 * seconds == pytest.approx(6.8, rel=0.02)
    twice = dataclasses.replace(run, network="resnet110")
    assert estimates.training_minutes(twice, "fleet") / estimates.training_minutes(run, "fleet") == (
        pytest.approx(2.0, rel=0.05)
    )


def test_an_attack_of_one_rule_is_counted_for_that_rule() -> None:
    both = dataclasses.replace(RUN, rules=("last", "best-test"), evaluation=protocols.paper())
    last = dataclasses.replace(both, evaluation=protocols.for_rules(protocols.paper(), "last"))
    for device in ("cpu", "fleet"):
        whole, one = (estimates.evaluation_minutes(run, device) for run in (both, last))
        assert whole == pytest.approx(2 * one)


def test_attacks_after_every_epoch_take_time() -> None:
    tested, attacked = (
        dataclasses.replace(RUN, rules=("last", rule)) for rule in ("best-test", "best-fgsm-0.01")
    )
    assert estimates.training_minutes(tested) == estimates.training_minutes(RUN)
    assert estimates.training_minutes(attacked) > estimates.training_minutes(RUN)


def test_training_on_attacked_images_takes_longer() -> None:
    one, three = (Attack("pgd", eps=0.1, step=0.1, iterations=n) for n in (1, 3))
    attacked = [
        estimates.training_minutes(dataclasses.replace(RUN, recipe=dataclasses.replace(PAPER, adversarial=a)))
        for a in (None, one, three)
    ]
    assert attacked[0] == estimates.training_minutes(RUN)
    assert attacked[2] - attacked[0] == pytest.approx(3 * (attacked[1] - attacked[0]))
    assert attacked[1] == pytest.approx(5 / 3 * attacked[0])


def test_a_penalty_doubles_the_training_and_a_teacher_adds_its_forward_pass() -> None:
    penalised, distilled = (
        dataclasses.replace(RUN, recipe=dataclasses.replace(PAPER, **change))
        for change in ({"gradient_penalty": 0.1}, {"distillation": 0.5})
    )
    plain = estimates.training_minutes(RUN)
    assert estimates.training_minutes(penalised) == pytest.approx(2 * plain)
    assert estimates.training_minutes(distilled) == pytest.approx(4 / 3 * plain)
