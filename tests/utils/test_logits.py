"""Whatever a network returns is logits, or a ValueError that says what came; labels are its classes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_nets import CLASSES, PIXELS, Odd, images, nan_where_bright, right_labels, swallowed
from torch import Tensor, nn

from gkp.attacks import Attack, fgsm, pgd
from gkp.attacks.autoattack import autoattack
from gkp.evaluate import accuracy, outcome
from gkp.utils.logits import NotFinite, as_logits, forward, logits

EPS = 8 / 255
ATTACKS = {
    "none": Attack("none"),
    "fgsm": Attack("fgsm", eps=EPS),
    "predicted": Attack("fgsm", eps=EPS, labels="predicted"),
    "pgd": Attack("pgd", eps=EPS, step=EPS / 2, iterations=3, restarts=1),
}


@dataclass
class Answer:
    scores: Tensor


def by_autoattack(model: nn.Module, x: Tensor, y: Tensor):
    return autoattack(model, x, y, eps=EPS, version="custom", attacks=("apgd-ce",), batch_size=5)


EVALUATIONS = {name: lambda m, x, y, a=a: outcome(m, x, y, a, batch_size=5) for name, a in ATTACKS.items()}
attacked = pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS)
EVERYWHERE = EVALUATIONS | {"autoattack": by_autoattack}
everywhere = pytest.mark.parametrize("evaluate", EVERYWHERE.values(), ids=EVERYWHERE)


# ---- what a network returns ----------------------------------------------------------------------

OUTPUTS = {
    "tuple": (lambda z: (z, z), r"a tuple of 2.*output\[0\]"),
    "list": (lambda z: [z], r"a list of 1.*output\[0\]"),
    "dictionary": (lambda z: {"features": z, "logits": z}, r'keys features, logits.*output\["logits"\]'),
    "object": (lambda z: Answer(z), "type Answer"),
    "nothing": (lambda z: None, "type NoneType"),
    "map": (lambda z: z[:, :, None, None], r"shape \(\d+, 5, 1, 1\)"),
    "one number": (lambda z: z[:, 0], r"shape \(\d+,\)"),
    "one class": (lambda z: z[:, :1], r"shape \(\d+, 1\).*two classes"),
    "half the images": (lambda z: z[::2], "for 5 images"),
    "classes": (lambda z: (100 * z).long(), "int64.*scores themselves"),
    "complex": (lambda z: z.to(torch.complex64), "complex64"),
}


@everywhere
@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_is_no_logits_is_named(evaluate, kind) -> None:
    behind, message = OUTPUTS[kind]
    with pytest.raises(ValueError, match=message):
        evaluate(Odd(behind=behind), images(10), torch.zeros(10, dtype=torch.long))


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 4), max_size=4), st.integers(1, 4), st.sampled_from([torch.float32, torch.int8])
)
def test_logits_are_one_row_of_two_or_more_floats_for_each_image(shape, n, dtype) -> None:
    output = torch.zeros(shape, dtype=dtype)
    if len(shape) == 2 and shape[0] == n and shape[1] >= 2 and dtype.is_floating_point:
        assert as_logits(output, n) is output
    else:
        with pytest.raises(ValueError, match="wrap it|scores themselves"):
            as_logits(output, n)


@everywhere
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 3])
def test_a_logit_that_is_not_finite_is_refused_with_its_image(evaluate, value, column) -> None:
    class Spoiled(Odd):
        def forward(self, x: Tensor) -> Tensor:
            here = (x.flatten(1)[:, :1] == 0.123) & (torch.arange(CLASSES) == column)
            return torch.where(here, value, self.net(x))

    x = images(9)
    x[7, 0, 0, 0] = 0.123
    model = Spoiled()
    with pytest.raises(NotFinite, match="logits of image 7 "):
        evaluate(model, x, model.net(x).argmax(1))


def test_a_weight_that_is_nan_makes_no_image_right() -> None:
    model = Odd()
    model.net[3].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 0 "):
        accuracy(model, images(), torch.zeros(12, dtype=torch.long))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "autoattack"])
def test_nan_of_an_attacked_image_alone_is_refused(name) -> None:
    """The attack brightens a dim image past the point where its logit becomes NaN, which argmax takes."""
    x = images(6) * 0.5
    x[3, 0, 0, 0] = 0.9 - EPS / 4
    model = Odd(before=nan_where_bright, behind=swallowed)
    y = torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        model.net[3].bias[0] = 9.0  # right by far, so that no attack stops early
        model.net[1].weight[:, 0] = 1.0
        model.net[3].weight[0] = -0.1  # brighter is less like class 0
    assert outcome(model, x, y, Attack("none")).accuracy == 1
    with pytest.raises(ValueError, match="image 3 |attacked image"):
        EVERYWHERE[name](model, x, y)


def test_a_gradient_that_is_nan_is_refused_with_its_image() -> None:
    x = images(6)
    x[4] = 0.5
    model = Odd(before=lambda x: x + 0 * (x - 0.5).abs().sum((1, 2, 3), keepdim=True).sqrt())
    assert logits(model, x).isfinite().all()
    with pytest.raises(NotFinite, match="gradients at the pixels of image 4 "):
        fgsm(model, x, torch.zeros(6, dtype=torch.long), eps=EPS)


# ---- what a network takes ------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 9, 9)])
def test_images_that_the_network_cannot_take_are_named(evaluate, shape) -> None:
    with pytest.raises(
        ValueError, match=rf"\(\d, {shape[1]}, {shape[2]}, {shape[2]}\).*channels and the size"
    ):
        evaluate(Odd(), torch.rand(shape), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_evaluated_nearly_alike(dtype) -> None:
    for name, evaluate in EVERYWHERE.items():
        x = images(4 if name == "autoattack" else 40)
        y = right_labels(Odd(), x)
        expected, found = evaluate(Odd(), x, y), evaluate(Odd().to(dtype), x, y)
        differ = (expected.correct != found.correct).sum()
        assert differ <= (0 if dtype == torch.float64 else len(x) / 10), name
        assert (found.accuracy < 1) == (name != "none"), name


def test_half_precision_gives_float32_logits_and_double_its_own() -> None:
    x = images(2)
    types = {t: forward(Odd().to(t), x).dtype for t in (torch.float16, torch.bfloat16, torch.float64)}
    assert types == {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float64: torch.float64,
    }


@attacked
def test_a_network_that_works_in_place_leaves_the_images_alone(evaluate) -> None:
    x = images()
    before, y = x.clone(), right_labels(Odd(before=lambda x: x - 0.5), x)
    found = evaluate(Odd(before=lambda x: x.sub_(0.5)), x, y)
    assert torch.equal(x, before)
    assert torch.equal(found.correct, evaluate(Odd(before=lambda x: x - 0.5), x, y).correct)


@everywhere
def test_images_and_callers_in_inference_mode_are_as_good_as_others(evaluate) -> None:
    x, model = images(4), Odd()
    y = right_labels(model, x)
    expected = evaluate(model, x, y).correct
    with torch.inference_mode():
        inside = evaluate(model, x.clone(), y.clone()).correct
        x, y, born_inside = x.clone(), y.clone(), Odd()
    assert torch.equal(inside, expected)
    assert torch.equal(evaluate(model, x, y).correct, expected)
    attack = Attack("fgsm", eps=0.1)
    assert outcome(born_inside, x, y, attack).n == 4  # a copy is attacked, which can have gradients
    with pytest.raises(ValueError, match="Inference tensors.*make a clone"):
        outcome(born_inside, x, y, attack, fold=False)


def test_autoattack_takes_other_integer_labels_and_networks_in_place() -> None:
    x = images(4)
    before, y = x.clone(), right_labels(Odd(before=lambda x: x - 0.5), x)
    expected = by_autoattack(Odd(before=lambda x: x - 0.5), x, y)
    found = by_autoattack(Odd(before=lambda x: x.sub_(0.5)), x, y.to(torch.int16))
    assert torch.equal(x, before)
    assert torch.equal(found.correct, expected.correct)


# ---- labels --------------------------------------------------------------------------------------


@attacked
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
)
def test_labels_of_every_integer_type_are_the_same(evaluate, dtype) -> None:
    x = images()
    y = right_labels(Odd(), x)
    assert torch.equal(evaluate(Odd(), x, y.to(dtype)).correct, evaluate(Odd(), x, y).correct)


LABELS = {
    "column": (lambda y: y[:, None], "one integer label per image"),
    "one-hot": (lambda y: nn.functional.one_hot(y, CLASSES), "argmax"),
    "float": (lambda y: y.float(), "float32"),
    "bool": (lambda y: y.bool(), "torch.bool"),
    "list": (lambda y: y.tolist(), "a list"),
    "number": (lambda y: y[0], "one integer label per image"),
    "too few": (lambda y: y[:-1], "as many labels as images"),
    "too large": (lambda y: y + CLASSES, r"label [5-9] but the model has 5 outputs"),
    "negative": (lambda y: y - 100, r"label -\d+ but"),
}


@everywhere
@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_no_classes_are_named(evaluate, kind) -> None:
    change, message = LABELS[kind]
    x = images()
    with pytest.raises(ValueError, match=message):
        evaluate(Odd(), x, change(right_labels(Odd(), x)))


def test_a_single_label_out_of_range_in_the_last_batch_is_named() -> None:
    y = torch.tensor([0] * 11 + [CLASSES])
    for attack in ATTACKS.values():
        with pytest.raises(ValueError, match="label 5 but"):
            outcome(Odd(), images(), y, attack, batch_size=5)


def test_attacks_alone_refuse_as_evaluations_do() -> None:
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    nan = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    nan[1].bias.data[1] = torch.nan
    options = {"eps": EPS, "step": EPS, "iterations": 2, "restarts": 1}
    for attack in (lambda *a: fgsm(*a, eps=EPS), lambda *a: pgd(*a, **options)):
        with pytest.raises(NotFinite, match="image 0 "):
            attack(nan, x, y)
        with pytest.raises(ValueError, match="label 9"):
            attack(Odd(), x, y + 9)
        with pytest.raises(ValueError, match="numpy|ndarray"):
            attack(Odd(), x.numpy(), y)


def test_the_high_pass_filter_needs_a_mean() -> None:
    with pytest.raises(ValueError, match=r"model\.normalize\.mean"):
        outcome(Odd(), images(), torch.zeros(12, dtype=torch.long), Attack("highpass", theta=0.5))
