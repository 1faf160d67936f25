"""`gkp.prune` on networks that nobody here built: what comes back, what is refused, what is said."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from building_blocks import BLOCKS, Standardised, block, transformer
from torch import nn

import gkp
from gkp import pruners

WEIGHTS_ONLY = [
    name
    for name in pruners.methods()
    if pruners.get(name).needs == "nothing" and pruners.get(name).schedule == "one-shot"
]
EVERYWHERE = [name for name in WEIGHTS_ONLY if name not in ("l1-a", "l1-b")]  # profiles for CIFAR networks
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def pruned_or_refused(model: nn.Module, method: str, **options) -> nn.Module | None:
    """The pruned network, without what is said about layers; None where it is refused in a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gkp.SkippedLayers)
        try:
            return gkp.prune(model, method, example_input=X[:1], **options)
        except ValueError as error:
            sentence = str(error)
    assert len(sentence) > 30
    return None


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("method", ["l1", "group-norm", "sr-gkp"])
def test_every_block_is_pruned_or_refused(method, name):
    model = block(name)
    pruned = pruned_or_refused(model, method, rate=0.25, groups=2)
    if pruned is not None:
        assert pruned(X).shape == model(X).shape
        assert pruned(X).isfinite().all()
        assert sum(p.numel() for p in pruned.parameters()) <= sum(p.numel() for p in model.parameters())


def test_a_transformer_loses_hidden_channels():
    model, x = transformer(), torch.rand(2, 3, 16, 16)
    for method in ("l1", "group-norm", "fpgm", "random"):
        with pytest.warns(gkp.SkippedLayers, match="conv_proj"):
            pruned = gkp.prune(model, method, rate=0.5, example_input=x[:1])
        hidden = pruned.encoder.layers[0].mlp[0].out_features
        assert hidden < 64 if method == "group-norm" else hidden == 32  # one ranking of all layers
        assert pruned.encoder.layers[0].mlp[3].in_features == hidden
        assert pruned(x).shape == (2, 5)


def test_dead_hidden_channels_of_a_transformer_leave_the_logits():
    model, x = transformer(), torch.rand(2, 3, 16, 16)
    for layer in model.encoder.layers:
        layer.mlp[0].weight.data[::4] = layer.mlp[0].bias.data[::4] = 0
    pruned = gkp.prune(model, "l1", rate=0.25, example_input=x[:1])
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


# ---- what comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERYWHERE)
def test_flags_modes_and_hooks_stay(method):
    model = small()
    model[3].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    model.train()
    model[1].eval()
    seen = []
    model[3].register_forward_hook(lambda *_: seen.append("after"))
    model[3].register_forward_pre_hook(lambda *_: seen.append("before"))
    pruned = gkp.prune(model, method, rate=0.25, groups=2, example_input=X[:1])
    assert pruned.training
    assert not pruned[1].training
    assert not any(p.requires_grad for p in pruned[3].parameters())
    assert all(p.requires_grad for p in pruned[0].parameters())
    seen.clear()
    pruned.eval()(X)
    assert seen == ["before", "after"]


