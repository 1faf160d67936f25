"""What a filter feeds, on networks nobody wrote a rule for: right, or left alone for a reason."""

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from building_blocks import BLOCKS, block
from torch import Tensor, nn

import gkp
from gkp.nets.channels.copying import copied
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import left_out, prunable_layers, remove_filters

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def kill(model, name, dead):
    """Silence filters without knowing what follows: zero weights, zero shift, a norm that shifts nothing."""
    layer = model.get_submodule(name)
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    with torch.no_grad():
        layer.weight.index_fill_(axis, dead, 0)
        if layer.bias is not None:
            layer.bias[dead] = 0


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_offered(name):
    model, expected = block(name), BLOCKS[name][1]
    assert tuple(prunable_layers(model, X[:1])) == expected
    reasons = left_out(model, X[:1])
    assert all(reasons.values())
    assert "first" in {*expected, *reasons}


@pytest.mark.parametrize("name", [name for name, (_, offered) in BLOCKS.items() if offered])
def test_filters_go_as_if_nothing_read_them(name):
    """Against the whole network in which every reader's weights are zero, found by finite differences."""
    model = block(name)
    layers = prunable_layers(model, X[:1])
    for layer in layers.values():
        dead = torch.tensor([1, layer.filters - 1])
        pruned = remove_filters(model, {layer.name: dead}, X[:1])
        whole = copy.deepcopy(model)
        for reader in layer.consumers:
            silence(whole, layer.name, dead, reader)
        assert (
            len(gkp.nets.channels.surgery.filter_weight(pruned.get_submodule(layer.name)))
            == layer.filters - 2
        )
        torch.testing.assert_close(pruned(X), whole(X), rtol=1e-4, atol=1e-5)


def silence(model, name, dead, reader):
    """Zero what `reader` reads of the dead filters: the input channels that change when their bias does."""
    seen = []
    target = model.get_submodule(reader)
    handle = target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    bias = model.get_submodule(name).bias
    with torch.no_grad():
        for shift in (0.0, 100.0):
            bias[dead] += shift
            model(X)
            bias[dead] -= shift
    handle.remove()
    axis = -1 if isinstance(target, nn.Linear) else 1
    calls = len(seen) // 2
    for before, after in zip(seen[:calls], seen[calls:], strict=True):
        changed = (before != after).movedim(axis, 0).flatten(1).any(1)
        weight = target.weight
        side = 0 if isinstance(target, nn.modules.conv._ConvTransposeNd) else 1
        with torch.no_grad():
            weight.index_fill_(side, changed.nonzero()[:, 0], 0)


class Switched(nn.Module):
    """Adds two branches or takes one, by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.head, self.skip = nn.Linear(8, 4), True

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = self.two(self.one(x).relu())
        return self.head((x + y if self.skip else y).mean((2, 3)))


@pytest.mark.parametrize("skip", [True, False])
def test_a_switch_of_the_forward_is_seen_again(skip: bool) -> None:
    model, x = Switched(), torch.rand(1, 3, 8, 8)
    model.skip = not skip
    gkp.prune(model, "l1", example_input=x)
    model.skip = skip
    fresh = Switched()
    fresh.load_state_dict(model.state_dict())
    fresh.skip = skip
    expected, found = (gkp.prune(each, "l1", example_input=x) for each in (fresh, model))
    assert torch.equal(found(x), expected(x))


class Ordered(nn.Module):
    """Its forward reads a list, a dictionary, a function, an index and an object that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.f = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.order, self.how, self.act = ["a", "b"], {"skip": False}, F.relu
        self.what = SimpleNamespace(mixed=False)
        self.register_buffer("factors", torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.act(getattr(self, name)(x))
        x = torch.einsum("nchw,cd->ndhw", x, self.factors)
        y = self.c(x.softmax(1) if self.what.mixed else x).relu()
        return self.f((x + y if self.how["skip"] else y).mean((2, 3)))


CHANGES = {
    "a list in place": lambda model: model.order.append("b"),
    "another list": lambda model: setattr(model, "order", ["a"]),
    "a dictionary": lambda model: model.how.update(skip=True),
    "a function": lambda model: setattr(model, "act", lambda x: x.softmax(1)),
    "an object": lambda model: setattr(model.what, "mixed", True),
    "a buffer": lambda model: model.factors.data.fill_(1),
    "a forward": lambda model: setattr(model.b, "forward", lambda x: F.conv2d(x, model.b.weight.softmax(0))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_forward_depends_on_is_seen_again(change: Callable) -> None:
    torch.manual_seed(0)
    model, x = Ordered().eval(), torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = channels_of(model, x)
        change(model)
        found = channels_of(model, x)
        assert found is not before
        assert left_out(model, x) == left_out(copied(model), x)
    assert channels_of(model, x) is found


def test_training_and_running_change_no_analysis() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)),
        torch.rand(4, 3, 8, 8),
    )
    known = channels_of(model, x[:1])
    model(x).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert channels_of(model, x[:1]) is known


class Mixing(nn.Module):
    """Its forward reads an attribute of its class: whether filters are mixed, or summed."""

    way = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        act = nn.Softmax(1) if self.way == "mixed" else nn.ReLU()
        x = act(self.a(x))
        y = act(self.b(x))
        return self.d(act(self.c(x + y if self.way == "summed" else y)))


@pytest.mark.parametrize("method", ["l1", "group-norm"])
def test_what_changes_outside_of_the_network_is_seen_again(method: str, monkeypatch) -> None:
    torch.manual_seed(1)
    model, x = Mixing(), torch.rand(1, 3, 8, 8)
    gkp.prune(model, method, example_input=x)
    monkeypatch.setattr(Mixing, "way", "summed")
    expected, found = (gkp.prune(each, method, example_input=x) for each in (copied(model), model))
    assert torch.equal(found(x), expected(x))
    monkeypatch.setattr(Mixing, "way", "mixed")
    with pytest.raises(ValueError, match="a: what lies between a and b mixes its filters"):
        gkp.prune(model, method, example_input=x)
    monkeypatch.setattr(Mixing, "way", "plain")
    assert gkp.prune(model, method, example_input=x).a.out_channels < 8


def test_channels_that_are_rolled_stay_as_the_last_one_moves_to_the_front() -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu().roll(1, 1)).relu())

    assert list(prunable_layers(Rolled(), torch.rand(1, 3, 8, 8))) == ["b"]
