"""gkp.nets.channels.copying: every network that can be copied is, and the rest is named."""

import copy
import functools
import random
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

import gkp
from gkp.attacks import Attack
from gkp.deploy.groups import fastest_groups
from gkp.evaluate import outcome
from gkp.nets import cost
from gkp.nets.channels.copying import CopyError, copied, left_alone, not_called


class Keeping(nn.Module):
    """Keeps what it computed, in an attribute and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 4, 3), {}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x)
        self.kept = {"all": [self.features.relu(), (self.features.tanh(),)]}
        return self.features.mean((2, 3))


def masked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    prune.l1_unstructured(model[0], "weight", 5)
    return model


def normalised() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))).eval()


@pytest.mark.parametrize("make", [Keeping, masked, normalised, lambda: nn.Conv2d(3, 4, 3)])
def test_a_copy_computes_the_same_and_learns_alone(make) -> None:
    model, x = make(), torch.randn(2, 3, 6, 6)
    model(x)
    other = copied(model)
    assert torch.equal(other(x), model(x))
    before = model(x).detach()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert not torch.equal(other(x), before)
    assert torch.equal(model(x), before)
    other(x).sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3))
    model[1].lock = threading.Lock()
    with pytest.raises(ValueError, match=r"1\.lock is a lock that copy.deepcopy refuses .*__deepcopy__"):
        copied(model)


# ---- functions that hold on to the network -----------------------------------------------------------------


class Hooked(nn.Module):
    """Takes a feature from a hook, as is usual, and counts, averages and keeps in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.features: dict[str, Tensor] = {}
        self.calls: list[int] = []
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))
        self.third.register_forward_hook(lambda _, __, out: self.features.__setitem__("third", out))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 2, 3))
        self.calls.append(len(x))
        self.last = x.mean()
        self.third(F.relu(self.second(F.relu(self.first(x)))))
        return self.head(self.features["third"].relu().mean((2, 3)))


def decorated(function: Callable) -> Callable:
    @functools.wraps(function)
    def inner(*args: Tensor) -> Tensor:
        return function(*args)

    return inner


class Tailed(nn.Module):
    """Ends in a function that holds on to it."""

    def __init__(self, wrap: Callable) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.tail = wrap(self)

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.second(x))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.first(x)))


WRAPS = {
    "lambda": lambda self: lambda x: self.end(x),
    "default": lambda self: lambda x, self=self: self.end(x),
    "decorator": lambda self: decorated(self.end),
    "gradients": lambda self: torch.enable_grad()(self.end),
    "compiled": lambda self: torch.compile(self.end, backend="eager"),
    "partial": lambda self: functools.partial(lambda end, x: end(x), self.end),
    "nested": lambda self: decorated(functools.partial(Tailed.end, self)),
    "weak": lambda self, ref=weakref.ref: functools.partial(lambda it, x: it().end(x), ref(self)),
}


@pytest.mark.parametrize("method", ["sr-gkp", "l1", "lrf"])
def test_a_pruned_network_with_a_hook_sees_its_input(method: str) -> None:
    torch.manual_seed(0)  # one network in sixty is dead behind its ReLUs
    model, x = Hooked().eval(), torch.rand(2, 3, 8, 8)
    model(x)
    pruned = gkp.prune(model, method, groups=4, example_input=x[:1])
    one, other = pruned(x)
    assert not torch.allclose(one, other)
    pruned(x + 1)
    assert torch.equal(model.features["third"], model.third(F.relu(model.second(F.relu(model.first(x))))))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("method", ["sr-gkp", "l1"])
def test_a_pruned_network_runs_nothing_of_the_original(wrap: Callable, method: str) -> None:
    model, x = Tailed(wrap).train(), torch.rand(2, 3, 8, 8)
    pruned = gkp.prune(model, method, groups=4, example_input=x[:1]).eval()
    before = pruned(x)
    assert model.norm.num_batches_tracked == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(pruned(x), before)
    pruned(x).sum().backward()
    assert pruned.head.weight.grad is not None


def test_functions_that_hold_nothing_of_the_network_stay_the_same_object() -> None:
    model, scale = nn.Conv2d(3, 4, 3), 2
    model.activation, model.scaled = F.relu, lambda x: scale * x
    assert copied(model).activation is F.relu
    assert copied(model).scaled is model.scaled


class Frozen(dict):
    """As configurations often are."""

    def __setitem__(self, *_: object) -> None:
        raise TypeError

    def __reduce__(self) -> tuple:
        return Frozen, (dict(self),)


def test_containers_that_hold_themselves_or_take_nothing_are_copied() -> None:
    model = nn.Conv2d(3, 4, 3)
    model.ring, model.config = [model.forward, lambda x: model(x)], Frozen(width=4)
    model.ring.append(model.ring)
    new, x = copied(model), torch.rand(1, 3, 6, 6)
    assert new.ring[2] is new.ring
    assert new.config == {"width": 4}
    with not_called(model):
        assert torch.equal(new.ring[1](x), model.forward(x))


def test_a_function_that_calls_itself_is_made_again() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

            def down(x: Tensor, times: int) -> Tensor:
                return down(self.layer(x), times - 1) if times else x

            self.down = down

        def forward(self, x: Tensor) -> Tensor:
            return self.down(x, 3)

    model, x = Repeated(), torch.rand(2, 4)
    new = copied(model)
    assert torch.equal(new(x), model(x))
    with not_called(model):
        new(x)


def test_evaluation_of_a_network_with_a_hook() -> None:
    model, x = Hooked().eval(), torch.rand(64, 3, 8, 8)
    labels = model(x).argmax(1)
    assert outcome(model, x, labels, Attack("none"), batch_size=16).accuracy == 1


