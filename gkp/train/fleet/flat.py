"""All parameters of a network in one tensor, so that an update is a handful of kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gkp.nets.grouped_base import GroupedKernels
from gkp.train.recipe import Recipe

IN_HALF = (_ConvNd, nn.Linear, GroupedKernels)  # layers whose weights autocast would cast in every step


class Flat:
    """The parameters of `model`, which become views of `values`, and what SGD keeps of them.

    values, momentum, gradient: (P,), weights of convolutions and linear layers first, their channels last.
    mask: (P,) 0 or 1, or None. statistics: (S,) running means and variances, whose buffers are views too.
    leaves: by name what the forward pass reads and the backward pass differentiates, which is the parameters;
    with `half`, for convolutions and linear layers, a copy in bfloat16.
    """

    def __init__(self, model: nn.Module, *, half: bool, masks: dict[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        layers = {
            f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, IN_HALF) for p in m._parameters
        }
        self.names = sorted(parameters, key=lambda name: name not in layers)  # stable: layers first
        self.shapes = [parameters[name].shape for name in self.names]
        self.values = _joined([parameters[name] for name in self.names])
        self.momentum, self.gradient = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.mask = None
        if masks:
            ones = (masks.get(name, torch.ones(s)) for name, s in zip(self.names, self.shapes, strict=True))
            self.mask = _joined([each.to(self.values.device) for each in ones])
        self.count = sum(name in layers for name in self.names)
        self.layers = sum(shape.numel() for shape in self.shapes[: self.count])
        self.shadow = self.values[: self.layers].bfloat16() if half else None
        places = self.named(self.values)
        gradients = self.named(self.gradient)
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = places[name], gradients[name]
        self.leaves: dict[str, Tensor] = dict(parameters)
        if self.shadow is not None:
            self.leaves |= {name: t.requires_grad_() for name, t in self.named(self.shadow).items()}
        self.running = _statistics_of(model)
        self.statistics = _share(model, self.running)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` by name; of as many parameters as it holds."""
        found, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            if start == flat.numel():
                break
            found[name] = _view(flat[start : start + shape.numel()], shape).detach()
            start += shape.numel()
        return found

    def named_statistics(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat`, laid out as `statistics`, by name."""
        return dict(zip(self.running, flat.split([*self.running.values()]), strict=True))

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Keep the gradients of `leaves`, in the order of `names`, as `gradient`."""
        rows = [_in_memory_order(gradient).reshape(-1) for gradient in gradients]
        layers, others = rows[: self.count], rows[self.count :]  # of two types where the layers are in half
        for some, place in ((layers, self.gradient[: self.layers]), (others, self.gradient[self.layers :])):
            if some:
                place.copy_(torch.cat(some))

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
            self.shadow.copy_(self.values[: self.layers])

    def state(self) -> list[Tensor]:
        """The tensors that training changes, themselves."""
        return [self.values, self.momentum, self.statistics]


def _statistics_of(model: nn.Module) -> dict[str, int]:
    """How many running means and variances each batch norm has, by the name of the buffer."""
    return {
        f"{name}.{buffer}": module.get_buffer(buffer).numel()
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer in ("running_mean", "running_var")
        if module._buffers[buffer] is not None
    }


def _share(model: nn.Module, sizes: dict[str, int]) -> Tensor:
    """All these buffers in one tensor, of which they become views."""
    empty = torch.empty(0, device=next(model.parameters()).device)
    flat = torch.cat([empty, *(model.get_buffer(name) for name in sizes)])
    for name, part in zip(sizes, flat.split([*sizes.values()]), strict=True):
        module, _, buffer = name.rpartition(".")
        model.get_submodule(module)._buffers[buffer] = part
    return flat


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Weights of convolutions lie with their channels last."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return part.view(shape)
    filters, channels, height, width = shape
    return part.view(filters, height, width, channels).permute(0, 3, 1, 2)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([_in_memory_order(tensor.detach()).reshape(-1) for tensor in tensors])
