"""All parameters of a network in one tensor, so that an update is a handful of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gkp.nets.grouped_base import GroupedKernels
from gkp.train.recipe import Recipe

IN_HALF = (_ConvNd, nn.Linear, GroupedKernels)  # layers whose weights autocast would cast in every step
ALIGNED = 16  # numbers, 32 bytes in bfloat16


class Layout:
    """Tensors of these shapes one behind the other, each where libraries load it in blocks of 16 bytes."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = dict(shapes)
        self.room = {name: -(-shape.numel() // ALIGNED) * ALIGNED for name, shape in shapes.items()}

    @property
    def size(self) -> int:
        return sum(self.room.values())

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """(size,): the tensors, in the order of `shapes`, with zeros between them."""
        parts = []
        for tensor, room in zip(tensors, self.room.values(), strict=True):
            parts.append(_in_memory_order(tensor).reshape(-1))
            if gap := room - tensor.numel():
                parts.append(tensor.new_zeros(gap))
        return torch.cat(parts)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors by name, as views of `flat` (size,)."""
        rooms = zip(self.shapes.items(), flat.split([*self.room.values()]), strict=True)
        return {name: _view(part[: shape.numel()], shape).detach() for (name, shape), part in rooms}


class Flat:
    """The parameters of `model`, which become views of `values`, and what SGD keeps of them.

    values, momentum, gradient: (P,), weights of convolutions and linear layers first, their channels last.
    mask: (P,) 0 or 1, or None. statistics: (S,) running means and variances, whose buffers are views too.
    leaves: by name what the forward pass reads and the backward pass differentiates, which is the parameters;
    with `half`, for convolutions and linear layers, `shadow`, a copy in bfloat16.
    """

    def __init__(self, model: nn.Module, *, half: bool, masks: dict[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        modules = {name: module for name, module in model.named_modules() if isinstance(module, IN_HALF)}
        layers = {
            f"{name}.{parameter}" for name, module in modules.items() for parameter in module._parameters
        }
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.layers = Layout({name: shape for name, shape in shapes.items() if name in layers})
        self.others = Layout({name: shape for name, shape in shapes.items() if name not in layers})
        self.names = [*self.layers.shapes, *self.others.shapes]
        self.values = self._joined([parameters[name].detach() for name in self.names])
        self.momentum, self.gradient = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.mask = None
        if masks:
            ones = [masks.get(name, torch.ones(shapes[name])) for name in self.names]
            self.mask = self._joined([tensor.to(self.values) for tensor in ones])
        self.shadow = self.values[: self.layers.size].bfloat16() if half else None
        places, gradients = self.named(self.values), self.named(self.gradient)
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = places[name], gradients[name]
        self.leaves: dict[str, Tensor] = dict(parameters)
        if self.shadow is not None:
            self.leaves |= {n: t.requires_grad_() for n, t in self.layers.views(self.shadow).items()}
        self.running = Layout({name: model.get_buffer(name).shape for name in _statistics_of(model)})
        self.statistics = _share(model, self.running)

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """(P,): tensors in the order of `names`, all of one type or the layers of another."""
        count = len(self.layers.shapes)
        parts = (self.layers, tensors[:count]), (self.others, tensors[count:])
        return torch.cat([layout.joined(some).to(tensors[-1].dtype) for layout, some in parts if some])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat`, laid out as `values`, by name."""
        return self.layers.views(flat[: self.layers.size]) | self.others.views(flat[self.layers.size :])

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Keep the gradients of `leaves`, in the order of `names`, as `gradient`."""
        self.gradient.copy_(self._joined(gradients))

    @torch.no_grad()
    def update(self, lr: Tensor, recipe: Recipe) -> None:
        """One step of torch.optim.SGD with the gradient kept; lr: a scalar on the device."""
        step = self.gradient.add(self.values, alpha=recipe.weight_decay)
        if self.mask is not None:
            step.mul_(self.mask)
        self.momentum.mul_(recipe.momentum).add_(step)
        step = step.add_(self.momentum, alpha=recipe.momentum) if recipe.nesterov else self.momentum
        self.values.sub_(step * lr)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """What the forward pass reads, after `values` changed."""
        if self.shadow is not None:
            self.shadow.copy_(self.values[: self.layers.size])

    def state(self) -> list[Tensor]:
        """The tensors that training changes, themselves."""
        return [self.values, self.momentum, self.statistics]


def _statistics_of(model: nn.Module) -> list[str]:
    """The names of all running means and variances."""
    return [
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer in ("running_mean", "running_var")
        if module._buffers[buffer] is not None
    ]


def _share(model: nn.Module, layout: Layout) -> Tensor:
    """All these buffers in one tensor, of which they become views."""
    buffers = [model.get_buffer(name) for name in layout.shapes]
    flat = layout.joined(buffers) if buffers else next(model.parameters()).new_zeros(0)
    for name, view in layout.views(flat).items():
        module, _, buffer = name.rpartition(".")
        model.get_submodule(module)._buffers[buffer] = view
    return flat


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Weights of convolutions lie with their channels last."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return part.view(shape)
    filters, channels, height, width = shape
    return part.view(filters, height, width, channels).permute(0, 3, 1, 2)
