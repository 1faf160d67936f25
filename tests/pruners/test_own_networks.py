"""`gkp.prune` on networks that do what no rule foresees: train another way, cast, detach, return anything."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

import gkp
from gkp.nets.channels.proof import alike
from gkp.nets.channels.surgery import left_out, prunable_layers

X = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
METHODS = ("l1", "group-norm", "sr-gkp")


class Net(nn.Module):
    """`body` of the convolutions a and c, `head` of d and fc; `way` is its forward function."""

    def __init__(self, way: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c, self.d = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.fc = nn.Linear(8, 5)
        for name, module in modules.items():
            setattr(self, name, module)
        self.way = way
        self.eval()

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.c(F.relu(self.a(x))))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.d(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def plain(**modules: nn.Module) -> Net:
    return Net(lambda m, x: m.head(m.body(x)), **modules)


def pruned(model: nn.Module, method: str = "l1", x: Tensor = X, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gkp.SkippedLayers)
        return gkp.prune(model, method, example_input=x, **{"rate": 0.5, "groups": 2, **options})


def reason(model: nn.Module, name: str, x: Tensor = X) -> str:
    assert name not in prunable_layers(model, x)
    return left_out(model, x)[name]


# ---- what the example does not reach ------------------------------------------------------------------


def two_outputs(model: Net, x: Tensor) -> Any:
    features = model.body(x)
    logits = model.head(features)
    return (logits, model.aux(features.mean((2, 3)))) if model.training else logits


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_train_mode_shrink_with_what_they_read(method):
    small = pruned(Net(two_outputs, aux=nn.Linear(8, 5)), method)
    logits, other = small.train()(X)
    assert logits.shape == other.shape == (1, 5)
    if method == "l1":
        assert small.aux.in_features == 4


def test_functional_dropout_of_train_mode_is_no_obstacle():
    def way(model: Net, x: Tensor) -> Any:
        features = model.body(x)
        aux = model.aux(F.dropout(features, 0.7, model.training).mean((2, 3)))
        return (model.head(features), aux) if model.training else model.head(features)

    small = pruned(Net(way, aux=nn.Linear(8, 5)))
    assert small.c.out_channels == small.aux.in_features == 4
    assert small.train()(X)[1].shape == (1, 5)


NOISES = {
    "randn_like": lambda x: x + 0.1 * torch.randn_like(x),
    "rand": lambda x: x * torch.rand(x.shape[:2], dtype=torch.float16).float()[..., None, None],
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.9)),
    "in place": lambda x: x * torch.empty_like(x).bernoulli_(0.9),
    "blocks": lambda x: x * (1 - F.max_pool2d((torch.rand_like(x) < 0.1).float(), 3, 1, 1)),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_of_train_mode_is_no_obstacle(noise):
    model = Net(lambda m, x: m.head(noise(m.body(x)) if m.training else m.body(x)))
    assert not left_out(model, X)


class NormAndReLU(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Branches(nn.Module):
    """As a block of RepVGG: two convolutions and the map itself, each with its norm."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.large = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.small = nn.Conv2d(inputs, filters, 1, stride, bias=False)
        self.one, self.two = NormAndReLU(filters), NormAndReLU(filters)
        self.three = NormAndReLU(filters) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.large(x)) + self.two(self.small(x))
        return (y if self.three is None else y + self.three(x)).relu()


def test_norms_derived_from_pytorchs_take_no_statistics_of_one_image():
    torch.manual_seed(0)
    blocks = [Branches(3 if place == 0 else 24, 24, 2 if place < 2 else 1) for place in range(10)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    x = torch.rand(1, 3, 4, 4)
    assert not [why for why in left_out(model, x).values() if "something else" in why]
    assert model.training


def test_a_buffer_that_only_training_updates_keeps_its_filters():
    def way(model: Net, x: Tensor) -> Tensor:
        features = model.body(x)
        if model.training:
            model.centre.mul_(0.9).add_(0.1 * features.detach().mean((0, 2, 3)))
        return model.head(features)

    model = Net(way)
    model.register_buffer("centre", torch.zeros(8))
    assert "train mode" in reason(model, "c")
    small = pruned(model)
    assert (small.a.out_channels, small.c.out_channels) == (4, 8)
    assert small.train()(X).shape == (1, 5)
    assert not model.centre.any()


@pytest.mark.parametrize("width", [8, 8 * 16])
def test_an_exit_that_is_not_taken_keeps_layers_of_its_width(width):
    """Also where it may read flattened maps of 4x4 pixels."""
    model = plain(exit=nn.Linear(width, 5), d=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 5))
    assert "exit, which the example does not reach" in reason(model, "c")
    assert tuple(prunable_layers(model, X)) == ("d",)
    with pytest.warns(gkp.SkippedLayers, match="exit"):
        small = gkp.prune(model, "l1", rate=0.5, example_input=X)
    assert (small.c.out_channels, small.d.out_channels) == (8, 3)