def test_what_runs_the_original_is_refused_by_name() -> None:
    model = Tailed(WRAPS["lambda"])
    message = r"runs second of the network it was copied from: make it a method"
    with not_called(model), pytest.raises(CopyError, match=message):
        model.second(torch.rand(1, 8, 4, 4))
    model.second(torch.rand(1, 8, 4, 4))


# ---- runs that leave a network alone -----------------------------------------------------------------------


USES = [
    lambda model, x: gkp.prune(model, "sr-gkp", groups=4, example_input=x),
    lambda model, x: gkp.prune(model, "sr-gkp", groups=4, example_input=x, profile="falling"),
    lambda model, x: gkp.prune(model, "l1", example_input=x),
    lambda model, x: gkp.prune(model, "group-norm", example_input=x),
    lambda model, x: cost.count(model, x),
    lambda model, x: cost.count(model, x, convention="paper"),
]


@pytest.mark.parametrize("use", USES)
def test_what_a_forward_counts_and_keeps_is_as_before(use: Callable) -> None:
    model, x = Hooked(), torch.rand(1, 3, 8, 8)
    model(torch.rand(2, 3, 8, 8))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last, buffer, feature = model.last, model.average, model.features["third"]
    use(model, x)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.calls == [2]
    assert model.last is last
    assert model.average is buffer
    assert model.features["third"] is feature
    assert model.training


class Meter:
    """An object of nobody's that counts."""

    n = 0


class MaxNorm(nn.Conv2d):
    """As in EEGNet: its forward changes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


class Changing(nn.Module):
    """Changes in its forward whatever a network can keep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = MaxNorm(3, 8, 3), MaxNorm(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.calls = nn.Linear(8, 4), nn.Parameter(torch.zeros(2), requires_grad=False)
        self.meter, self.recent, self.array = Meter(), deque([0], maxlen=5), np.zeros(3)
        self.nested, self.counted = {"list": [0], "tensor": torch.zeros(3)}, Counter(x=1)
        self.ordered, self.generator = OrderedDict(n=0), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.data += 1
        self.meter.n += 1
        self.recent.append(self.meter.n)
        self.array += 1
        self.nested["list"][0] += 1
        self.nested["tensor"] += 1
        self.counted["x"] += 1
        self.ordered["n"] += 1
        torch.rand(1, generator=self.generator)
        return self.head(self.third(self.second(self.first(x).relu()).relu()).relu().mean((2, 3)))

    def state(self) -> list[object]:
        """All that it changes, as numbers."""
        weights = [parameter.tolist() for parameter in self.parameters()]
        plain = [self.meter.n, list(self.recent), self.array.tolist(), self.nested["list"]]
        dicts = [self.nested["tensor"].tolist(), dict(self.counted), dict(self.ordered)]
        return copy.deepcopy([weights, plain, dicts, self.generator.get_state().tolist()])


@pytest.mark.parametrize("use", USES)
def test_what_a_forward_changes_of_any_kind_is_as_before(use: Callable) -> None:
    model = Changing()
    before = model.state()
    use(model, torch.rand(1, 3, 8, 8))
    assert model.state() == before


class Drawing(Hooked):
    """Draws random numbers in both modes, from every source."""

    def forward(self, x: Tensor) -> Tensor:
        noise = float(np.random.rand()) + random.random()  # noqa: NPY002
        return super().forward(x + 0.01 * noise * torch.randn_like(x))


@pytest.mark.parametrize("use", [*USES, lambda model, x: fastest_groups(model, 0.5, x, rounds=1)])
def test_random_numbers_go_on_as_if_nothing_had_run(use: Callable) -> None:
    model, x = Drawing(), torch.rand(1, 3, 8, 8)

    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1:3]  # noqa: NPY002

    torch.manual_seed(1)
    before = str(states())
    use(model, x)
    assert str(states()) == before


def test_a_pruned_network_comes_back_as_if_it_had_never_run() -> None:
    pruned = gkp.prune(Changing(), "l1", example_input=torch.rand(1, 3, 8, 8))
    assert pruned.meter.n == pruned.calls.sum() == 0
    assert list(pruned.recent) == [0]


PROGRAMS = {"trace": fx.symbolic_trace, "extractor": lambda net: create_feature_extractor(net, {"4": "out"})}


def program(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)]
    return PROGRAMS[kind](nn.Sequential(*layers).eval()).eval()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_of_torch_fx_keep_modes_hooks_and_attributes(kind: str) -> None:
    model, x = program(kind), torch.rand(1, 3, 8, 8)
    model.note = "mine"
    model.register_forward_hook(lambda *_: torch.ones(1))
    pruned = gkp.prune(model, "l1", rate=0.5, example_input=x)
    for new in (copied(model), copied(copied(model)), pruned):
        assert not any(module.training for module in new.modules())
        assert (new.note, new.code, new(x)) == ("mine", model.code, 1)
    assert copied(model.train()).training


def test_what_cannot_be_copied_is_counted_all_the_same() -> None:
    model, x = Hooked(), torch.rand(1, 3, 8, 8)
    expected = cost.count(model, x)
    model.lock = threading.Lock()
    assert cost.count(model, x) == expected
    assert model.calls == []


def test_what_a_run_adds_is_gone_and_errors_pass() -> None:
    model = Hooked()

    def fail() -> None:
        with left_alone(model):
            model(torch.rand(2, 3, 8, 8))
            model.register_buffer("new", torch.ones(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "last" not in vars(model)
    assert "new" not in dict(model.named_buffers())
    assert model.features == {}
