import copy
import io
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import grouped_kernels, masked, random_selection
from torch import nn

import gkp
from gkp.nets import models
from gkp.nets.deploy import folded
from gkp.nets.grouped import (
    GroupedKernelConv2d,
    GroupedKernelLinear,
    fold_permutations,
    set_execution,
    to_dense,
)
from gkp.search import Selection


def pruned_resnet(seed: int = 0) -> nn.Module:
    """A ResNet-8 with batch norms that do something, pruned by SR-GKP."""
    torch.manual_seed(seed)
    model = models.create("resnet8").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.2)
    return gkp.prune(model, "sr-gkp")


def assert_agrees(layer: nn.Module, selection: Selection, x: torch.Tensor) -> None:
    """Both executions of the grouped kernels, and what they become again, are the masked layer."""
    convert = (
        GroupedKernelConv2d.from_conv if isinstance(layer, nn.Conv2d) else GroupedKernelLinear.from_linear
    )
    pruned, expected = convert(layer, selection), masked(layer, selection)
    with torch.no_grad():
        for execution in ("dense", "grouped"):
            pruned.execution = execution
            torch.testing.assert_close(pruned(x), expected(x), rtol=1e-4, atol=1e-5)
    dense = pruned.to_dense()
    assert type(dense) is type(layer)
    assert repr(dense) == repr(layer)
    assert torch.equal(dense.weight, expected.weight)
    assert torch.equal(convert(dense, selection).weight, pruned.weight)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from((1, 3, (3, 5))),
    stride=st.integers(1, 2),
    padding=st.sampled_from((0, 1, 2, (2, 1), "same", "valid")),
    padding_mode=st.sampled_from(("zeros", "reflect", "replicate", "circular")),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    channels=st.integers(1, 7),
    groups=st.integers(1, 4),
    batch=st.sampled_from(((2,), ())),
)
def test_both_executions_and_the_dense_convolution_agree(
    seed: int,
    kernel: int | tuple[int, int],
    stride: int,
    padding: int | tuple[int, int] | str,
    padding_mode: str,
    dilation: int,
    bias: bool,
    channels: int,
    groups: int,
    batch: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(
        channels, groups * 3, kernel, stride, padding, dilation, bias=bias, padding_mode=padding_mode
    )
    keep = int(torch.randint(1, channels + 1, (), generator=generator))
    selection = random_selection(groups * 3, channels, groups, keep, generator)
    assert_agrees(conv, selection, torch.randn(*batch, channels, 12, 11, generator=generator))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    bias=st.booleans(),
    inputs=st.integers(1, 7),
    groups=st.integers(1, 4),
    batch=st.sampled_from(((), (3,), (2, 3), (2, 1, 3), (0,))),
)
def test_both_executions_and_the_dense_linear_layer_agree(
    seed: int, bias: bool, inputs: int, groups: int, batch: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keep = int(torch.randint(1, inputs + 1, (), generator=generator))
    selection = random_selection(groups * 3, inputs, groups, keep, generator)
    linear = nn.Linear(inputs, groups * 3, bias)
    assert_agrees(linear, selection, torch.randn(*batch, inputs, generator=generator))


def small_layers() -> list[tuple[nn.Module, torch.Tensor]]:
    """A convolution and a linear layer of grouped kernels, each with an input."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(6, 8)
    return [
        (grouped_kernels(conv, groups=4, keep=3), torch.randn(2, 6, 5, 5)),
        (grouped_kernels(linear, groups=4, keep=3), torch.randn(2, 5, 6)),
    ]


@pytest.mark.parametrize("execution", ["dense", "grouped"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
def test_other_number_types_compute_the_same(execution: str, dtype: torch.dtype, tolerance: float) -> None:
    for layer, x in small_layers():
        expected = layer(x)
        found = set_execution(layer.to(dtype), execution)(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_autocast_gives_its_own_type(execution: str) -> None:
    for layer, x in small_layers():
        with torch.autocast("cpu", torch.bfloat16):
            assert set_execution(layer, execution)(x).dtype == torch.bfloat16


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [through_pickle, through_a_file, copy.deepcopy])
@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_a_pruned_layer_can_be_copied(copied, execution: str) -> None:
    for layer, x in small_layers():
        set_execution(layer, execution)
        other = copied(layer)
        assert torch.equal(other(x), layer(x))
        third = grouped_kernels(layer.to_dense(), groups=4, keep=3, seed=1)
        other.load_state_dict(third.state_dict())  # the indices of the copy follow, too
        assert torch.equal(other(x), set_execution(third, execution)(x))
        assert not torch.equal(other(x), layer(x))


@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_compiled_layers_compute_the_same(execution: str) -> None:
    for layer, x in small_layers():
        set_execution(layer, execution)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x))


def test_gradients_reach_kept_weights_only() -> None:
    conv = nn.Conv2d(4, 4, 3)
    selection = random_selection(4, 4, 2, 2, torch.Generator().manual_seed(0))
    pruned = GroupedKernelConv2d.from_conv(conv, selection)
    x = torch.randn(2, 4, 8, 8)
    gradients = []
    for execution in ("dense", "grouped"):
        pruned.execution = execution
        pruned.zero_grad()
        pruned(x).square().sum().backward()
        gradients.append((pruned.weight.grad.clone(), pruned.bias.grad.clone()))
    for dense, grouped in zip(*gradients, strict=True):
        assert torch.allclose(dense, grouped, rtol=1e-4, atol=1e-4)
    assert pruned.weight.shape == (4, 2, 3, 3)


def test_a_state_dict_carries_the_indices() -> None:
    generator = torch.Generator().manual_seed(1)
    conv = nn.Conv2d(6, 8, 3)
    first = GroupedKernelConv2d.from_conv(conv, random_selection(8, 6, 4, 3, generator), "grouped")
    second = GroupedKernelConv2d.from_conv(
        nn.Conv2d(6, 8, 3), random_selection(8, 6, 4, 3, generator), "grouped"
    )
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 6, 9, 9)
    for execution in ("dense", "grouped"):
        first.execution = second.execution = execution
        assert torch.equal(first(x), second(x))


def test_copies_and_types_follow() -> None:
    pruned = GroupedKernelConv2d.from_conv(
        nn.Conv2d(6, 8, 3), random_selection(8, 6, 4, 3, torch.Generator().manual_seed(2))
    )
    twin = copy.deepcopy(pruned).to(torch.float64)
    assert twin.weight.dtype == torch.float64
    assert twin.kept.dtype == torch.int64
    x = torch.randn(1, 6, 9, 9)
    assert torch.allclose(twin(x.double()).float(), pruned(x), atol=1e-5)
    meta = copy.deepcopy(pruned).to("meta")
    assert all(buffer.device.type == "meta" for buffer in meta.buffers())


def test_folding_permutations_keeps_the_function() -> None:
    pruned = pruned_resnet()
    folded = fold_permutations(pruned)
    x = torch.rand(4, 3, 32, 32)
    layers = [m for m in folded.modules() if isinstance(m, GroupedKernelConv2d)]
    assert sum(layer.in_order for layer in layers) == 3  # the first convolution of each block
    assert not any(m.in_order for m in pruned.modules() if isinstance(m, GroupedKernelConv2d))
    with torch.no_grad():
        expected = pruned(x)
        assert expected.std() > 0.01
        for execution in ("dense", "grouped"):
            assert torch.allclose(set_execution(folded, execution)(x), expected, atol=1e-5)
        assert torch.allclose(to_dense(pruned)(x), expected, atol=1e-5)


@pytest.mark.parametrize("make", [to_dense, fold_permutations, folded], ids=lambda make: make.__name__)
def test_other_forms_are_made_without_a_random_draw(make) -> None:
    pruned, state = pruned_resnet(), torch.get_rng_state()
    make(pruned)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_linear_layer_becomes_dense_without_a_random_draw() -> None:
    selection = random_selection(8, 6, 4, 3, torch.Generator().manual_seed(2))
    pruned = GroupedKernelLinear.from_linear(nn.Linear(6, 8).double(), selection)
    state, x = torch.get_rng_state(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(pruned.to_dense()(x), pruned(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_folding_stops_where_a_tensor_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.first, self.second = (
                GroupedKernelConv2d.from_conv(
                    nn.Conv2d(8, 8, 3, padding=1), random_selection(8, 8, 4, 4, generator)
                )
                for _ in range(2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.second(x) + x

    model, x = Twice(), torch.randn(1, 8, 6, 6)
    folded = fold_permutations(model)
    assert not folded.first.in_order
    assert torch.equal(folded(x), model(x))


@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_onnx_export_runs(execution: str, tmp_path) -> None:
    pruned = set_execution(fold_permutations(pruned_resnet()), execution)
    x = torch.rand(2, 3, 32, 32)
    path = tmp_path / "pruned.onnx"
    torch.onnx.export(pruned, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(logits, pruned(x).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_onnx_export_of_linear_layers_runs(execution: str, tmp_path) -> None:
    selection = Selection(
        torch.randperm(8), torch.stack([torch.arange(0, 6, 2), torch.arange(3)]), torch.zeros(2)
    )
    layer = GroupedKernelLinear.from_linear(nn.Linear(6, 8), selection)
    model = set_execution(nn.Sequential(nn.LayerNorm(6), layer, nn.GELU()), execution).eval()
    x = torch.rand(2, 5, 6)
    path = tmp_path / "linear.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("order", "kept", "sentence"),
    [
        (torch.tensor([0, 0, 1, 2]), torch.tensor([[0], [1]]), "each of the 4 filters once"),
        (torch.arange(4), torch.tensor([[0], [1], [2]]), "dividing 4"),
        (torch.arange(4), torch.tensor([[0, 0], [1, 2]]), "distinct input channels"),
        (torch.arange(4), torch.tensor([[0], [9]]), "in 0..2"),
    ],
)
def test_wrong_indices_are_refused(order: torch.Tensor, kept: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GroupedKernelConv2d(3, 4, 3, filter_order=order, kept=kept)


def test_what_cannot_be_converted_says_why() -> None:
    selection = Selection(torch.arange(4), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(ValueError, match="already has groups=2"):
        GroupedKernelConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), selection)
    with pytest.raises(ValueError, match="(?s)Linear.*: its weight is parametrised"):
        GroupedKernelLinear.from_linear(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), selection)
    with pytest.raises(ValueError, match="dense, grouped"):
        GroupedKernelConv2d.from_conv(nn.Conv2d(4, 4, 3), selection, execution="fast")


class Shared(nn.Module):
    """Grouped kernels under two names, called once by each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = grouped_kernels(nn.Conv2d(8, 8, 3, padding=1), groups=4, keep=4)
        self.second = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_a_shared_layer_becomes_one_dense_layer() -> None:
    model, x = Shared(), torch.randn(1, 8, 6, 6)
    dense = to_dense(model)
    assert dense.first is dense.second[1]
    assert type(dense.first) is nn.Conv2d
    torch.testing.assert_close(dense(x), model(x))
    alone = to_dense(model.first)
    assert type(alone) is nn.Conv2d
    torch.testing.assert_close(alone(x), model.first(x))


def test_a_layer_changed_after_pruning_is_not_made_dense() -> None:
    model = Shared()
    nn.utils.parametrizations.weight_norm(model.first)
    with pytest.raises(ValueError, match="cannot make first dense: its weight is parametrised"):
        to_dense(model)