def test_concatenated_features_stay_for_an_exit_as_wide_as_their_reader():
    def way(model: Net, x: Tensor) -> Tensor:
        return model.head(torch.cat([model.body(x), model.b(x)], 1))

    model = Net(way, b=nn.Conv2d(3, 4, 1), d=nn.Conv2d(12, 6, 3), fc=nn.Linear(6, 5), exit=nn.Linear(12, 5))
    assert "exit" in reason(model, "c")
    assert "exit" in reason(model, "b")
    assert tuple(prunable_layers(model, X)) == ("a", "d")


def test_features_stay_that_those_of_an_input_not_given_are_added_to():
    class Sized(Net):
        def forward(self, x: Tensor, size: Tensor | None = None) -> Tensor:
            features = self.body(x)
            return self.head(features if size is None else features + self.size(size)[:, :, None, None])

    model = Sized(lambda *_: None, size=nn.Linear(2, 8), d=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 5))
    with pytest.warns(gkp.SkippedLayers, match="size, which the example does not reach"):
        small = gkp.prune(model, "l1", rate=0.5, example_input=X)
    assert (small.c.out_channels, small.d.out_channels) == (8, 3)
    assert small(X, torch.rand(1, 2)).shape == (1, 5)


def test_a_tensor_that_nothing_reads_keeps_layers_of_its_size():
    model = plain(d=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 5))
    model.register_buffer("centres", torch.zeros(5, 8))
    assert "centres" in reason(model, "a")
    assert tuple(prunable_layers(model, X)) == ("d",)


def test_a_network_that_needs_labels_in_train_mode_is_warned_of():
    def way(model: Net, x: Tensor) -> Tensor:
        if model.training:
            raise RuntimeError("give labels")
        return model.head(model.body(x))

    with pytest.warns(gkp.SkippedLayers, match="layers of training only: in train mode .* give labels"):
        assert gkp.prune(Net(way), "l1", rate=0.5, example_input=X).c.out_channels == 4


# ---- outputs ---------------------------------------------------------------------------------------------


class Slots:
    __slots__ = ("map",)

    def __init__(self, features: Tensor) -> None:
        self.map = features


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "integers": lambda f: f.argmax(1),
    "truth values": lambda f: f > 0.1,
    "complex": torch.fft.rfft2,
    "numpy": lambda f: f.detach().numpy(),
    "slots": Slots,
    "a number": lambda f: float(f.detach().sum()),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_filters_stay_that_any_output_depends_on(kind):
    def way(model: Net, x: Tensor) -> Any:
        features = model.body(x)
        return model.head(features), OUTPUTS[kind](features)

    model = Net(way)
    assert "output" in reason(model, "c")
    small, logits = pruned(model), plain()(X)
    assert (small.a.out_channels, small.c.out_channels) == (4, 8)
    assert small(X)[0].shape == logits.shape


def test_alike_is_about_numbers():
    integers = torch.arange(10)
    assert alike(integers, integers)
    assert not alike(integers, integers.flip(0))
    assert not alike(torch.ones(2) * 1j, torch.ones(2) * 2j)
    assert not alike(torch.ones(2) * 1j, torch.ones(2))
    nothing = torch.full((3,), torch.nan)
    assert not alike(nothing, nothing)
    assert alike(torch.tensor([torch.nan, 1]), torch.tensor([torch.nan, 1]))


