"""What layers of grouped kernels share: weights in group order, their indices, two executions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gkp.nets.channels.replacement import channels_last, take_over

EXECUTIONS = ("dense", "grouped")


class GroupedKernels(nn.Module):
    """What both layers share: weight (O, keep, ...) in group order, its indices, and the execution.

    Row p of the weight belongs to filter filter_order[p]; bias (O,) in the order of the filters, or None.
    Buffers: filter_order (O,), kept (groups, keep).
    """

    bias: nn.Parameter | None
    filter_order: Tensor
    kept: Tensor
    positions: Tensor
    unpermute: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: tuple[int, ...],
        bias: bool,
        filter_order: Tensor | None,
        kept: Tensor | None,
        execution: str,
    ) -> None:
        super().__init__()
        if filter_order is None or kept is None:
            raise ValueError(
                "filter_order (O,) and kept (groups, keep) are needed: take a gkp.search.Selection's"
            )
        _check_indices(filter_order, kept, inputs, outputs)
        self._inputs = inputs
        self.groups = len(kept)
        self.weight = nn.Parameter(torch.empty(outputs, kept.shape[1], *kernel_size))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.register_buffer("filter_order", filter_order.clone().long())
        self.register_buffer("kept", kept.clone().long())
        self.register_buffer("positions", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("unpermute", torch.empty(0, dtype=torch.int64), persistent=False)
        self.execution = execution
        self.reset_parameters()
        self.derive_indices()

    def reset_parameters(self) -> None:
        """Kaiming initialisation, as nn.Conv2d's and nn.Linear's."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def derive_indices(self) -> None:
        """What both executions index with, from filter_order and kept."""
        outputs = len(self.filter_order)
        input_of_row = self.kept.repeat_interleave(outputs // self.groups, 0)
        self.positions = (self.filter_order[:, None] * self._inputs + input_of_row).flatten()
        self.unpermute = self.filter_order.argsort()
        self.in_order = torch.equal(self.filter_order.cpu(), torch.arange(outputs))

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.derive_indices()

    @property
    def execution(self) -> str:
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        if value not in EXECUTIONS:
            raise ValueError(f"execution {value!r}: choose one of {', '.join(EXECUTIONS)}")
        self._execution = value

    def to_dense(self) -> nn.Module:
        """An ordinary layer that computes the same."""
        raise NotImplementedError  # by each kind of layer

    def dense_weight(self) -> Tensor:
        """The weight of the equal dense layer, (O, I, ...), zero where a kernel was pruned."""
        kernels, outputs = self.weight.flatten(0, 1), len(self.filter_order)
        dense = kernels.new_zeros(outputs * self._inputs, *kernels.shape[1:])
        dense = dense.index_copy(0, self.positions, kernels).unflatten(0, (outputs, self._inputs))
        return dense.contiguous(memory_format=torch.channels_last) if channels_last(self.weight) else dense

    def _bias_of_rows(self) -> Tensor | None:
        return self.bias if self.bias is None or self.in_order else self.bias[self.filter_order]

    def _take_weights(self, layer: nn.Conv2d | nn.Linear) -> None:
        """The selected kernels and the bias of the dense `layer`, and what else it has."""
        self.to(layer.weight)
        with torch.no_grad():
            self.weight.copy_(layer.weight.flatten(0, 1)[self.positions].view_as(self.weight))
            if self.bias is not None and layer.bias is not None:  # both or neither
                self.bias.copy_(layer.bias)
        take_over(self, layer)

    def _give_weights(self, layer: nn.Conv2d | nn.Linear) -> None:
        """The dense weight and the bias to the dense `layer`, and what else this one has.

        `layer` needs no values of its own and may be on the meta device.
        """
        for name, parameter in list(layer.named_parameters()):
            # Not by `to_empty`: PyTorch imports SymPy, a second, to look at a tensor on the meta device.
            setattr(layer, name, nn.Parameter(self.weight.new_empty(parameter.shape)))
        with torch.no_grad():
            layer.weight.copy_(self.dense_weight())
            if self.bias is not None and layer.bias is not None:  # both or neither
                layer.bias.copy_(self.bias)
        take_over(layer, self)

    def _repr_of_groups(self) -> str:
        return f"kept={self.kept.shape[1]}, bias={self.bias is not None}, execution={self.execution}"


def _check_indices(filter_order: Tensor, kept: Tensor, inputs: int, outputs: int) -> None:
    if not torch.equal(filter_order.cpu().sort().values, torch.arange(outputs)):
        raise ValueError(f"filter_order must hold each of the {outputs} filters once")
    if kept.dim() != 2 or not len(kept) or outputs % len(kept):
        raise ValueError(
            f"kept must be (groups, keep) with groups dividing {outputs}, got {tuple(kept.shape)}"
        )
    inside = kept.numel() and int(kept.min()) >= 0 and int(kept.max()) < inputs
    if not inside or any(len(row.unique()) != len(row) for row in kept):
        raise ValueError(f"each group must keep distinct input channels in 0..{inputs - 1}")
