"""Images of one's own, a folder for each class, as a `Split`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gkp.data import pictures
from gkp.data.sets import Split, split_of
from gkp.utils.whole import is_whole

# Folders that systems and tools leave among those of the classes, in lower case, besides hidden ones.
CLUTTER = frozenset(
    {"__pycache__", "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin"}
    | {"lost+found", "system volume information"}
)
PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # of data sets


def load_folder(path: str | Path, size: int, *, part: str = "test", allow_empty: bool = False) -> Split:
    """Images in one folder per class (ImageFolder's layout), for use with networks of one's own.

    Classes are the folders of `path` in the order of their names, images all that lie in or below them and
    end in one of `pictures.SUFFIXES`; what begins with a dot and what systems and tools leave (`CLUTTER`)
    is passed over. Each image becomes 8-bit RGB, upright (`pictures.rgb`), is resized so that its shorter
    side is `size` pixels and cropped to its centre. allow_empty: keep classes without images.

    FileNotFoundError without class folders or images, or naming classes without images; ValueError names a
    file that is no image, is cut off, or has no obvious 8-bit RGB copy, and folders that are the parts of a
    data set (`PART_NAMES`). A warning counts the images that are passed over: of other formats, and
    beside the folders of the classes.
    """
    if not is_whole(size):
        raise ValueError(f"size={size!r}: pixels of a side, a whole number from 1")
    path = Path(path).expanduser()
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not _passed_over(p)) if path.is_dir() else []
    every = [_pictures_below(folder) for folder in folders]
    paths = [[file for file in inside if file.suffix.lower() in pictures.SUFFIXES] for inside in every]
    if not any(paths):
        raise FileNotFoundError(f"{path} holds no images: it needs a folder of image files per class")
    if all(folder.name.lower() in PART_NAMES for folder in folders) and not any(
        file.parent == folder for folder, inside in zip(folders, paths, strict=True) for file in inside
    ):
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(
            f"{path} holds the parts of a data set ({names}), not its classes: give {folders[0]}"
        )
    empty = [folder.name for folder, inside in zip(folders, paths, strict=True) if not inside]
    if empty and not allow_empty:
        raise FileNotFoundError(
            f"{path} has class folders without images: {', '.join(empty)}; add images "
            f"({', '.join(sorted(pictures.SUFFIXES))}), remove the folders, or pass allow_empty=True"
        )
    beside = [file for file in path.iterdir() if _is_picture(file) and not _passed_over(file)]
    read = {file for inside in paths for file in inside}
    _warn_of(path, beside + [file for inside in every for file in inside if file not in read])
    pictures.refuse_truncation()
    images = np.stack([_read_image(file, size) for inside in paths for file in inside])
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(inside) for inside in paths])
    return split_of(images, labels, path.absolute().name, part, tuple(p.name for p in folders), len(labels))


def _passed_over(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def _pictures_below(folder: Path) -> list[Path]:
    """The files in and below `folder` that end as images do, in order, but for hidden ones and clutter."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if _is_picture(file) and not any(_passed_over(Path(part)) for part in file.relative_to(folder).parts)
    ]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in pictures.SUFFIXES | pictures.UNREAD and file.is_file()


def _warn_of(path: Path, unread: Iterable[Path]) -> None:
    """Count the images of `path` that are passed over."""
    found = Counter(file.suffix.lower() for file in unread)
    if found:
        counts = ", ".join(f"{number} {suffix}" for suffix, number in sorted(found.items()))
        warnings.warn(
            f"{path}: images passed over, of other formats than {', '.join(sorted(pictures.SUFFIXES))} or "
            f"beside the folders of the classes: {counts}",
            stacklevel=3,
        )


def _read_image(path: Path, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(pictures.rgb(image), (size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # the formats' readers raise errors of every type
        raise ValueError(f"{path} is not a readable image: {error}") from error
