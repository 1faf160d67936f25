"""A training step with rounded convolutions, and its ratio to PyTorch's own bfloat16 and to float32.

    python -m pytest benchmarks/test_rounded.py --benchmark-only

Where the CPU has instructions for bfloat16 PyTorch's own way is the fast one and `gkp.train.rounded` is not
used.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F

from gkp.nets import models
from gkp.train.rounded import RoundedConvolutions, rounds

BATCH = 64


def test_step_of_a_resnet20(benchmark) -> None:
    torch.manual_seed(0)
    model = models.create("resnet20").train().to(memory_format=torch.channels_last)
    x = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH,))

    def step(mode: AbstractContextManager, bfloat16: bool = True) -> None:
        with mode:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(x)
            F.cross_entropy(logits.float(), y).backward()

    def seconds(*arguments) -> float:
        started = time.perf_counter()
        step(*arguments)
        return time.perf_counter() - started

    benchmark.pedantic(lambda: step(RoundedConvolutions()), rounds=5, warmup_rounds=1)
    ours = benchmark.stats.stats.median
    own, single = (
        min(seconds(nullcontext()) for _ in range(2)),
        min(seconds(nullcontext(), False) for _ in range(3)),
    )
    instructions = "without" if rounds(torch.device("cpu")) else "with"
    benchmark.extra_info.update(instructions=instructions, pytorch=own / ours, float32=single / ours)
    print(
        f"\na CPU {instructions} bfloat16: PyTorch's own takes {own / ours:.1f} times as long, "
        f"float32 {single / ours:.1f}"
    )
