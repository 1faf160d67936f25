"""gkp.train.hooks: when the training loop calls each hook, and what the hook can change."""

import math
from dataclasses import replace

import pytest
import torch
from small_training import QUICK, VALIDATION, same_weights, small_net, train

from gkp.train.hooks import Hooks
from gkp.train.recipe import learning_rate


def test_before_step_sees_every_step_and_its_gradients_count():
    calls = []

    def freeze(model, at):
        calls.append(at)
        for parameter in model.parameters():
            parameter.grad.zero_()

    model, _ = train(replace(QUICK, epochs=2, weight_decay=0.0), hooks=Hooks(before_step=freeze))
    assert [(at.epoch, at.step) for at in calls] == [(epoch, step) for epoch in (1, 2) for step in range(5)]
    assert [at.number for at in calls] == list(range(10))
    assert {at.total for at in calls} == {10}
    recipe = replace(QUICK, epochs=2)
    assert [at.lr for at in calls] == [learning_rate(recipe, number, 5) for number in range(10)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small_net().parameters(), strict=True))


def test_penalty_is_minimised_and_stays_out_of_the_reported_loss():
    def size(model):
        return sum(p.abs().sum() for p in model.parameters())

    plain, _ = train()
    penalised, history = train(hooks=Hooks(penalty=lambda model, epoch: 0.01 * size(model)))
    assert size(penalised) < 0.9 * size(plain)
    _, constant = train(hooks=Hooks(penalty=lambda model, epoch: torch.tensor(100.0)))
    assert constant.epochs[-1].train_loss < 5
    unpenalised, _ = train(hooks=Hooks(penalty=lambda model, epoch: None))
    assert same_weights(unpenalised, plain)


def test_a_loss_of_ones_own_replaces_the_cross_entropy_but_not_in_the_history():
    plain, history = train()
    seen = []

    def same(model, x, y, logits, epoch):
        seen.append((x.min() >= 0 and x.max() <= 1, len(x) == len(y) == len(logits), epoch))
        return torch.nn.functional.cross_entropy(logits, y)

    equal, _ = train(hooks=Hooks(loss=same))
    assert same_weights(plain, equal)
    assert all(pixels and sizes for pixels, sizes, _ in seen)
    assert {epoch for *_, epoch in seen} == set(range(1, QUICK.epochs + 1))
    smoothed = Hooks(loss=lambda m, x, y, logits, e: torch.nn.functional.cross_entropy(1e-3 * logits, y))
    other, reported = train(hooks=smoothed)
    assert not same_weights(plain, other)
    first = [h.epochs[0].train_loss for h in (history, reported)]
    assert first[1] == pytest.approx(
        first[0], rel=0.5
    )  # the cross entropy of the logits, not of 1e-3 of them


def test_after_step_has_the_last_word_on_the_weights():
    steps = []

    def clamp(model, at):
        steps.append(at)
        for parameter in model.parameters():
            parameter.data.clamp_(-0.05, 0.05)

    model, history = train(hooks=Hooks(after_step=clamp))
    assert max(p.abs().max() for p in model.parameters()) <= 0.05
    assert len(set(steps)) == len(steps) == len(history.epochs) * math.ceil(70 / QUICK.batch_size)


def test_after_epoch_masks_before_the_evaluation():
    def mask(model, epoch):
        with torch.no_grad():
            model[1][3].weight[: 8 * epoch].zero_()

    model, history = train(hooks=Hooks(after_epoch=mask))
    assert not model[1][3].weight.any()
    with torch.no_grad():
        accuracy = (model(VALIDATION.pixels()).argmax(1) == VALIDATION.labels).float().mean().item()
    assert history.epochs[-1].validation == pytest.approx(accuracy)


def test_hooks_with_half_a_state_are_refused():
    with pytest.raises(ValueError, match="both state_dict and load_state_dict"):
        Hooks(state_dict=dict)
