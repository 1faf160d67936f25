"""Random crop and flip of a whole batch at once, on the device that holds the data.

The distribution is torchvision's `RandomCrop(size, padding=p)` then `RandomHorizontalFlip()`: the border
is black in pixels, that is, zeros are added before any normalisation. All random numbers of an epoch are
drawn in advance on the CPU, so that CPU and GPU runs see the same images in the same order, and so that a
resumed run needs nothing but the seed and the number of the epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("none", "crop", "crop+flip")


def stream_seed(*parts: int | str) -> int:
    """A 32-bit seed for the random stream named by `parts`; unrelated for different parts.

    Hashing instead of adding keeps (seed 0, epoch 1) apart from (seed 1, epoch 0).
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class EpochDraws:
    """The random choices of one epoch over n images; each tensor has n entries.

    `order` is the permutation of the images; `top` and `left` (0..2*padding) are the corner of the crop
    in the padded image and `flip` (bool) mirrors left-right, each for the image at that place of `order`.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: torch.device | str) -> EpochDraws:
        return EpochDraws(*(t.to(device) for t in (self.order, self.top, self.left, self.flip)))


def draw_epoch(n: int, augment: str, padding: int, generator: torch.Generator) -> EpochDraws:
    """Draw order, crops and flips for n images; what `augment` leaves out is the identity."""
    order = torch.randperm(n, generator=generator)
    corners = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flip = torch.randint(0, 2, (n,), generator=generator).bool()
    if augment == "none":
        corners = torch.full_like(corners, padding)
    if augment != "crop+flip":
        flip = torch.zeros_like(flip)
    return EpochDraws(order, corners[0], corners[1], flip)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad (B, C, H, W) with zeros, cut (H, W) at (top, left) of each image, mirror where `flip`.

    Any dtype and device; the corner (padding, padding) without flip gives the image back.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    # A view of every possible window, from which indexing copies only the chosen ones.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flip[:, None, None, None], cropped.flip(-1), cropped)


def pixels(images: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]; channels last is the fast layout of convolutions."""
    return images.to(torch.float32, memory_format=layout).div_(255)
