"""Arithmetic that gives the same numbers again, and what random numbers an epoch sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gkp.train.rounded import fast_bfloat16


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
