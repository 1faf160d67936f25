"""Attributes that are neither tensors of the state nor modules: a file holds them, or saving names them."""

import collections
import dataclasses
import enum
import functools
import operator
import random
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gkp
from gkp.nets import checkpoint
from gkp.nets.channels.layers import copied
from gkp.nets.files.attributes import UnlikeBaseWarning
from gkp.nets.files.code import asked_for, written

X = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Kind(enum.Enum):
    SUM = 1
    MEAN = 2


@dataclasses.dataclass
class Scale:
    factor: float
    shift: Tensor


class Counter:
    """An object without equality."""

    def __init__(self) -> None:
        self.place = id(self)


class Times:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * x


def times(x: Tensor, factor: float) -> Tensor:
    return factor * x


class Net(nn.Module):
    """Everything that a module may keep."""

    width = 16

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)
        self.activation, self.operator, self.method = F.relu, torch.relu, torch.Tensor.relu
        self.slope, self._slope, self.sizes = slope, slope, [1, 2]
        self.scaled, self.part, self.bound = (
            lambda x: slope * x,
            functools.partial(times, factor=slope),
            self.run,
        )
        self.own = lambda x: self.run(x)
        self.layers, self.named = [self.first, self.second], {"head": (self.head,)}
        self.parent, self.times, self.counter = weakref.ref(self), Times(slope), Counter()
        object.__setattr__(self.first, "owner", self)
        self.settings, self.scale, self.kind = {"slope": [1, {"a": 2}]}, Scale(1.0, torch.ones(3)), Kind.SUM
        self.space, self.order = types.SimpleNamespace(t=torch.ones(3)), collections.deque([1, 2])
        self.table, self.array, self.type, self.layer = (
            torch.ones(3),
            np.array([1, np.nan]),
            torch.half,
            nn.ReLU,
        )
        self.take, self.places, self.nan = operator.itemgetter(0), {1, "a"}, float("nan")
        self.generator, self.draws, self.device = torch.Generator(), random.Random(), torch.device("cpu")
        self.helper = [nn.Linear(2, 2)]
        for parameter in self.helper[0].parameters():
            nn.init.ones_(parameter)
        self.features, self.seen, self.history, self.calls = None, {}, [], 0

    def run(self, x: Tensor) -> Tensor:
        self.last = x
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            x = self.activation(layer(x))
        self.features = x
        self.seen["mean"] = x.mean()
        self.history.append(x)
        return self.head(self.run(self.scaled(x)).mean((2, 3)) * getattr(self, "gain", 1.0))


def through_a_file(model: nn.Module, base: nn.Module, tmp_path) -> nn.Module:
    path = tmp_path / "net.safetensors"
    checkpoint.save_model(model, path, network="mine", dataset="photos", base=base)
    return checkpoint.load_file(path, base=base)


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("method", ["l1", "sr-gkp"])
def test_what_differs_in_equal_networks_is_no_difference(method: str, ran: bool, tmp_path) -> None:
    """Results of forward, functions over the module itself, objects of no value; a base that ran, too."""
    base = Net().eval()
    pruned = gkp.prune(Net().eval(), method, groups=2, example_input=X[:1])
    for network in (pruned, base) if ran else (pruned,):
        network(X)
    loaded = through_a_file(pruned, base, tmp_path)
    assert loaded.layers[0] is loaded.first
    assert loaded.layers[1] is loaded.second
    with torch.no_grad():
        assert torch.equal(loaded(X), pruned(X))


@pytest.mark.parametrize("name", ["slope", "_slope", "sizes", "width"])
def test_plain_values_come_back(name: str, tmp_path) -> None:
    model = Net()
    setattr(model, name, [3, 4] if name == "sizes" else 0.5)
    assert getattr(through_a_file(model, Net(), tmp_path), name) == getattr(model, name)


