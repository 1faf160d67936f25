"""The arithmetic of an epoch, which gives the same numbers again; bfloat16 on a CPU that does not know it.

Without such instructions (AVX-512 BF16, AMX) PyTorch's convolutions in bfloat16 take a slow path: a training
step of a ResNet-20 is ten times as long as in float32 (`benchmarks/test_rounded.py`). The same products can
be had from the fast float32 convolution: a bfloat16 number is a float32 number, and the product of two of
them is exact in float32. Only the order in which products are summed differs, as between any two machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@contextmanager
def reproducible(device: torch.device, precision: str, seed: int) -> Iterator[None]:
    """A random stream of its own (dropout), deterministic cuDNN, fast bfloat16; given back as found."""
    cuda, tf32 = [device] if device.type == "cuda" else [], precision == "tf32"
    with (
        torch.random.fork_rng(devices=cuda),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
        fast_bfloat16(device),
    ):
        torch.manual_seed(seed)
        yield


def rounds(device: torch.device) -> bool:
    """Whether `device` is a CPU that does not convolve bfloat16 numbers itself."""
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cpu" and not native


def fast_bfloat16(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, convolutions in bfloat16 are fast on `device`, forward and backward."""
    return RoundedConvolutions() if rounds(device) else nullcontext()


class RoundedConvolutions(TorchDispatchMode):
    """Convolutions of bfloat16 tensors are computed in float32; their results are rounded to bfloat16.

    All other operations, and convolutions in another precision, are what they were.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func not in _CONVOLUTIONS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        results = func(*(_wide(value) for value in args), **(kwargs or {}))
        return _rounded(results) if isinstance(results, Tensor) else tuple(map(_rounded, results))


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _rounded(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.bfloat16()