# ---- examples and networks that say nothing -------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_gives_nan_proves_nothing(method):
    with pytest.raises(ValueError, match="NaN"):
        pruned(Net(lambda m, x: m.head(m.body(x)) * torch.nan), method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (X * torch.nan, "NaN or infinity"),
        (X[:0], "is empty"),
        (X + 0j, "complex"),
        (X.to("meta"), "meta device"),
    ],
)
def test_examples_that_cannot_be_used_are_named(method, example, sentence):
    with pytest.raises(ValueError, match=f"example_input.*{sentence}"):
        pruned(plain(), method, example)


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def traced() -> nn.Module:
    return torch.jit.trace(plain(), X)


def exported() -> Any:
    return torch.export.export(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (X,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (scripted, TypeError, "TorchScript module: prune the nn.Module"),
        (traced, TypeError, "TorchScript module: prune the nn.Module"),
        (lambda: plain(a=scripted()), TypeError, "a is a TorchScript module"),
        (exported, TypeError, "torch.export: prune the nn.Module"),
        (lambda: exported().module(), TypeError, "torch.export: prune the nn.Module"),
        (lambda: plain, TypeError, "a function: give the torch.nn.Module"),
        (lambda: Net, TypeError, re.escape("class Net: give the torch.nn.Module itself, such as Net()")),
        (lambda: plain().state_dict(), TypeError, "state_dict: give the torch.nn.Module"),
        (lambda: plain().to("meta"), ValueError, "a is on the meta device"),
        (lambda: plain(fc=nn.LazyLinear(5)), ValueError, "fc, a LazyLinear, has no weights yet"),
    ],
)
def test_what_is_no_network_to_prune_is_named(method, make, error, sentence):
    with pytest.raises(error, match=sentence):
        pruned(make(), method)


@pytest.mark.parametrize("rate", ["0.4", None, True])
def test_a_rate_is_a_number(rate):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        pruned(plain(), rate=rate)


@pytest.mark.parametrize("method", ["l1", "fpgm", "random", "group-norm", "sr-gkp", "gkp-greedy", "lrf"])
def test_a_rate_that_removes_nothing_is_refused(method):
    with pytest.raises(ValueError, match="removes nothing at rate=1e-09: raise the rate"):
        pruned(plain(), method, rate=1e-9)


# ---- forward functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing(method, reentrant):
    def way(model: Net, x: Tensor) -> Tensor:
        return model.head(torch.utils.checkpoint.checkpoint(model.body, x, use_reentrant=reentrant))

    small, expected = pruned(Net(way), method), pruned(plain(), method)
    torch.testing.assert_close(small(X), expected(X))
    x = X.clone().requires_grad_()
    small(x).sum().backward()
    assert x.grad is not None


def test_densenets_that_save_memory():
    options = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 5}
    torch.manual_seed(0)
    model = DenseNet(memory_efficient=True, **options).eval()
    other = DenseNet(**options).eval()
    other.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(pruned(model, x=x)(x), pruned(other, x=x)(x))


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_parts_without_gradients_are_seen(method, switch):
    def way(model: Net, x: Tensor) -> Tensor:
        with switch():
            features = model.body(x)
        return model.head(features.clone())

    torch.testing.assert_close(pruned(Net(way), method)(X), pruned(plain(), method)(X))


def test_the_first_layer_is_found_where_gradients_are_cut_off():
    small = pruned(Net(lambda m, x: m.head(m.body(x.detach()))), "sr-gkp")
    assert type(small.a) is nn.Conv2d
    assert type(small.c) is not nn.Conv2d


def test_features_that_are_cut_off_are_not_called_unread():
    assert "no gradient passes" in reason(Net(lambda m, x: m.head(m.body(x).detach())), "c")


@pytest.mark.parametrize("method", METHODS)
def test_a_network_may_change_its_input_in_place(method):
    x = X.clone()
    small = pruned(Net(lambda m, x: m.head(m.body(x.sub_(0.5)))), method, x)
    assert torch.equal(x, X)
    torch.testing.assert_close(small(X.clone()), pruned(plain(), method)(X - 0.5))


