"""GroupedKernelConv2d and GroupedKernelLinear: one set of weights, two executions, one cost.

After grouped kernel pruning every group of filters reads its own subset of the input channels. That
is a sparse dense layer and, with channels gathered, a grouped one. Both compute the same function;
which is faster depends on the hardware.
"""

from __future__ import annotations

from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.nets.channels.replacement import altered
from gkp.nets.grouped_base import GroupedKernels
from gkp.search import Selection


class GroupedKernelConv2d(GroupedKernels):
    """A convolution whose groups of filters keep `keep` input channels each.

    Parameters: weight (O, keep, kh, kw) in group order, row p belongs to filter filter_order[p];
    bias (O,) in the order of the filters, or None. Buffers: filter_order (O,), kept (groups, keep).

    execution: "dense" scatters the weight into zeros (O, I, kh, kw) and runs a dense convolution;
    "grouped" gathers channels, runs a grouped convolution and permutes its output back. Input
    (N, I, H, W) or (I, H, W), output (N, O, H', W') or (O, H', W'), equal up to rounding in both.
    padding_mode: as nn.Conv2d's.
    """

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
        padding_mode: str = "zeros",
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(in_channels, out_channels, (height, width), bias, filter_order, kept, execution)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (height, width)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.padding_mode = padding_mode

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, selection: Selection, execution: str = "dense"
    ) -> GroupedKernelConv2d:
        """The convolution `conv` with only the selected kernels, same values, device, dtype and hooks.

        See `gkp.nets.channels.replacement.take_over`. ValueError with the reason when that is not possible.
        """
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
            padding_mode=conv.padding_mode,
        )
        pruned._take_weights(conv)
        return pruned

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
            padding_mode=self.padding_mode,  # type: ignore[arg-type]  # a literal there
            device="meta",  # draws no values, so that the global random state stays
        )
        self._give_weights(conv)
        return conv

    to_dense = to_conv

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Conv2d's, for calls by keyword
        x, padding = input, self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border(), mode=self.padding_mode), 0
        if self.execution == "dense":
            return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation)
        gathered = x.index_select(-3, self.kept.flatten())
        bias = self._bias_of_rows()
        out = F.conv2d(gathered, self.weight, bias, self.stride, padding, self.dilation, self.groups)
        return out if self.in_order else out.index_select(-3, self.unpermute)

    def _border(self) -> list[int]:
        """Left, right, top and bottom padding in pixels."""
        border = []
        for axis in (1, 0):
            if self.padding == "same":
                dilation = self.dilation if isinstance(self.dilation, int) else self.dilation[axis]
                both = dilation * (self.kernel_size[axis] - 1)
                border += [both // 2, both - both // 2]
            elif self.padding == "valid":
                border += [0, 0]
            else:
                border += 2 * [self.padding if isinstance(self.padding, int) else int(self.padding[axis])]
        return border

    def extra_repr(self) -> str:
        mode = "" if self.padding_mode == "zeros" else f"padding_mode={self.padding_mode}, "
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, {mode}groups={self.groups}, {self._repr_of_groups()}"
        )


class GroupedKernelLinear(GroupedKernels):
    """A linear layer whose groups of outputs keep `keep` inputs each: kernels of one number.

    Parameters: weight (O, keep) in group order, row p belongs to output filter_order[p]; bias (O,) in the
    order of the outputs, or None. Buffers: filter_order (O,), kept (groups, keep). Input (..., I), output
    (..., O). execution: "dense" scatters the weight into zeros (O, I); "grouped" gathers the inputs of
    each group and multiplies all groups at once; equal up to rounding.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        filter_order: Tensor | None = None,
        kept: Tensor | None = None,
        execution: str = "dense",
    ) -> None:
        super().__init__(in_features, out_features, (), bias, filter_order, kept, execution)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, selection: Selection, execution: str = "dense"
    ) -> GroupedKernelLinear:
        """The layer `linear` with only the selected weights; as `GroupedKernelConv2d.from_conv`."""
        reason = unsupported(linear)
        if reason:
            raise ValueError(f"cannot convert {linear}: {reason}")
        pruned = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            filter_order=selection.filter_order,
            kept=selection.kept,
            execution=execution,
        )
        pruned._take_weights(linear)
        return pruned

    def to_linear(self) -> nn.Linear:
        """An nn.Linear that computes the same, its pruned weights stored as zeros."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        self._give_weights(linear)
        return linear

    to_dense = to_linear

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Linear's
        if self.execution == "dense":
            return F.linear(input, self.dense_weight(), self.bias)
        gathered = input.reshape(-1, self.in_features).index_select(1, self.kept.flatten())
        rows = gathered.unflatten(1, self.kept.shape).transpose(0, 1)  # (groups, N, keep)
        weight = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)  # (groups, keep, O / groups)
        bias = self._bias_of_rows()
        if bias is None:
            out = torch.bmm(rows, weight)
        else:
            out = torch.baddbmm(bias.unflatten(0, (self.groups, 1, -1)), rows, weight)
        out = out.transpose(0, 1).flatten(1)
        out = out if self.in_order else out.index_select(1, self.unpermute)
        return out.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}, {self._repr_of_groups()}"


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


def unsupported(layer: nn.Conv2d | nn.Linear) -> str:
    """Why `layer` cannot become one of grouped kernels, empty when it can.

    About the layer alone; `gkp.nets.channels.replacement.shared_weights` knows what the network does with its
    weights.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return f"it already has groups={layer.groups}"
    return altered(layer, nn.Conv2d, nn.Linear)
