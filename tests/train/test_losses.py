"""gkp.train.losses: the penalty and the distance from a teacher, in closed form, in the loop and resumed."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from small_training import QUICK, TRAIN, random_split, same_weights, small_net, train, without_seconds
from torch import nn

import gkp
from gkp.attacks import Attack
from gkp.nets.models import CifarResNet
from gkp.train.hooks import Hooks
from gkp.train.losses import divergence, gradient_norm
from gkp.train.recipe import Recipe
from gkp.train.state import StateError, identity_of

PENALISED = replace(QUICK, gradient_penalty=0.05)
DISTILLED = replace(QUICK, distillation=0.7)
ONE_STEP = Recipe(epochs=1, batch_size=70, lr=0.1, momentum=0.0, weight_decay=0.0, augment="none")


def linear_net(classes=10):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes, bias=False))


def teacher():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).requires_grad_(True).train()


def squared_gradients(weight, x, y):
    """||W^T (p - e_y)||^2 of every image, for logits W x."""
    answers = (x.flatten(1) @ weight.T).softmax(1) - F.one_hot(y, len(weight))
    return (answers @ weight).square().sum(1)


# ---- closed forms --------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_network_is_its_formula_and_can_be_differentiated():
    torch.manual_seed(0)
    weight, x = torch.randn(4, 12).double().requires_grad_(), torch.rand(5, 3, 2, 2).double().requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 3])

    def penalty(weight):
        return gradient_norm(F.cross_entropy(x.flatten(1) @ weight.T, y), x)

    torch.testing.assert_close(penalty(weight), squared_gradients(weight, x, y).mean())
    assert torch.autograd.gradcheck(penalty, weight)


def test_the_divergence_is_that_of_the_softened_classes_times_the_squared_temperature():
    torch.manual_seed(0)
    student, target = torch.randn(2, 6, 10)
    for temperature in (1.0, 4.0):
        softened = [
            torch.distributions.Categorical(logits=logits / temperature) for logits in (target, student)
        ]
        expected = temperature**2 * torch.distributions.kl_divergence(*softened).mean()
        torch.testing.assert_close(divergence(student, target, temperature), expected)
    assert divergence(student, student, 4.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_step_descends_the_loss_with_its_penalty(strength):
    model = linear_net()
    weight = model[1].weight.detach().clone().requires_grad_()
    x, y = TRAIN.pixels(), TRAIN.labels
    penalty = strength * squared_gradients(weight, x, y).mean()
    (F.cross_entropy(x.flatten(1) @ weight.T, y) + penalty).backward()
    history = gkp.fine_tune(model, TRAIN, replace(ONE_STEP, gradient_penalty=strength))
    torch.testing.assert_close(model[1].weight, weight - ONE_STEP.lr * weight.grad)
    assert history.epochs[0].train_loss == pytest.approx(F.cross_entropy(x.flatten(1) @ weight.T, y).item())


def test_a_step_descends_the_mixed_loss():
    model, parent = linear_net(), teacher()
    weight = model[1].weight.detach().clone().requires_grad_()
    x, y = TRAIN.pixels(), TRAIN.labels
    found, target = x.flatten(1) @ weight.T, parent(x).detach()
    (0.25 * F.cross_entropy(found, y) + 0.75 * divergence(found, target, 2.0)).backward()
    recipe = replace(ONE_STEP, distillation=0.75, temperature=2.0)
    gkp.fine_tune(model, TRAIN, recipe, teacher=parent)
    torch.testing.assert_close(model[1].weight, weight - ONE_STEP.lr * weight.grad)


# ---- in the loop ---------------------------------------------------------------------------------


def test_the_penalty_leaves_smaller_gradients_and_the_teacher_nearer_answers():
    x, y, parent = TRAIN.pixels().requires_grad_(), TRAIN.labels, teacher()

    def measured(model):
        norm = gradient_norm(F.cross_entropy(model(x), y), x)
        return norm.item(), divergence(model(x), parent(x), 4.0).item()

    plain, penalised = (measured(train(recipe)[0]) for recipe in (QUICK, PENALISED))
    distilled = measured(train(DISTILLED, teacher=parent)[0])
    assert penalised[0] < 0.8 * plain[0]
    assert distilled[1] < 0.8 * plain[1]


def test_the_teacher_is_left_as_it_was():
    parent = nn.Sequential(small_net(0.5), nn.Identity()).train()
    before = copy.deepcopy(parent)
    train(DISTILLED, teacher=parent)
    assert same_weights(parent, before)  # running statistics of batch norms, too
    assert all(module.training for module in parent.modules())
    assert all(p.requires_grad and p.grad is None for p in parent.parameters())


def test_a_network_can_learn_from_what_it_was():
    model = linear_net()
    before = copy.deepcopy(model)
    gkp.fine_tune(model, TRAIN, replace(ONE_STEP, distillation=1.0), teacher=model)
    torch.testing.assert_close(model[1].weight, before[1].weight)


@pytest.mark.parametrize("bits", [("float32", 0.0), ("bfloat16", 0.2)], ids=lambda pair: pair[0])
def test_the_penalty_reaches_grouped_kernels_in_every_precision(bits):
    precision, tolerance = bits
    torch.manual_seed(0)
    pruned = gkp.prune(CifarResNet(8), "sr-gkp", groups=4)
    images = random_split(16, size=32)
    recipe = replace(ONE_STEP, batch_size=16, gradient_penalty=1.0)
    moved = {}
    for kind in ("float32", precision):
        model = copy.deepcopy(pruned)
        gkp.fine_tune(model, images, replace(recipe, precision=kind))
        pairs = zip(model.parameters(), pruned.parameters(), strict=True)
        moved[kind] = torch.cat([(new - old).detach().flatten() for new, old in pairs])
    distance = (moved[precision] - moved["float32"]).norm() / moved["float32"].norm()
    assert distance <= tolerance


@pytest.mark.parametrize("recipe", [PENALISED, DISTILLED], ids=["penalty", "distillation"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, recipe):
    parent = teacher() if recipe.distillation else None
    given = {"recipe": recipe, "teacher": parent}
    expected, whole = train(model=small_net(0.3), **given)
    stopped, part = train(
        model=small_net(0.3), state_path=tmp_path / "s.pt", after_epoch=lambda row: row.epoch == 2, **given
    )
    assert len(part.epochs) == 2
    resumed, history = train(model=small_net(0.3), state_path=tmp_path / "s.pt", **given)
    assert same_weights(expected, resumed)
    assert without_seconds(history) == without_seconds(whole)


def test_a_state_is_of_one_teacher(tmp_path):
    train(DISTILLED, teacher=teacher(), state_path=tmp_path / "s.pt")
    other = teacher()
    nn.init.zeros_(other[1].bias)
    with pytest.raises(StateError, match=r"another run \(different teacher\)"):
        train(DISTILLED, teacher=other, state_path=tmp_path / "s.pt")


def test_states_of_before_there_were_these_losses_continue():
    said = json.loads(identity_of(small_net(), {}, QUICK, 0, {})["recipe"])
    assert asdict(QUICK).keys() - said.keys() == {"gradient_penalty", "distillation", "temperature"}
    for recipe in (PENALISED, DISTILLED, replace(DISTILLED, temperature=2.0)):
        changed = json.loads(identity_of(small_net(), {}, recipe, 0, {})["recipe"])
        assert set(changed.items()) - set(said.items()) == set(
            {k: v for k, v in asdict(recipe).items() if v != asdict(QUICK)[k]}.items()
        )


def test_pruning_in_training_learns_from_the_network_that_was_given():
    model = small_net()
    recipe = replace(DISTILLED, epochs=2)
    pruned = gkp.prune(model, "sfp", rate=0.5, data=TRAIN, recipe=recipe, example_input=TRAIN.pixels()[:1])
    plain = gkp.prune(
        model, "sfp", rate=0.5, data=TRAIN, recipe=replace(QUICK, epochs=2), example_input=TRAIN.pixels()[:1]
    )
    assert not same_weights(pruned, plain)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient_penalty": -1.0}, "^gradient_penalty=-1.0: give 0 or more"),
        ({"gradient_penalty": float("nan")}, "^gradient_penalty=nan: give 0 or more"),
        ({"distillation": 1.5}, "^distillation=1.5: give a share from 0 to 1"),
        ({"distillation": 0.5, "temperature": 0.0}, "^temperature=0.0: give a positive number"),
        ({"temperature": 2.0}, "^temperature=2.0 is for distillation: give both or neither"),
        ({"gradient_penalty": 0.1, "distillation": 0.5}, "two ways of fine-tuning: choose one"),
        ({"gradient_penalty": 0.1, "adversarial": Attack("fgsm", eps=0.1)}, "two ways of fine-tuning"),
    ],
)
def test_recipes_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def once(network):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return self.inner(Once.apply(x))

    return Net()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear_net()

    def forward(self, x):
        return self.inner(x.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": DISTILLED}, "distillation=0.7 needs a network to learn from: give teacher="),
        ({"teacher": teacher()}, r"nothing is learned from the teacher: give Recipe\(distillation"),
        (
            {"recipe": DISTILLED, "teacher": linear_net(7)},
            "teacher has 7 outputs and the network 10: give a teacher of the same classes",
        ),
        ({"recipe": PENALISED, "hooks": Hooks(loss=lambda *_: None)}, "a loss of its own: leave"),
        (
            {"recipe": DISTILLED, "teacher": teacher(), "hooks": Hooks(loss=lambda *_: None)},
            "a loss of its own: leave",
        ),
        ({"recipe": PENALISED, "model": once(linear_net())}, "gradient of the gradient.*leave gradient_pen"),
        ({"recipe": PENALISED, "model": Detached()}, "gradient of the gradient.*take torch.no_grad"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"train": torch.zeros(4, 3, 8, 8)}, "the training data are a Tensor: give a gkp.data.Split"),
        ({"recipe": {"epochs": 1}}, "the recipe is a dict: give gkp.Recipe"),
        ({"teacher": "resnet20"}, "the teacher is a str: give a network"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(wrong, match) -> None:
    images = gkp.data.of_tensors(torch.full((4, 3, 8, 8), 128, dtype=torch.uint8), torch.tensor([0, 1, 2, 3]))
    given = {"train": images, "recipe": Recipe(epochs=1, distillation=0.5), **wrong}
    with pytest.raises(ValueError, match=match):
        gkp.fine_tune(gkp.models.create("resnet8"), **given)