def test_thresholds_beyond_the_example_are_tried():
    def way(model: Net, x: Tensor) -> Tensor:
        features = model.body(x)
        norm = features.flatten(1).norm(dim=1)
        return model.head(features * (limit / norm.clamp_min(limit)).view(-1, 1, 1, 1))

    limit = 2 * (8 * 144) ** 0.5  # beyond the numbers of the probe, 1 to 2, and beyond the example
    example = 5 * X
    assert "10 times as large" in reason(Net(way), "c", example)
    assert pruned(Net(way), x=example).a.out_channels == 4


@pytest.mark.parametrize("method", METHODS)
def test_networks_of_two_precisions(method):
    def way(model: Net, x: Tensor) -> Tensor:
        return model.fc(F.relu(model.d(model.body(x))).mean((2, 3)).bfloat16())

    model = Net(way)
    model.fc.bfloat16()
    small = pruned(model, method)
    assert (small.a.weight.dtype, small.fc.weight.dtype) == (torch.float32, torch.bfloat16)
    assert small(X).shape == (1, 5)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.one, self.two = nn.Embedding(9, 6), nn.Conv1d(6, 8, 3), nn.Conv1d(8, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.two(F.relu(self.one(self.words(x).transpose(1, 2))))).mean(2))


@pytest.mark.parametrize("method", ["l1", "group-norm"])
def test_networks_of_words(method):
    x = torch.randint(0, 9, (1, 12), generator=torch.Generator().manual_seed(0))
    small = pruned(Words().eval(), method, x)
    assert small.two.in_channels == small.one.out_channels < 8
    assert small(x).shape == (1, 3)


@pytest.mark.parametrize("method", METHODS)
def test_within_inference_mode(method):
    model = plain()
    with torch.inference_mode():
        small = pruned(model, method)
    torch.testing.assert_close(small(X), pruned(model, method)(X))
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class Memory(nn.Module):
    """A cell whose state is made as large as what it reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gates = nn.Conv2d(3, 6, 3), nn.Conv2d(12, 24, 3, padding=1)
        self.out, self.fc = nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        hidden = cell = torch.zeros_like(x)
        for _ in range(2):
            i, f, g, o = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.fc(F.relu(self.out(hidden)).mean((2, 3)))


@pytest.mark.parametrize("method", ["l1", "random", "group-norm"])
def test_sizes_that_must_agree_are_named_and_others_go(method):
    with pytest.warns(gkp.SkippedLayers, match="stem: .* does not run"):
        small = gkp.prune(Memory().eval(), method, rate=0.4, example_input=X)
    assert small.stem.out_channels == 6
    assert small.out.out_channels < 8


# ---- what comes back, and what is said --------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_attributes_of_parameters_stay(method):
    model = plain()
    model.c.weight.no_decay, model.fc.weight.tag = True, "head"
    small = pruned(model, method)
    assert small.c.weight.no_decay
    assert small.fc.weight.tag == "head"
    assert not hasattr(small.a.weight, "no_decay")


def test_a_reason_names_the_layer_that_is_the_cause():
    model = plain()
    nn.utils.parametrizations.weight_norm(model.c)
    assert reason(model, "a").startswith("c must lose the same channels and cannot: its weight is computed")
    assert reason(model, "c").startswith("its weight is computed")


@pytest.mark.parametrize("last", ["short", "film"])
def test_layers_that_are_declared_last_may_come_first(last):
    def short(model: Net, x: Tensor) -> Tensor:
        return model.head(F.relu(model.c(F.relu(model.a(x) + model.short(x)))))

    def film(model: Net, x: Tensor) -> Tensor:
        scale, shift = model.film(x.mean((2, 3)))[..., None, None].chunk(2, 1)
        return model.head(model.body(x) * scale + shift)

    layers = {"short": nn.Conv2d(3, 8, 1), "film": nn.Linear(3, 16)}
    small = pruned(Net({"short": short, "film": film}[last], **{last: layers[last]}), "group-norm")
    assert small(X).shape == (1, 5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in plain().parameters())


def test_where_an_unread_layer_would_leave_nothing_it_is_named_in_a_warning():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(torch.relu(self.one(x)).mean((2, 3)))

    with pytest.warns(gkp.SkippedLayers, match="gate: the example does not reach it"):
        pruned = gkp.prune(Net(), "l1", rate=0.25, example_input=torch.rand(1, 3, 8, 8))
    assert pruned.one.out_channels == 6
