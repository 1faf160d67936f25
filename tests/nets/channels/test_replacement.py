"""A new layer stands where the old one stood, has what it had, or a reason says why."""

import copy
import re

import pytest
import torch
from layers import grouped_kernels
from torch import nn
from torch.nn.utils import parametrizations, prune

from gkp.nets.channels.replacement import altered, channels_last, replace_module, shared_weights, take_over


class Everywhere(nn.Module):
    """One convolution under two names, in a list of modules, and in plain containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.first
        self.block = nn.Sequential(self.first, nn.ReLU())
        self.steps = [self.first, {"last": (nn.ReLU(), self.first)}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.again, self.block, self.steps[0], self.steps[1]["last"][1]):
            x = layer(x)
        return x


def test_a_module_is_replaced_under_every_name_and_in_plain_containers() -> None:
    model, new = Everywhere(), nn.Identity()
    replace_module(model, model.first, new)
    x = torch.randn(1, 4, 5, 5)
    assert model.first is model.again is model.block[0] is new
    assert torch.equal(model(x), x.relu())
    assert not list(model.parameters())


def test_the_network_itself_and_strangers_cannot_be_replaced() -> None:
    model = Everywhere()
    with pytest.raises(ValueError, match="use the new module instead"):
        replace_module(model, model, nn.Identity())
    with pytest.raises(ValueError, match="this ReLU does not stand in the network"):
        replace_module(model, nn.ReLU(), nn.Identity())


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("training", [True, False])
def test_flags_and_mode_are_taken_over(frozen: tuple[str, ...], training: bool) -> None:
    conv = nn.Conv2d(4, 4, 3).train(training)
    for name in frozen:
        getattr(conv, name).requires_grad_(False)
    pruned = grouped_kernels(conv, groups=2, keep=2)
    several = take_over(nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 4, 3)), conv)
    for layer in (pruned, pruned.to_conv(), several):
        for name, parameter in layer.named_parameters():
            assert parameter.requires_grad == (name.rpartition(".")[2] not in frozen)
        assert all(module.training is training for module in layer.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_type_and_layout_are_taken_over(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 4, 3).to(dtype=dtype, memory_format=torch.channels_last)
    pruned = grouped_kernels(conv, groups=2, keep=2)
    for layer in (pruned, pruned.to_conv(), take_over(nn.Sequential(nn.Conv2d(4, 4, 3)), conv)[0]):
        assert channels_last(layer.weight)
        assert layer.weight.dtype == layer.bias.dtype == dtype
    assert channels_last(pruned.dense_weight())
    assert not channels_last(grouped_kernels(nn.Conv2d(4, 4, 3), groups=2, keep=2).weight)


def test_hooks_of_every_kind_are_taken_over_and_are_each_ones_own() -> None:
    conv, calls = nn.Conv2d(4, 4, 3), []
    handles = [
        conv.register_forward_pre_hook(lambda m, x: calls.append("before")),
        conv.register_forward_pre_hook(lambda m, x, k: calls.append("before, keywords"), with_kwargs=True),
        conv.register_forward_hook(lambda m, x, y: calls.append("after")),
        conv.register_forward_hook(lambda m, x, k, y: calls.append("after, keywords"), with_kwargs=True),
        conv.register_forward_hook(lambda m, x, y: calls.append("always"), always_call=True),
        conv.register_full_backward_pre_hook(lambda m, g: calls.append("before backward")),
        conv.register_full_backward_hook(lambda m, i, o: calls.append("after backward")),
    ]
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    conv(x).sum().backward()
    expected = list(calls)
    assert len(set(expected)) == len(handles) == len(expected)
    pruned = grouped_kernels(conv, groups=2, keep=2)
    several = take_over(nn.Sequential(nn.Conv2d(4, 4, 3)), conv)
    for handle in handles:
        handle.remove()
    for layer in (pruned, pruned.to_conv(), several):
        calls.clear()
        layer(x).sum().backward()
        assert calls == expected
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 9, 5, 5))
        assert calls[-1] == "always"


def test_attributes_of_the_user_are_taken_over() -> None:
    conv = nn.Conv2d(4, 4, 3)
    conv.stage = {"name": "stem"}
    pruned = grouped_kernels(conv, groups=2, keep=2)
    assert pruned.stage is pruned.to_conv().stage is conv.stage
    assert set(vars(pruned.to_conv())) == set(vars(conv))


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Counting(nn.Conv2d):
    def _conv_forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return 2 * super()._conv_forward(*arguments)


class Masked(nn.Conv2d):
    def __getattr__(self, name: str) -> torch.Tensor:
        found = super().__getattr__(name)
        return found.relu() if name == "weight" else found


class Inherited(Standardised):
    pass


class Convolution3x3(nn.Conv2d):
    """A constructor of its own changes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