CHANGES: dict[str, Callable[[], Any]] = {
    "activation": lambda: F.elu,
    "operator": lambda: torch.tanh,
    "method": lambda: torch.Tensor.tanh,
    "slope": lambda: torch.tensor(2.0),
    "scaled": lambda: Net(2.0).scaled,
    "part": lambda: functools.partial(times, factor=2.0),
    "bound": lambda: times,
    "layers": lambda: [],
    "named": lambda: {"head": None},
    "times": lambda: Times(2.0),
    "settings": lambda: {"slope": [1, {"a": 3}]},
    "scale": lambda: Scale(1.0, torch.zeros(3)),
    "kind": lambda: Kind.MEAN,
    "space": lambda: types.SimpleNamespace(t=torch.zeros(3)),
    "order": lambda: collections.deque([2, 1]),
    "table": lambda: torch.zeros(3),
    "array": lambda: np.array([2, np.nan]),
    "type": lambda: torch.float,
    "layer": lambda: nn.ELU,
    "take": lambda: operator.itemgetter(1),
    "places": lambda: {1},
    "helper": lambda: [nn.Linear(2, 2)],
    "forward": lambda: F.relu,
    "gain": lambda: 2.0,
}


# Which other code than forward may have set: tensors and objects.
RESULTS = {"times", "scale", "space", "table", "array", "take", "helper"}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_file_cannot_hold_is_named(name: str, tmp_path) -> None:
    model = nn.Sequential(Net())
    setattr(model[0], name, CHANGES[name]())
    said = rf"0\.{name} cannot be described.* give a base made with the same"
    if name in RESULTS:
        with pytest.warns(UnlikeBaseWarning, match=said):
            through_a_file(model, nn.Sequential(Net()), tmp_path)
        return
    with pytest.raises(ValueError, match=said):
        through_a_file(model, nn.Sequential(Net()), tmp_path)
    assert not list(tmp_path.iterdir())
    through_a_file(model, copied(model), tmp_path)  # as the message says


def test_a_layer_of_pytorch_counts_too(tmp_path) -> None:
    base, model = (nn.TransformerEncoderLayer(8, 2, 8, activation=a) for a in (F.relu, F.silu))
    with pytest.raises(ValueError, match="activation cannot be described in a file: it is silu"):
        through_a_file(model, base, tmp_path)


class Bank(nn.Module):
    """Keeps what it saw in a tensor, counts in an object, and calls itself by another name."""

    def __init__(this) -> None:
        super().__init__()
        this.conv, this.bank, this.at = nn.Conv2d(3, 4, 3), torch.zeros(4, 4), 0
        this.stats, this.seen = types.SimpleNamespace(calls=0), []
        this.table = functools.lru_cache(None)(this.row)

    def row(this, n: int) -> Tensor:
        return torch.arange(n) * this.conv.weight.mean()

    def forward(this, x: Tensor) -> Tensor:
        found = this.conv(x).mean((2, 3))
        this.bank[this.at % 4] = found.detach()[0]
        this.at, this.stats.calls = this.at + 1, this.stats.calls + 1
        this.seen.append(len(x))
        return found + this.table(4)


@pytest.mark.filterwarnings("ignore::gkp.nets.files.attributes.UnlikeBaseWarning")
def test_networks_that_keep_what_they_saw_are_saved(tmp_path) -> None:
    model = Bank().eval()
    with torch.no_grad():
        expected = model(X)
        assert torch.equal(through_a_file(model, Bank(), tmp_path)(X), expected)


def test_a_copy_caches_for_itself() -> None:
    model = Bank().eval()
    with torch.no_grad():
        before = copied(model)
        model.conv.weight.zero_()
        model.conv.bias.zero_()
        assert (model(X) == 0).all()
        assert (before(X) != 0).any()
        assert not before.table(4).equal(model.table(4))


def test_what_only_one_of_them_has_is_left_out_where_nobody_asks(tmp_path) -> None:
    model, base = Net(), Net()
    model.note, base.remark = torch.ones(3), torch.ones(3)
    assert not hasattr(through_a_file(model, base, tmp_path), "note")


def test_what_forward_sets_is_read_off_its_code() -> None:
    class Forward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.a = self.read
            self.b["x"] = self.read * 2
            self.c.append(x)
            self.d[:, 0] += x
            self.e.mul_(2)
            x = x.float() + self.view
            return self.inner(x) if hasattr(self, "maybe") else [self.f for self.g in x]

        def inner(self, x: Tensor) -> Tensor:
            def innermost() -> None:
                self.h = x

            return innermost()

        @property
        def view(self) -> int:
            self.j = 1
            return self.j

        def set_read(self, value: Tensor) -> None:
            self.read = value

    class Derived(Forward):
        def forward(self, x: Tensor) -> Tensor:
            self.i = 1
            return super().forward(x)

    assert written(Forward) == set("abcdeghj")
    assert written(Derived) == set("abcdeghij")
    assert "maybe" in asked_for(Derived)
