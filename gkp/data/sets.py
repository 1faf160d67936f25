"""Data sets as tensors: digits (embedded), CIFAR-10, CIFAR-100, and folders of images.

A `Split` keeps its images as bytes, a quarter of what float32 needs, so that a whole data set fits on
the device; `pixels` gives the float32 in [0, 1] that networks and attacks work on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkp.data import cifar
from gkp.utils import files
from gkp.utils.whole import is_whole

DATASETS = ("digits", *cifar.SOURCES)
PARTS = (*cifar.PARTS, "validation")
BYTES = "for pixels x in [0, 1] (255 * x).round().to(torch.uint8)"
# Side in pixels of the square images that networks for a data set are made for, and their cost is told at.
IMAGE_SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32, "imagenet": 224}


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    images: uint8 (N, 3, H, W). labels: int64 (N,). part: "train", "test" or "validation".
    fingerprint: SHA-256 in hex of the images as (N, H, W, C) in C order followed by the int64 labels.
    official_size: how many images the publisher's split holds, which may be more than are here.
    """

    images: Tensor
    labels: Tensor
    dataset: str
    part: str
    classes: tuple[str, ...]
    fingerprint: str
    official_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        share = "" if len(self) == self.official_size else f" of the publisher's {self.official_size:,}"
        return f"{self.dataset} {self.part}, {len(self):,}{share} images"

    def pixels(self, index: Tensor | slice | None = None) -> Tensor:
        """float32 (n, 3, H, W) in [0, 1]; all images, or those at `index`."""
        return (self.images if index is None else self.images[index]).float().div_(255)

    def to(self, device: str | torch.device) -> Split:
        """The same split with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index_or_n: int | Tensor) -> Split:
        """The first n images, or those at an index tensor, with the fingerprint of what is taken.

        ValueError when n is not in 1 ... len(self), and for an index that is not one-dimensional, of
        integers or bool, or takes no image.
        """
        if not isinstance(index_or_n, Tensor):
            if not is_whole(index_or_n) or index_or_n > len(self):
                raise ValueError(
                    f"cannot take {index_or_n!r} of {self}: choose 1 to {len(self)}, or give an index tensor"
                )
            index_or_n = torch.arange(index_or_n, device=self.labels.device)
        mask = index_or_n.dtype == torch.bool
        if index_or_n.dim() != 1 or index_or_n.is_floating_point() or index_or_n.is_complex():
            raise ValueError(
                f"the index is {index_or_n.dtype} {tuple(index_or_n.shape)}: give integers (n,) or bool (N,)"
            )
        if not (index_or_n.any() if mask else len(index_or_n)):
            raise ValueError(f"the index takes no image of {self}: give one or more")
        images, labels = self.images[index_or_n], self.labels[index_or_n]
        return replace(self, images=images, labels=labels, fingerprint=fingerprint(images, labels))


def of_tensors(images: Tensor, labels: Tensor, *, part: str = "train", dataset: str = "mine") -> Split:
    """Images and labels of one's own as a `Split`; classes are named by their numbers.

    images: uint8 (N, 3, H, W), as read from files, not normalised. labels: integers (N,), from 0. part:
    "train", "test" or "validation". ValueError for other shapes or types, without images, and where no
    pixel is above 1 of 255.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"the {name} are a {type(value).__name__}: give torch.as_tensor({name})")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(
            f"the images are {images.dtype} {tuple(images.shape)}: give uint8 (N, 3, H, W), {BYTES}"
        )
    if images.max() <= 1:
        raise ValueError(f"the images hold nothing above 1, of 255: give bytes, {BYTES}")
    counts = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not counts or labels.shape != images.shape[:1] or labels.min() < 0:
        raise ValueError(
            f"the labels are {labels.dtype} {tuple(labels.shape)}: give {len(images)} whole numbers from 0 on"
        )
    labels = labels.long()
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    return Split(images, labels, dataset, part, classes, fingerprint(images, labels), len(images))


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """`Split.fingerprint` of uint8 images (N, 3, H, W) and int64 labels (N,)."""
    return cifar.digest(images.permute(0, 2, 3, 1).cpu().numpy(), labels.cpu().numpy())


def load(dataset: str, part: str, *, root: str | Path | None = None, download: bool = False) -> Split:
    """Load "digits", "cifar10" or "cifar100", part "train" or "test".

    Files are looked for in `root`, or without it in GKP_DATA and then in the cache (GKP_CACHE, else
    ~/.cache/gkp), in torchvision's layout or that of the Hugging Face parquet release. download: fetch
    missing files to `root`, else to the cache. Digits need no files.

    ValueError: unknown names, or a damaged file, which it names. FileNotFoundError: the data are
    missing (it says how to get them) or cannot be downloaded.
    """
    if part not in cifar.PARTS:
        raise ValueError(f"unknown part {part!r}: choose one of {', '.join(cifar.PARTS)}")
    if dataset == "digits":
        return _digits(part)
    if dataset not in cifar.SOURCES:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(DATASETS)}")
    source = cifar.SOURCES[dataset]
    images, labels = cifar.read(source, part, _roots(root), download=download)
    return split_of(images, labels, dataset, part, source.classes, source.sizes[part])


def hold_out(train: Split, n: int, *, seed: int = 0) -> tuple[Split, Split]:
    """Divide `train` into (the rest, n validation images), each in the original order.

    The validation images are as class-balanced as the counts allow, chosen by `seed` alone.
    ValueError when n is not in 1 ... len(train) - 1.
    """
    if not is_whole(n) or n >= len(train):
        raise ValueError(f"cannot hold out {n} of {len(train)} images: choose 1 to {len(train) - 1}")
    held_out = _balanced(train.labels.cpu(), n, seed).to(train.labels.device)
    return train.take(~held_out), replace(train.take(held_out), part="validation")


def split_of(
    images: np.ndarray,
    labels: np.ndarray,
    dataset: str,
    part: str,
    classes: tuple[str, ...],
    official_size: int,
) -> Split:
    """Of images uint8 (N, H, W, 3) and labels int64 (N,)."""
    return Split(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels),
        dataset,
        part,
        classes,
        cifar.digest(images, labels),
        official_size,
    )


def _roots(root: str | Path | None) -> list[Path]:
    """Where to look, in order; a download goes to the last."""
    if root is not None:
        return [Path(root).expanduser()]
    folder = os.environ.get("GKP_DATA")
    return ([Path(folder).expanduser()] if folder else []) + [files.cache_folder() / "data"]


def _balanced(labels: Tensor, n: int, seed: int) -> Tensor:
    """bool (N,): n positions with every class as often as every other, as far as it has that many."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    turn = torch.empty_like(order)  # the how-manieth of its class each image is, in shuffled order
    for label in shuffled.unique():
        of_class = shuffled == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[turn.argsort(stable=True)[:n]]] = True
    return mask


def _digits(part: str) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as 3x32x32: 1,300 for training, 497 for testing."""
    from sklearn.datasets import load_digits

    grey, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    # Levels 0 ... 16 and weights in eighths: exact in float32, so the bytes are the same everywhere.
    large = F.interpolate(grey.float().view(-1, 1, 8, 8), size=32, mode="bilinear", align_corners=False)
    images = (large * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = labels.long()
    mask = _balanced(labels, 497, seed=0)
    mask = mask if part == "test" else ~mask
    images, labels = images[mask], labels[mask]
    classes = tuple(str(digit) for digit in range(10))
    return Split(images, labels, "digits", part, classes, fingerprint(images, labels), len(labels))
