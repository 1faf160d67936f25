"""Multiply-adds and parameters, in the paper's convention and in the usual one; latency.

usual: the products of convolutions, linear layers and attention (q k^T and its product with v), as
torchvision's published figures have them: whatever multiplies matrices when the network runs, counted at
PyTorch's dispatcher (`gkp.nets.products`). Kernels that grouped kernel pruning removed are free, other zeros
are not. Products that only make a weight (parametrizations, torch.nn.utils) and elementwise ones do not
count; all parameters do, each once.

paper: what the counter in the authors' release sees. Non-zero weights of convolutions and linear
layers times output positions; 1 per output element of a convolution with bias and of a ReLU module
(not of a functional one: their VGG has modules, their ResNets do not); 2 per element of a batch
norm; 1 per input element of pooling and per element that a parameter-free shortcut subsamples;
parameters that are not zero. It sees modules of these types and nothing else.

Both count one multiply-add as 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gkp.nets import products
from gkp.nets.grouped import GroupedKernelConv2d, GroupedKernelLinear
from gkp.nets.models import OptionAShortcut

CONVENTIONS = ("usual", "paper")


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass of one image: multiply-adds and parameters, absolute numbers."""

    macs: int
    params: int


def count(model: nn.Module, example_input: Tensor, *, convention: str = "usual") -> Cost:
    """Count `model`, in eval mode, on the first image of `example_input` (N, C, H, W).

    What runs twice counts twice. The model is left as it was. The image takes the model's device and floating
    type; "usual" needs no memory on the device "meta". ValueError: an unknown convention, a network that does
    not run on the example, or an operator that may hide products (it says how to name its cost).
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    if convention == "usual":
        macs = sum(number for _, number in products.products(model, example_input))
        return Cost(macs, sum(p.numel() for p in model.parameters()))
    return _paper_count(model, example_input)


def _paper_count(model: nn.Module, example_input: Tensor) -> Cost:
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            'the paper\'s convention counts weights that are not zero: "meta" has none, load weights'
        )
    macs = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        nonlocal macs
        macs += _paper_macs(module, next(iter((*inputs, *named.values()))), output)

    def watch(trial: nn.Module) -> Iterator[RemovableHandle]:
        return (module.register_forward_hook(add, with_kwargs=True) for module in trial.modules())

    products.run_once(model, example_input, watch)
    return Cost(macs, sum(int(p.count_nonzero()) for p in model.parameters()))


def _paper_macs(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, (nn.Conv2d, GroupedKernelConv2d)):
        bias = out.numel() if module.bias is not None else 0
        return int(module.weight.count_nonzero()) * out.shape[0] * out[0, 0].numel() + bias
    if isinstance(module, (nn.Linear, GroupedKernelLinear)):
        return int(module.weight.count_nonzero()) * (out.numel() // out.shape[-1])
    if isinstance(module, nn.BatchNorm2d):
        return 2 * out.numel()
    if isinstance(module, nn.ReLU):
        return out.numel()
    if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)):
        return x.numel()
    if isinstance(module, OptionAShortcut):
        return x[:, :, :: module.stride, :: module.stride].numel()
    return 0


@dataclass(frozen=True)
class Latency:
    """Seconds per forward pass: the median over the rounds and the quartiles."""

    median: float
    low: float
    high: float


def latency(
    variants: dict[str, Callable[[Tensor], Tensor]], example_input: Tensor, *, rounds: int = 20
) -> dict[str, Latency]:
    """Time several callables on the same input, interleaved so that they see the same machine load."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least 1")
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, run in variants.items():
                _wait(example_input)
                start = time.perf_counter()
                run(example_input)
                _wait(example_input)
                if turn >= 2:  # the first two rounds warm caches up
                    times[name].append(time.perf_counter() - start)
    quantiles = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    return {
        name: Latency(*torch.tensor(each, dtype=torch.float64).quantile(quantiles).tolist())
        for name, each in times.items()
    }


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
