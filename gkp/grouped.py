"""GroupedKernelConv2d: one set of weights, two executions, one cost.

After grouped kernel pruning every group of filters reads its own subset of the input channels. That
is a sparse dense convolution and, with channels gathered, a grouped convolution. Both compute the
same function; which is faster depends on the hardware.
"""

from __future__ import annotations

import copy
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gkp.search import Selection

EXECUTIONS = ("dense", "grouped")


class GroupedKernelConv2d(nn.Module):
    """A convolution whose groups of filters keep `keep` input channels each.

    Parameters: weight (O, keep, kh, kw) in group order, row p belongs to filter filter_order[p];
    bias (O,) in the order of the filters, or None. Buffers: filter_order (O,), kept (groups, keep).

    execution: "dense" scatters the weight into zeros (O, I, kh, kw) and runs a dense convolution;
    "grouped" gathers channels, runs a grouped convolution and permutes its output back. Input
    (N, I, H, W), output (N, O, H', W'), equal up to rounding in both.
    """

    filter_order: Tensor
    kept: Tensor
    positions: Tensor
    unpermute: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        filter_order: Tensor | None = None,
        kept: Tensor | None = None,
        execution: str = "dense",
    ) -> None:
        super().__init__()
        if filter_order is None or kept is None:
            raise ValueError(
                "filter_order (O,) and kept (groups, keep) are needed: take a gkp.search.Selection's"
            )
        _check_indices(filter_order, kept, in_channels, out_channels)
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (height, width)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = len(kept)
        self.weight = nn.Parameter(torch.empty(out_channels, kept.shape[1], height, width))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.register_buffer("filter_order", filter_order.clone().long())
        self.register_buffer("kept", kept.clone().long())
        self.register_buffer("positions", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("unpermute", torch.empty(0, dtype=torch.int64), persistent=False)
        self.execution = execution
        self.reset_parameters()
        self._derive_indices()
        self.register_load_state_dict_post_hook(lambda module, _: module._derive_indices())

    def reset_parameters(self) -> None:
        """Kaiming initialisation, as nn.Conv2d's."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def _derive_indices(self) -> None:
        """What both executions index with, from filter_order and kept."""
        channel_of_row = self.kept.repeat_interleave(self.out_channels // self.groups, 0)
        self.positions = (self.filter_order[:, None] * self.in_channels + channel_of_row).flatten()
        self.unpermute = self.filter_order.argsort()
        self.in_order = torch.equal(self.filter_order.cpu(), torch.arange(self.out_channels))

    @property
    def execution(self) -> str:
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        if value not in EXECUTIONS:
            raise ValueError(f"execution {value!r}: choose one of {', '.join(EXECUTIONS)}")
        self._execution = value

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, selection: Selection, execution: str = "dense"
    ) -> GroupedKernelConv2d:
        """The convolution `conv` with only the selected kernels, same values, device and dtype."""
        reason = unsupported(conv)
        if reason:
            raise ValueError(f"cannot convert {conv}: {reason}")
        pruned = cls(
            conv.in_channels,
            conv.out_channels,
            **window(conv),
            bias=conv.bias is not None,
            filter_order=selection.filter_order,
            kept=selection.kept,
            execution=execution,
        ).to(conv.weight)
        with torch.no_grad():
            pruned.weight.copy_(conv.weight.flatten(0, 1)[pruned.positions].view_as(pruned.weight))
            if pruned.bias is not None and conv.bias is not None:  # both or neither
                pruned.bias.copy_(conv.bias)
        pruned.weight.requires_grad_(conv.weight.requires_grad)
        return pruned.train(conv.training)

    def dense_weight(self) -> Tensor:
        """The weight of the equal dense convolution, (O, I, kh, kw), zero where a kernel was pruned."""
        kernels = self.weight.flatten(0, 1)
        dense = kernels.new_zeros(self.out_channels * self.in_channels, *self.kernel_size)
        return dense.index_copy(0, self.positions, kernels).unflatten(
            0, (self.out_channels, self.in_channels)
        )

    def to_conv(self) -> nn.Conv2d:
        """An nn.Conv2d that computes the same, its pruned kernels stored as zeros."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
        ).to(self.weight)
        with torch.no_grad():
            conv.weight.copy_(self.dense_weight())
            if conv.bias is not None and self.bias is not None:  # both or neither
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.execution == "dense":
            return F.conv2d(x, self.dense_weight(), self.bias, self.stride, self.padding, self.dilation)
        bias = self.bias if self.bias is None or self.in_order else self.bias[self.filter_order]
        gathered = x.index_select(1, self.kept.flatten())
        out = F.conv2d(gathered, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return out if self.in_order else out.index_select(1, self.unpermute)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, kept={self.kept.shape[1]}, "
            f"bias={self.bias is not None}, execution={self.execution}"
        )


