"""The table of methods, and what is refused."""

import copy
import inspect

import pytest
import torch

import gkp
from gkp import data as datasets
from gkp import pruners
from gkp.attacks import Attack
from gkp.nets import models
from gkp.pruners.common import registry
from gkp.train import Hooks
from gkp.train.recipe import Recipe


@pytest.fixture
def table(monkeypatch):
    """A copy of the table, so that a test may enter methods."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.mark.parametrize("name", pruners.methods())
def test_every_method_says_what_it_is(name):
    method = pruners.get(name)
    assert method.name == name
    assert method.structure in registry.STRUCTURES
    assert method.needs in registry.NEEDS
    assert (method.schedule == "in training") == (method.start is not None)
    assert method.citation
    assert method.summary
    assert not method.summary.endswith(".")
    assert inspect.getdoc(method.prepare), "a docstring gives formula and what is left out"
    parameters = inspect.signature(method.prepare).parameters
    assert list(parameters)[:4] == list(registry.COMMON)
    assert inspect.Parameter.empty not in method.options.values(), "every option has a default"


def test_names_are_listed_in_one_place():
    assert gkp.methods() == pruners.methods()
    assert len(set(pruners.methods())) == len(pruners.methods())
    assert "sr-gkp" in pruners.methods()


def test_an_unknown_method_or_option_is_refused_with_the_known_ones():
    model = models.create("resnet8")
    with pytest.raises(ValueError, match="unknown pruning method 'l3'.*sr-gkp"):
        gkp.prune(model, "l3")
    with pytest.raises(ValueError, match="random has no option sede; its options: seed"):
        gkp.prune(model, "random", sede=1)
    with pytest.raises(ValueError, match="l2 has no option seed; its options: none"):
        gkp.prune(model, "l2", seed=1)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.2, -0.1, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        gkp.prune(models.create("resnet8"), "l1", rate=rate)


def test_a_name_is_taken_once(table):
    def other(model, *, groups, example_input, data):
        raise NotImplementedError

    enter = registry.register("l1", structure="filter", citation="none", summary="none")
    with pytest.raises(ValueError, match="'l1' is already registered"):
        enter(other)
    other.__qualname__ = "l1"  # in another module
    with pytest.raises(ValueError, match="'l1' is already registered"):
        enter(other)


def test_a_module_may_run_anew(table, tmp_path):
    code = (
        "from gkp.pruners.common.registry import register\n"
        "@register('new', structure='filter', citation='', summary={summary!r})\ndef new(model, **_): ...\n"
    )
    for module, file, summary in (("mine", "1", "first"), ("mine", "2", "second"), ("other", "2", "third")):
        compiled = compile(code.format(summary=summary), tmp_path / file, "exec")
        exec(compiled, {"__name__": module})
        assert registry.get("new").summary == summary


@pytest.mark.parametrize(
    "wrong", [{"structure": "weight"}, {"schedule": "later"}, {"needs": "luck"}, {"schedule": "in training"}]
)
def test_properties_that_the_tables_do_not_know_are_refused(wrong):
    with pytest.raises(ValueError, match="choose one of|go together"):
        registry.register("new", **{"structure": "filter", "citation": "none", "summary": "none", **wrong})


def test_a_method_of_ones_own(table):
    from gkp.pruners.common.filters import weight_cut

    @pruners.register("largest", structure="filter", citation="mine", summary="filters of largest weight")
    def largest(model, *, groups, example_input, data, sign=-1):
        return weight_cut(model, example_input, lambda weight, _: sign * weight.amax((1, 2, 3)))

    model = models.create("resnet8").eval()
    pruned = gkp.prune(model, "largest", rate=0.5)
    weight = model.layer1[0].conv1.weight
    kept = weight.amax((1, 2, 3)).argsort()[:8].sort().values
    assert torch.equal(pruned.layer1[0].conv1.weight, weight[kept])
    assert dict(pruners.get("largest").options) == {"sign": -1}


def test_a_method_with_a_loss_a_projection_and_an_adversarial_phase_fits_in(table):
    """What the methods that are not here yet ask of a session: a teacher, a projection, another recipe."""
    from gkp.pruners.common.filters import weight_cut

    attack, seen = Attack("fgsm", eps=2 / 255), []

    def start(model, *, rate, epochs, groups, example_input, data, weight=1.0):
        teacher = copy.deepcopy(model).eval().requires_grad_(False)

        def loss(model, x, y, logits, epoch):
            seen.append((weight, x))
            return weight * (logits - teacher(x)).square().mean()

        def project(model, at):
            model.linear.bias.data.zero_()

        hooks = Hooks(loss=loss, after_step=project)
        return pruners.Session(hooks, finish, 0.5, {"adversarial": attack})

    def finish(model):
        return distilled(model, groups=8, example_input=None, data=None)

    def distilled(model, *, groups, example_input, data, weight=1.0):
        return weight_cut(model, example_input, lambda weight, _: weight.abs().sum((1, 2, 3)))

    about = {"structure": "filter", "schedule": "in training", "citation": "none", "summary": "none"}
    pruners.register("distilled", start=start, **about)(distilled)
    images = datasets.load("digits", "train").take(32)
    recipe = Recipe(epochs=2, batch_size=16, lr=0.01, augment="none", schedule="constant")
    pruned = gkp.prune(
        models.create("resnet8"), "distilled", rate=0.5, data=images, recipe=recipe, weight=2.0
    )
    assert pruned.layer1[0].conv1.out_channels == 8
    assert [weight for weight, _ in seen] == [2.0, 2.0]  # one epoch of two steps, then the cut
    assert not any((255 * x % 1 < 1e-3).all() for _, x in seen)  # the loss saw perturbed images
