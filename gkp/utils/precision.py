"""Products of float32 numbers in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, no GPU rounds the factors of float32 products to TF32; the settings come back as they were.

    PyTorch does so in convolutions unless it is told not to. That moves logits in the third digit, which
    decides about images near a boundary, and looks like a fault to a proof that two networks are equal.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        matmul.allow_tf32 = before
