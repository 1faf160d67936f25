"""Data sets as tensors: digits (embedded), CIFAR-10, CIFAR-100, and folders of images.

A `Split` keeps its images as bytes, a quarter of what float32 needs, so that a whole data set fits on
the device; `pixels` gives the float32 in [0, 1] that networks and attacks work on.
"""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkp.data import cifar, pictures
from gkp.utils import files
from gkp.utils.whole import is_whole

DATASETS = ("digits", *cifar.SOURCES)
# Side in pixels of the square images that networks for a data set are made for, and their cost is told at.
IMAGE_SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32, "imagenet": 224}
# Folders that systems and tools leave among those of the classes, in lower case, besides hidden ones.
CLUTTER = frozenset(
    {"__pycache__", "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin"}
    | {"lost+found", "system volume information"}
)


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

        ValueError when n is not in 1 ... len(self).
        """
        if not isinstance(index_or_n, Tensor):
            index_or_n = operator.index(index_or_n)
            if not 1 <= index_or_n <= len(self):
                raise ValueError(f"cannot take {index_or_n} of {self}: choose 1 to {len(self)}")
            index_or_n = torch.arange(index_or_n, device=self.labels.device)
        images, labels = self.images[index_or_n], self.labels[index_or_n]
        return replace(self, images=images, labels=labels, fingerprint=fingerprint(images, labels))


def of_tensors(images: Tensor, labels: Tensor, *, part: str = "train", dataset: str = "mine") -> Split:
    """Images and labels of one's own as a `Split`; classes are named by their numbers.

    images: uint8 (N, 3, H, W), as read from files, not normalised. labels: integers (N,), from 0.
    ValueError for other shapes or types, or without images.
    """
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"the {name} are a {type(value).__name__}: give torch.as_tensor({name})")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"the images are {images.dtype} {tuple(images.shape)}: give uint8 (N, 3, H, W), for pixels x in "
            "[0, 1] (255 * x).round().to(torch.uint8)"
        )
    if labels.is_floating_point() or labels.shape != images.shape[:1] or labels.min() < 0:
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
    return _split(images, labels, dataset, part, source.classes, source.sizes[part])


def hold_out(train: Split, n: int, *, seed: int = 0) -> tuple[Split, Split]:
    """Divide `train` into (the rest, n validation images), each in the original order.

    The validation images are as class-balanced as the counts allow, chosen by `seed` alone.
    ValueError when n is not in 1 ... len(train) - 1.
    """
    if not is_whole(n) or n >= len(train):
        raise ValueError(f"cannot hold out {n} of {len(train)} images: choose 1 to {len(train) - 1}")
    held_out = _balanced(train.labels.cpu(), n, seed).to(train.labels.device)
    return train.take(~held_out), replace(train.take(held_out), part="validation")


def load_folder(path: str | Path, size: int, *, part: str = "test", allow_empty: bool = False) -> Split:
    """Images in one folder per class (ImageFolder's layout), for use with networks of one's own.

    Classes are the folders of `path` in the order of their names, images all that lie in or below them and
    end in one of `pictures.SUFFIXES`; what begins with a dot and what systems and tools leave (`CLUTTER`)
    is passed over. Each image becomes 8-bit RGB, upright (`pictures.rgb`), is resized so that its shorter
    side is `size` pixels and cropped to its centre. allow_empty: keep classes without images.

    FileNotFoundError without class folders or images, or naming classes without images; ValueError names a
    file that is no image, is cut off, or has no obvious 8-bit RGB copy.
    """
    if not is_whole(size):
        raise ValueError(f"size={size!r}: pixels of a side, a whole number from 1")
    path = Path(path).expanduser()
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not _passed_over(p)) if path.is_dir() else []
    paths = [_images_below(folder) for folder in folders]
    if not any(paths):
        raise FileNotFoundError(f"{path} holds no images: it needs a folder of image files per class")
    empty = [folder.name for folder, inside in zip(folders, paths, strict=True) if not inside]
    if empty and not allow_empty:
        raise FileNotFoundError(
            f"{path} has class folders without images: {', '.join(empty)}; add images "
            f"({', '.join(sorted(pictures.SUFFIXES))}), remove the folders, or pass allow_empty=True"
        )
    pictures.refuse_truncation()
    images = np.stack([_read_image(file, size) for inside in paths for file in inside])
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(inside) for inside in paths])
    return _split(images, labels, path.absolute().name, part, tuple(p.name for p in folders), len(labels))


def _passed_over(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def _images_below(folder: Path) -> list[Path]:
    """The image files in and below `folder`, in order, but for hidden ones and clutter."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in pictures.SUFFIXES
        and file.is_file()
        and not any(_passed_over(folder / part) for part in file.relative_to(folder).parts)
    ]


def _read_image(path: Path, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(pictures.rgb(image), (size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # the formats' readers raise errors of every type
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _split(
    images: np.ndarray,
    labels: np.ndarray,
    dataset: str,
    part: str,
    classes: tuple[str, ...],
    official_size: int,
) -> Split:
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