@pytest.mark.parametrize("method", EVERYWHERE)
def test_channels_last_stays(method):
    pruned = gkp.prune(
        small().to(memory_format=torch.channels_last), method, rate=0.25, groups=2, example_input=X[:1]
    )
    four = [p for p in pruned.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert four
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_work(method, dtype):
    model = small().to(dtype)
    pruned = gkp.prune(model, method, rate=0.25, groups=2, example_input=X[:1])
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert pruned(X.to(dtype)).isfinite().all()


@pytest.mark.parametrize("method", EVERYWHERE)
def test_what_comes_back_can_be_pickled_copied_and_saved(method):
    pruned = gkp.prune(small(), method, rate=0.25, groups=2, example_input=X[:1])
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    buffer.seek(0)
    for other in (
        pickle.loads(pickle.dumps(pruned)),
        copy.deepcopy(pruned),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(other(X), pruned(X))


@pytest.mark.parametrize("method", EVERYWHERE)
def test_a_pruned_network_is_pruned_further_or_refused(method):
    once = gkp.prune(small(), method, rate=0.5, groups=2, example_input=X[:1])
    for second in EVERYWHERE:
        twice = pruned_or_refused(once, second, rate=0.9, groups=1)
        if twice is not None:
            assert twice(X).shape == (4, 5)
            assert all(p.numel() for p in twice.parameters())


def test_the_network_itself_is_left_alone():
    model = small()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = gkp.prune(model, "l1", rate=0.5, example_input=X[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad is not None
    assert pruned[0].weight.grad is None
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("method", ["l1", "group-norm", "sr-gkp"])
def test_random_numbers_of_the_caller_stay(method):
    model = small()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    gkp.prune(model, method, rate=0.5, groups=2, example_input=X[:1])
    assert torch.equal(torch.rand(3), expected)


def test_networks_in_wrappers():
    model = small()
    plain = gkp.prune(model, "l1", rate=0.5, example_input=X[:1])
    parallel = gkp.prune(nn.DataParallel(model), "l1", rate=0.5, example_input=X[:1])
    assert isinstance(parallel, nn.DataParallel)
    compiled = gkp.prune(torch.compile(model, backend="eager"), "l1", rate=0.5, example_input=X[:1])
    assert torch.equal(parallel(X), plain(X))
    assert torch.equal(compiled(X), plain(X))


@pytest.mark.parametrize("method", ["l1", "group-norm", "sr-gkp"])
def test_layers_that_are_compiled_are_pruned_and_come_back_plain(method):
    model = small()
    plain = gkp.prune(model, method, rate=0.5, groups=2, example_input=X[:1])
    part = nn.Sequential(*model[3:5])
    whole = nn.Sequential(*model[:3], torch.compile(part, backend="eager"), *model[5:]).eval()
    expected = whole(X)
    pruned = gkp.prune(whole, method, rate=0.5, groups=2, example_input=X[:1])
    torch.testing.assert_close(pruned(X), plain(X))
    assert not [name for name, _ in pruned.named_modules() if "_orig_mod" in name]
    assert torch.equal(whole(X), expected)
    assert whole[3]._orig_mod is part


@pytest.mark.parametrize("method", EVERYWHERE)
def test_networks_in_wrappers_are_prepared(method):
    """The cut gives what `prune` does, and the wrapper around it."""
    model = small()
    plain, parallel = (
        pruners.prepare(each, method, groups=2, example_input=X[:1])(0.5)
        for each in (model, nn.DataParallel(model))
    )
    assert isinstance(parallel, nn.DataParallel)
    assert torch.equal(parallel(X), plain(X))


# ---- what is refused or left alone ---------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(method, value):
    model = small()
    model[3].weight.data[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"3\.weight"):
        gkp.prune(model, method, rate=0.5, groups=2, example_input=X[:1])


def test_a_network_that_does_not_run_on_the_example_is_named():
    for method in ("l1", "sr-gkp", "group-norm"):
        with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\)"):
            gkp.prune(small(), method, groups=2, example_input=torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match="ndarray"):
        gkp.prune(small(), "l1", example_input=X[:1].numpy())


class Fickle(nn.Module):
    """Another way for other numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        if x.mean() > 0.9:
            x = self.b(x)
        return self.head(x.mean((2, 3)))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, x):
        return self.body(x + torch.rand_like(x))


@pytest.mark.parametrize("network", [Fickle, Noisy])
@pytest.mark.parametrize("method", ["l1", "group-norm", "sr-gkp"])
def test_networks_that_decide_or_draw_are_right_or_refused(network, method):
    torch.manual_seed(0)
    pruned = pruned_or_refused(network().eval(), method, rate=0.25, groups=2)
    assert pruned is None or pruned(X).shape == (4, 5)


def test_the_first_layer_is_the_one_that_reads_the_image():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(F.relu(self.last(F.relu(self.first(x)))).mean((2, 3)))

    pruned = gkp.prune(Backwards().eval(), "sr-gkp", example_input=X[:1])
    assert type(pruned.first) is nn.Conv2d
    assert type(pruned.last) is not nn.Conv2d


def test_layers_of_unknown_forward_are_named():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()
    ).eval()
    with pytest.warns(gkp.SkippedLayers, match="2: .*Standardised"):
        pruned = gkp.prune(model, "sr-gkp", rate=0.5, example_input=X[:1])
    assert type(pruned[2]) is Standardised


def test_weights_standardised_over_inputs_are_named_with_a_remedy():
    """As in timm's NFNets."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Standardised(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="0: .*; Standardised, with a forward of its own.* plain layers"):
        gkp.prune(model.eval(), "l1", rate=0.5, example_input=X[:1])


@pytest.mark.parametrize("method", ["l1", "group-norm", "sr-gkp"])
def test_layers_inside_vmap_are_named(method):
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x):
            return torch.vmap(lambda image: self.body(image[None])[0])(x)

    with pytest.raises(ValueError, match=r"body\.0 runs inside torch.vmap"):
        gkp.prune(Mapped().eval(), method, groups=2, example_input=X[:1])


class Residual(nn.Module):
    """What it returns is the sum of what two convolutions give, the second of the first."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        x = self.first(x)
        return x + self.second(x)


def test_where_filters_go_with_others_only_another_method_is_named():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    with pytest.raises(ValueError, match="summed with those of b.*: try group-norm"):
        gkp.prune(Sum().eval(), "l1", rate=0.5, example_input=X[:1])
    with pytest.raises(ValueError, match=r"network's output\)$"):
        gkp.prune(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), "l1", rate=0.5, example_input=X[:1])
    residual = Residual(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    with pytest.raises(ValueError, match="network's output.*: try sr-gkp or lrf"):
        gkp.prune(residual, "l1", rate=0.5, example_input=X[:1])
    assert gkp.prune(residual, "sr-gkp", rate=0.5, example_input=X[:1])(X).shape == residual(X).shape


@pytest.mark.parametrize("method", ["l1", "group-norm"])
def test_methods_for_2d_convolutions_are_not_named_where_there_is_none(method):
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.LayerNorm(240), nn.Linear(240, 5)).eval()
    with pytest.raises(ValueError, match=r"network's output\)$"):
        gkp.prune(model, method, rate=0.5, example_input=torch.rand(1, 3, 32))


def test_a_layer_of_a_users_own_may_have_a_weight_a_channel():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x):
            return x * self.factors

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.warns(gkp.SkippedLayers, match="0: 1, a Scale, mixes its filters or has a weight for each"):
        gkp.prune(model.eval(), "l1", rate=0.5, example_input=X[:1])


def test_no_rate_removes_kernels_of_a_single_channel():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(8, 5)
            self.conv = nn.Conv2d(1, 8, (3, 6))

        def forward(self, x):
            return self.head(self.conv(self.embedding(x)[:, None]).relu().amax((2, 3)))

    with pytest.raises(ValueError, match="conv: it reads one channel only.*: prune filters instead"):
        gkp.prune(Words().eval(), "sr-gkp", groups=2, example_input=torch.arange(8)[None])


@pytest.mark.parametrize("groups", [3, 5, 7])
def test_a_remedy_that_exists(groups):
    model = small()
    with pytest.raises(ValueError, match="choose groups=2 or 4 or 8, which divide them all"):
        gkp.prune(model, "sr-gkp", groups=groups, example_input=X[:1])
    assert gkp.prune(model, "sr-gkp", groups=8, example_input=X[:1])(X).shape == (4, 5)


def test_no_remedy_where_there_is_none():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with pytest.raises(ValueError, match="method='l1'") as caught:
        gkp.prune(model.eval(), "sr-gkp", example_input=X[:1])
    assert "divisor" not in str(caught.value)


def test_pointwise_kernels_where_nothing_is_larger():
    model = torchvision.models.MobileNetV2(num_classes=5, width_mult=0.25).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.warns(gkp.SkippedLayers):
        pruned = gkp.prune(model, "sr-gkp", rate=0.5, example_input=x[:1])
    assert gkp.cost.count(pruned, x).macs < gkp.cost.count(model, x).macs
    assert pruned(x).shape == (2, 5)
