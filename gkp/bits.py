"""Right or wrong of every image, packed into a short text for a record."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import torch
from torch import Tensor


def pack_bits(correct: Tensor) -> str:
    """Base64 of the bits of a bool tensor (N,), first image in the highest bit of the first byte."""
    return base64.b64encode(np.packbits(correct.cpu().numpy().astype(bool)).tobytes()).decode("ascii")


def unpack_bits(text: str, n: int) -> Tensor:
    """Bool tensor (n,) from `pack_bits`. ValueError when `text` cannot hold exactly n bits."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error}): give a string made by pack_bits") from error
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if len(bits) != -(-n // 8) * 8 or bits[n:].any():
        raise ValueError(f"{len(data)} bytes do not hold the bits of {n} images: the record is damaged")
    return torch.from_numpy(bits[:n].astype(bool))
