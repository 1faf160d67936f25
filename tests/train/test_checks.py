"""What is looked at before the first step, and the last batch of one image."""

from dataclasses import replace

import pytest
import torch
from small_training import random_split, same_weights, small_net, without_seconds
from torch import nn

from gkp import data
from gkp.attacks import Attack
from gkp.train import fine_tune
from gkp.train.checks import joins_last, laid_last, placed, placed_back
from gkp.train.hooks import Hooks, Step
from gkp.train.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=8, schedule="cosine", augment="none")


def pooled_norm(*, size: int = 1, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """A batch norm behind a pooling to size x size pixels."""
    torch.manual_seed(0)
    layers = (nn.ReLU(), nn.AdaptiveAvgPool2d(size), norm(8), nn.Flatten(), nn.Linear(8 * size**2, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


def head_norm() -> nn.Module:
    """BatchNorm1d between two linear layers, as in many classifiers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def batch_sizes(model: nn.Module, n: int, recipe: Recipe = RECIPE) -> list[int]:
    """Images of every training step."""
    sizes: list[int] = []
    handle = model.register_forward_hook(lambda m, x, _: sizes.append(len(x[0])) if m.training else None)
    fine_tune(model, random_split(n), recipe)
    handle.remove()
    return sizes


@pytest.mark.parametrize("make", [pooled_norm, head_norm])
def test_a_last_image_that_batch_norm_refuses_goes_with_the_batch_before(make) -> None:
    assert batch_sizes(make(), 17) == [8, 9] * 2
    assert batch_sizes(make(), 9) == [9] * 2
    assert batch_sizes(make(), 18) == [8, 8, 2] * 2
    assert batch_sizes(make(), 16) == [8, 8] * 2


def test_a_last_image_that_the_network_takes_stays_a_batch() -> None:
    assert batch_sizes(pooled_norm(size=2), 17) == [8, 8, 1] * 2
    assert batch_sizes(small_net(), 17) == [8, 8, 1] * 2
    assert batch_sizes(small_net(), 3, replace(RECIPE, batch_size=1)) == [1, 1, 1] * 2


def test_a_network_that_keeps_what_it_computed_is_tried_with_one_image() -> None:
    model = pooled_norm()
    model.register_forward_hook(lambda module, _, output: setattr(module, "last", output))
    model(torch.rand(4, 3, 8, 8))
    assert not model.last.is_leaf
    assert joins_last(model, random_split(17), batch_size=8)


def test_a_batch_norm_that_stays_in_eval_mode_takes_one_image() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True):
            return super().train(False)

    assert batch_sizes(pooled_norm(norm=Frozen), 17) == [8, 8, 1] * 2


def test_every_image_is_seen_once_and_a_resumed_run_is_the_same(tmp_path) -> None:
    whole, resumed, train, path = pooled_norm(), pooled_norm(), random_split(17), tmp_path / "state"
    history = fine_tune(whole, train, RECIPE)

    class Stop(Exception):
        pass

    def stop(model: nn.Module, at: Step) -> None:
        if at.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fine_tune(pooled_norm(), train, RECIPE, state_path=path, hooks=Hooks(before_step=stop))
    continued = fine_tune(resumed, train, RECIPE, state_path=path)
    assert without_seconds(continued) == without_seconds(history)
    assert same_weights(whole, resumed)
    assert whole[3].num_batches_tracked == 4


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (5, 1)])
def test_where_there_is_no_batch_before_it_is_said_before_the_first_step(n, batch_size) -> None:
    model = pooled_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"batches of one image .*at least two images.*batch_size=2"):
        fine_tune(model, random_split(n), replace(RECIPE, batch_size=batch_size))
    assert same_weights(model.state_dict(), before)


def test_asking_draws_no_random_number_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Dropout(0.5), pooled_norm())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    assert joins_last(model.eval(), random_split(17), 8)
    assert not model.training
    assert same_weights(model.state_dict(), before)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_trained(dtype) -> None:
    with pytest.raises(ValueError, match=rf"{dtype}.*small updates.*model.float\(\)"):
        fine_tune(small_net().to(dtype), random_split(16), RECIPE)


def test_double_precision_trains_as_float32_does() -> None:
    single, double = (
        fine_tune(small_net().to(t), random_split(16), RECIPE) for t in (torch.float, torch.double)
    )
    assert single.epochs[-1].train_loss == pytest.approx(double.epochs[-1].train_loss, rel=1e-3)


class Tupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x), x


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (Tupled(), {}, "a tuple of 2"),
        (nn.Flatten(), {}, "no parameters: there is nothing to train"),
        (small_net()[1][:7], {}, r"shape \(1, 32, 2, 2\)"),
        (pooled_norm(), {"images": torch.zeros(16, 1, 8, 8, dtype=torch.uint8)}, r"\(1, 1, 8, 8\).*channels"),
        (small_net(), {"labels": torch.arange(16) - 1}, "label -1"),
        (small_net(), {"labels": torch.arange(16.0)}, "float32.*one integer"),
        (small_net(), {"labels": torch.eye(16)}, "argmax"),
    ],
)
def test_what_cannot_train_is_named_before_the_first_step(model, change, message) -> None:
    steps: list[bool] = []
    model.register_forward_hook(lambda m, *_: steps.append(m.training))
    with pytest.raises(ValueError, match=message):
        fine_tune(model, replace(random_split(16), **change), RECIPE)
    assert not any(steps)


def test_labels_of_another_integer_type_train_alike() -> None:
    train = random_split(20)
    wide, narrow = small_net(), small_net()
    fine_tune(wide, train, RECIPE)
    fine_tune(narrow, replace(train, labels=train.labels.to(torch.int16)), RECIPE)
    assert same_weights(wide, narrow)


def test_a_network_whose_logits_are_nan_is_named() -> None:
    model = small_net()
    model[1][9].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 0 .*NaN"):
        fine_tune(model, random_split(16), RECIPE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_weight_lies_afterwards_as_before(layout: torch.memory_format) -> None:
    """Depthwise ones too, of one channel a filter, which count as contiguous in both layouts."""
    shapes = ((8, 3, 3, 3), (8, 1, 3, 3), (8, 1, 1, 3), (8, 8, 1, 1), (8, 1, 1, 1), (1, 8, 1, 1))
    weights = (torch.rand(shape).contiguous(memory_format=layout) for shape in shapes)
    model = nn.ParameterList(weights).to(memory_format=layout)
    model.register_buffer("mask", torch.rand(8, 1, 3, 3).clone(memory_format=layout))
    before = {name: (value.stride(), value.clone()) for name, value in model.state_dict().items()}
    last = laid_last(model)
    placed(model, torch.device("cpu"))
    placed_back(model, last)
    for name, value in model.state_dict().items():
        assert value.stride() == before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (Attack("autoattack", eps=0.01), "AutoAttack"),
        (Attack("fgsm", eps=0.1, space="normalized"), "normalize"),
    ],
)
def test_an_attack_that_cannot_be_made_is_refused_before_the_first_step(attack, match):
    split = data.load("digits", "train").take(40)
    model, stepped = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)), []
    hooks = Hooks(after_step=lambda *_: stepped.append(1))
    with pytest.raises(ValueError, match=match):
        fine_tune(model, split, Recipe(epochs=1), test=split, attacks={"it": attack}, hooks=hooks)
    with pytest.raises(ValueError, match=match):
        fine_tune(model, split, Recipe(epochs=1, adversarial=attack), hooks=hooks)
    assert not stepped


def test_training_without_data_or_network_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no training data: give a gkp.data.Split"):
        fine_tune(small_net(), None, RECIPE)
    with pytest.raises(TypeError, match="the model is a function: give an nn.Module"):
        fine_tune(lambda x: x, random_split(16), RECIPE)
    with pytest.raises(ValueError, match="parameters are on the meta device"):
        fine_tune(small_net().to("meta"), random_split(16), RECIPE)