class Window(TypedDict):
    """Where a convolution reads its input: arguments of nn.Conv2d and of GroupedKernelConv2d."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]


def window(conv: nn.Conv2d) -> Window:
    """The window of `conv`, in pairs as its constructor takes them; torch declares tuples of any length."""
    return {
        "kernel_size": _pair(conv.kernel_size),
        "stride": _pair(conv.stride),
        "padding": conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
        "dilation": _pair(conv.dilation),
    }


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def unsupported(conv: nn.Conv2d) -> str:
    """Why `conv` cannot become a GroupedKernelConv2d, empty when it can."""
    if conv.groups != 1:
        return f"it already has groups={conv.groups}"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r} is not supported"
    return ""


def set_execution(model: nn.Module, execution: str) -> nn.Module:
    """Switch every GroupedKernelConv2d of `model`, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, GroupedKernelConv2d):
            module.execution = execution
    return model


def to_dense(model: nn.Module) -> nn.Module:
    """A copy whose grouped kernel convolutions are ordinary ones that hold zeros."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, GroupedKernelConv2d):
            model.set_submodule(name, module.to_conv())
    return model


ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Dropout, nn.Identity)
CHANNELWISE = (*ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CHANNELWISE_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.max_pool2d, F.avg_pool2d)


def fold_permutations(model: nn.Module) -> nn.Module:
    """A copy in which output permutations are folded into what follows, where that is possible.

    A permutation can be folded when a single chain of batch norm and channel-wise operations leads
    from one grouped kernel convolution to the next: the channels in between get new names, the
    batch norm's entries and the next layer's gather follow. Values are unchanged, one gather less
    runs per folded layer. Layers that end in a residual sum keep their permutation.
    """
    model = copy.deepcopy(model)
    for first, norms, second in _chains(model):
        order = first.filter_order.clone()
        with torch.no_grad():
            for norm in norms:
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    if tensor is not None:
                        tensor.copy_(tensor[order])
            if first.bias is not None:
                first.bias.copy_(first.bias[order])
            kept, columns = order.argsort()[second.kept].sort(1)
            rows = second.out_channels // second.groups
            index = columns.repeat_interleave(rows, 0)[:, :, None, None].expand_as(second.weight)
            second.weight.copy_(second.weight.gather(1, index))
        first.filter_order.copy_(torch.arange(len(order)))
        second.kept.copy_(kept)
        first._derive_indices()
        second._derive_indices()
    return model


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, GroupedKernelConv2d) or super().is_leaf_module(module, qualified_name)


def _chains(model: nn.Module) -> list[tuple[GroupedKernelConv2d, list[nn.BatchNorm2d], GroupedKernelConv2d]]:
    """Pairs of grouped kernel convolutions with only channel-wise, single-use operations between them."""
    modules = dict(model.named_modules())
    graph = _Tracer().trace(model)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    chains = []
    for node in graph.nodes:
        first = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(first, GroupedKernelConv2d) or first.in_order or calls.count(node.target) > 1:
            continue
        norms: list[nn.BatchNorm2d] = []
        while len(node.users) == 1:
            node = next(iter(node.users))
            module = modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, GroupedKernelConv2d) and calls.count(node.target) == 1:
                chains.append((first, norms, module))
            elif isinstance(module, nn.BatchNorm2d) and calls.count(node.target) == 1:
                norms.append(module)
                continue
            elif isinstance(module, CHANNELWISE) or node.target in CHANNELWISE_FUNCTIONS:
                continue
            break
    return chains


def _check_indices(filter_order: Tensor, kept: Tensor, in_channels: int, out_channels: int) -> None:
    if not torch.equal(filter_order.cpu().sort().values, torch.arange(out_channels)):
        raise ValueError(f"filter_order must hold each of the {out_channels} filters once")
    if kept.dim() != 2 or out_channels % len(kept):
        raise ValueError(
            f"kept must be (groups, keep) with groups dividing {out_channels}, got {tuple(kept.shape)}"
        )
    inside = kept.numel() and int(kept.min()) >= 0 and int(kept.max()) < in_channels
    if not inside or any(len(row.unique()) != len(row) for row in kept):
        raise ValueError(f"each group must keep distinct input channels in 0..{in_channels - 1}")
