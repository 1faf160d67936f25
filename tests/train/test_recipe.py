"""gkp.train.recipe: the paper's values, what is refused, and PyTorch's schedulers as a formula."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import QUICK
from torch import nn

from gkp.attacks import Attack
from gkp.train.recipe import ONECYCLE_END, PAPER, SHORT, Recipe, learning_rate


def test_paper_recipe_has_the_papers_values():
    assert (PAPER.epochs, PAPER.lr, PAPER.schedule, PAPER.step_epochs, PAPER.gamma) == (
        300,
        0.01,
        "step",
        100,
        0.1,
    )
    assert (PAPER.momentum, PAPER.nesterov, PAPER.weight_decay, PAPER.batch_size) == (0.9, False, 5e-4, 64)
    assert (PAPER.augment, PAPER.padding, PAPER.precision, PAPER.adversarial) == (
        "crop+flip",
        4,
        "float32",
        None,
    )


def test_scaled_keeps_the_shape_of_the_schedule():
    assert (PAPER.scaled(30).epochs, PAPER.scaled(30).step_epochs) == (30, 10)
    assert PAPER.scaled(1).step_epochs == 1
    assert PAPER.scaled(5).step_epochs == 2  # the nearest to a third
    assert PAPER.scaled(300) == PAPER
    assert Recipe(epochs=0).scaled(5).epochs == 5


SCHEDULERS = {
    "step": lambda opt, recipe, steps: torch.optim.lr_scheduler.StepLR(
        opt, recipe.step_epochs * steps, recipe.gamma
    ),
    "onecycle": lambda opt, recipe, steps: torch.optim.lr_scheduler.OneCycleLR(
        opt, recipe.lr, total_steps=recipe.epochs * steps, pct_start=recipe.warmup, cycle_momentum=False
    ),
    "cosine": lambda opt, recipe, steps: torch.optim.lr_scheduler.CosineAnnealingLR(
        opt, recipe.epochs * steps
    ),
    "constant": lambda opt, recipe, steps: torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0),
}


@pytest.mark.parametrize("schedule", sorted(SCHEDULERS))
@settings(max_examples=15, deadline=None)
@given(
    epochs=st.integers(2, 12),
    steps=st.integers(3, 7),
    lr=st.floats(1e-3, 1.0),
    step_epochs=st.integers(1, 5),
    warmup=st.floats(0.2, 0.8),
)
def test_learning_rate_equals_pytorchs_schedulers(schedule, epochs, steps, lr, step_epochs, warmup):
    recipe = Recipe(epochs=epochs, lr=lr, schedule=schedule, step_epochs=step_epochs, warmup=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler = SCHEDULERS[schedule](optimizer, recipe, steps)
    for step in range(epochs * steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, step, steps) == pytest.approx(expected, rel=1e-6, abs=1e-12 * lr)
        optimizer.step()
        if step + 1 < epochs * steps:
            scheduler.step()


def test_one_cycle_of_a_single_step():
    assert learning_rate(replace(QUICK, epochs=1), 0, 1) == pytest.approx(QUICK.lr / 25 * ONECYCLE_END)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule", "linear", "choose one of step, onecycle, cosine, constant"),
        ("augment", "cutout", "choose one of none, crop, crop"),
        ("precision", "float16", "choose one of float32, tf32, bfloat16"),
        ("epochs", -1, "0 or more"),
        ("epochs", 1.5, "whole number"),
        ("batch_size", 0, "1 or more"),
        ("step_epochs", 0, "1 or more"),
        ("padding", True, "whole number"),
        ("lr", 0.0, "positive"),
        ("lr", math.nan, "positive"),
        ("lr", "0.1", "positive"),
        ("momentum", None, "below 1"),
        ("lr", math.inf, "positive"),
        ("gamma", 1.5, "up to 1"),
        ("warmup", 1.0, "between 0 and 1"),
        ("momentum", 1.0, "below 1"),
        ("weight_decay", -1e-4, "0 or more"),
        ("nesterov", True, None),
    ],
)
def test_recipe_refuses_values_out_of_range(name, value, message):
    if message is None:
        assert replace(PAPER, **{name: value}).nesterov
        with pytest.raises(ValueError, match="nesterov=True needs momentum"):
            replace(PAPER, **{name: value}, momentum=0.0)
    else:
        with pytest.raises(ValueError, match=f"^{name}=.*{message}"):
            replace(PAPER, **{name: value})


def test_recipe_is_json_with_its_attack():
    recipe = replace(SHORT, adversarial=Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3))
    restored = json.loads(json.dumps(asdict(recipe)))
    assert Recipe(**{**restored, "adversarial": Attack(**restored["adversarial"])}) == recipe


def test_numbers_of_numpy_are_numbers():
    recipe = Recipe(epochs=np.int64(3), lr=np.float64(0.1))
    assert recipe == Recipe(epochs=3, lr=0.1)
    assert json.loads(json.dumps(recipe.json)) == recipe.json


def test_an_attack_of_training_batches_is_an_attack() -> None:
    with pytest.raises(ValueError, match=r"adversarial='fgsm': give a gkp.attacks.Attack"):
        replace(SHORT, adversarial="fgsm")
