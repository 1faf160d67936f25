"""What one attack left of one network: right or wrong of every image, and the bits of it in a record."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gkp.attacks.description import Attack
from gkp.utils.stats import wilson

STRENGTH = {"fgsm": 0, "pgd": 1, "autoattack": 2}


@dataclass(frozen=True)
class Outcome:
    """One attack on one model. `correct`: bool (N,), on the CPU, in the order of the images.

    zero_gradient: how many of the images that stay right gave the attack a first gradient of exactly zero;
    None where none was taken. repeatable: whether two forward passes of one image agree. flags: AutoAttack's
    own warnings. What they tell of gradient masking is said by `self_check`.
    """

    name: str
    correct: Tensor
    seconds: float
    attack: Attack | None = None
    zero_gradient: int | None = None
    repeatable: bool = True
    flags: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1]."""
        return int(self.correct.sum()) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy (Wilson 1927), as fractions."""
        return wilson(int(self.correct.sum()), self.n)


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
