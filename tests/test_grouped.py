import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp import models
from gkp.grouped import GroupedKernelConv2d, fold_permutations, set_execution, to_dense
from gkp.search import Selection


def random_selection(
    filters: int, channels: int, groups: int, keep: int, generator: torch.Generator
) -> Selection:
    order = torch.randperm(filters, generator=generator)
    kept = torch.stack(
        [torch.randperm(channels, generator=generator)[:keep].sort().values for _ in range(groups)]
    )
    return Selection(order, kept, torch.zeros(groups))


def pruned_resnet(seed: int = 0) -> nn.Module:
    """A ResNet-8 with batch norms that do something, pruned by SR-GKP."""
    torch.manual_seed(seed)
    model = models.create("resnet8").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.2)
    return gkp.prune(model, "sr-gkp")


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from((1, 3, (3, 5))),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    channels=st.integers(1, 7),
    groups=st.integers(1, 4),
)
def test_both_executions_and_the_dense_convolution_agree(
    seed: int,
    kernel: int | tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    bias: bool,
    channels: int,
    groups: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(channels, groups * 3, kernel, stride, padding, dilation, bias=bias)
    keep = int(torch.randint(1, channels + 1, (), generator=generator))
    selection = random_selection(groups * 3, channels, groups, keep, generator)
    pruned = GroupedKernelConv2d.from_conv(conv, selection)
    x = torch.randn(2, channels, 12, 12, generator=generator)
    masked = copy.deepcopy(conv)
    mask = torch.zeros_like(conv.weight)
    for group, filters in enumerate(selection.filter_order.view(groups, 3)):
        for f in filters:
            mask[f, selection.kept[group]] = 1
    with torch.no_grad():
        masked.weight.mul_(mask)
        expected = masked(x)
        assert torch.allclose(pruned(x), expected, atol=1e-5)
        pruned.execution = "grouped"
        assert torch.allclose(pruned(x), expected, atol=1e-5)
    dense = pruned.to_conv()
    assert torch.equal(dense.weight, masked.weight)
    assert torch.equal(GroupedKernelConv2d.from_conv(dense, selection).weight, pruned.weight)


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
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        GroupedKernelConv2d.from_conv(nn.Conv2d(4, 4, 3, padding_mode="reflect"), selection)
    with pytest.raises(ValueError, match="dense, grouped"):
        GroupedKernelConv2d.from_conv(nn.Conv2d(4, 4, 3), selection, execution="fast")