def with_own_forward() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.forward = lambda x: x
    return conv


def with_a_module() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.after = nn.ReLU()
    return conv


def with_a_buffer() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.register_buffer("scale", torch.ones(1))
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Standardised(4, 4, 3), "Standardised, whose class Standardised has its own forward"),
        (lambda: Inherited(4, 4, 3), "Inherited, whose class Standardised has its own forward"),
        (lambda: Counting(4, 4, 3), "own _conv_forward"),
        (lambda: Masked(4, 4, 3), "own __getattr__"),
        (lambda: torch.ao.nn.qat.Conv2d(4, 4, 3, qconfig=torch.ao.quantization.default_qconfig), "Conv2d"),
        (lambda: torch.ao.nn.quantized.Conv2d(4, 4, 3), "it holds no weight of its own"),
        (with_own_forward, "its forward was replaced on the instance"),
        (with_a_module, r"it holds modules \(after\)"),
        (with_a_buffer, "it holds scale"),
        (lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), "it holds weight_g, weight_v"),
        (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "it holds weight_orig"),
        (lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 2), "weight_mask, weight_orig"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "its weight is parametrised"),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "its weight is parametrised"),
        (lambda: nn.LazyConv2d(4, 3), "run the network once"),
        (lambda: nn.LazyLinear(4), "run the network once"),
        (lambda: nn.Conv2d(4, 4, 3, device="meta"), "meta device"),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "torch.complex64"),
        (lambda: nn.MultiheadAttention(4, 2).out_proj, "nn.MultiheadAttention, which never calls it"),
        (lambda: nn.Conv1d(4, 4, 3), "it is a Conv1d"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_computes_something_else_says_why(make, reason: str) -> None:
    assert re.search(reason, altered(make(), nn.Conv2d, nn.Linear))


@pytest.mark.parametrize("bias", [True, False])
def test_plain_layers_have_no_reason(bias: bool) -> None:
    lazy = nn.LazyConv2d(4, 3, bias=bias)
    lazy(torch.randn(1, 4, 5, 5))
    pruned = prune.l1_unstructured(nn.Conv2d(4, 4, 3, bias=bias), "weight", 2)
    prune.remove(pruned, "weight")
    for layer in (nn.Conv2d(4, 4, 3, bias=bias), nn.Linear(4, 4, bias), Convolution3x3(4), lazy, pruned):
        assert altered(layer, nn.Conv2d, nn.Linear) == ""
        assert altered(copy.deepcopy(layer).double(), nn.Conv2d, nn.Linear) == ""


def tied(change) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    change(model)
    return model


def share_the_parameter(model: nn.Module) -> None:
    model[2].weight = model[0].weight


def share_the_memory(model: nn.Module) -> None:
    model[2].weight.data = model[0].weight.data


def share_a_part(model: nn.Module) -> None:
    memory = torch.randn(2 * 144)
    model[0].weight.data = memory[:144].view(4, 4, 3, 3)
    model[2].weight.data = memory[100:244].view(4, 4, 3, 3)


def share_the_bias(model: nn.Module) -> None:
    model[2].bias = model[0].bias


@pytest.mark.parametrize("change", [share_the_parameter, share_the_memory, share_a_part, share_the_bias])
def test_layers_that_share_weights_are_named(change) -> None:
    found = shared_weights(tied(change))
    assert found == {"0": "its weights are also those of 2", "2": "its weights are also those of 0"}


def side_by_side(model: nn.Module) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters())


def under_two_names(model: nn.Module) -> None:
    model.append(model[0])


def without_memory(model: nn.Module) -> None:
    model.to("meta").append(nn.LazyConv2d(3, 3))


@pytest.mark.parametrize("change", [side_by_side, under_two_names, without_memory])
def test_layers_that_share_nothing_are_not_named(change) -> None:
    assert shared_weights(tied(change)) == {}


def test_a_weight_that_the_network_holds_itself_is_shared() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    model.kernel = model[0].weight
    model.append(model[0])
    assert set(shared_weights(model)) == {"", "0", "1"}


def test_layers_whose_weights_attention_reads_are_named() -> None:
    found = shared_weights(
        nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(4, 2, 8), "head": nn.Linear(4, 2)})
    )
    assert {"encoder.linear1", "encoder.linear2", "encoder.self_attn.out_proj"} <= set(found)
    assert found["encoder.linear1"] == "encoder, an nn.TransformerEncoderLayer, reads its weights"
    assert "head" not in found
