"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from disk, in two layouts, or from the publisher.

Arrays here are as published: images uint8 (N, 32, 32, 3), labels int64 (N,), in the files' order.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock

from gkp.data import pictures
from gkp.utils import files, unpickle

PARTS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and what its publisher says it holds."""

    name: str
    url: str
    sha256: str
    folder: str  # of the official layout
    batches: dict[str, tuple[str, ...]]  # part -> file names in `folder`
    label_key: str
    parquet_folders: tuple[str, ...]  # where the parquet layout may lie below a root
    label_column: str
    classes: tuple[str, ...]
    sizes: dict[str, int]


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_SIZES = {"train": 50_000, "test": 10_000}
_HOST = "https://www.cs.toronto.edu/~kriz/"
SOURCES = {
    "cifar10": Source(
        "cifar10", _HOST + "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}, "labels",
        ("cifar10/plain_text", "cifar10", "plain_text", ""), "label",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), _SIZES,
    ),
    "cifar100": Source(
        "cifar100", _HOST + "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)}, "fine_labels",
        ("cifar100/cifar100", "cifar100", ""), "fine_label",
        tuple(_CIFAR100.split()), _SIZES,
    ),
}  # fmt: skip


def read(
    source: Source, part: str, roots: Sequence[str | Path], *, download: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of `part` from the first of `roots` that has them, in either layout.

    download: when none has, fetch the official archive into the last root. FileNotFoundError says how
    to get the data; ValueError names a file that is damaged or of the wrong kind.
    """
    places = [Path(root) for root in roots]
    for root in places:
        for folder in (root / source.folder, root):
            if (folder / source.batches[part][0]).is_file():
                return _read_official(source, part, folder)
        for below in source.parquet_folders:
            shards = sorted((root / below).glob(f"{part}-*.parquet"))
            if shards:
                return _read_parquet(source, shards)
    if not download:
        looked = " or ".join(str(root) for root in places)
        raise FileNotFoundError(
            f"no {source.name} {part} images in {looked}: set GKP_DATA to the folder that holds "
            f"{source.folder}/ or {source.parquet_folders[0]}/*.parquet, or pass download=True (--download)"
        )
    fetch(source, places[-1])
    return _read_official(source, part, places[-1] / source.folder)


def fetch(source: Source, root: str | Path) -> None:
    """Download the official archive, check its SHA-256 and unpack it into `root`, once for all processes.

    ValueError when the archive holds anything but plain files of its one folder, or lacks one of the batches.
    """
    root = Path(root)
    lock = files.cache_folder() / "locks" / f"{files.sha256_bytes(str(root.resolve()).encode())[:16]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if not all((root / source.folder / name).is_file() for name in _names(source)):
            _fetch(source, root)


def _names(source: Source) -> list[str]:
    return [name for names in source.batches.values() for name in names]


def _fetch(source: Source, root: Path) -> None:
    hint = f"without a network, set GKP_DATA to a folder that holds {source.folder}/"
    archive = files.download(source.url, root, source.sha256, hint=hint)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        unpacked = Path(temporary) / source.folder
        unpacked.mkdir()
        _unpack(archive, unpacked)
        for name in _names(source):
            if not (unpacked / name).is_file():
                raise ValueError(f"{archive} lacks {source.folder}/{name}: delete it and download it again")
        # What is left of an earlier, interrupted unpacking would be in the way of the rename.
        shutil.rmtree(root / source.folder, ignore_errors=True)
        os.replace(unpacked, root / source.folder)
    archive.unlink()


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files of `archive`, which all lie in its one folder of this name, into `folder`.

    Their content is read and written here: `extractall` has its safe filter from Python 3.11.4 on only.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if member.isdir() and parts == (folder.name,):
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or len(parts) != 2 or parts[0] != folder.name or not _plain(parts[1]):
                    raise ValueError(
                        f"{archive} holds {member.name!r}, which is no plain file of {folder.name}/"
                    )
                with open(folder / parts[1], "wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is not a readable archive: {error}") from error


def _plain(name: str) -> bool:
    """Whether it names a file in a folder and nothing elsewhere, on any system."""
    return name != ".." and not set(name) & set("/\\:\0")


def _read_official(source: Source, part: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in source.batches[part]:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: unpack the whole archive from {source.url}")
        batch = unpickle.read_arrays(path)
        data, batch_labels = batch.get("data"), batch.get(source.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise ValueError(f"{path} holds no uint8 array `data` of shape (N, 3072)")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(_checked_labels(source, path, batch_labels, len(data)))
    return np.concatenate(images), np.concatenate(labels)


def _checked_labels(source: Source, path: Path, values: object, count: int) -> np.ndarray:
    """`values` as int64 (count,), or ValueError naming the file."""
    labels = np.asarray(values)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path} does not hold one whole-number label for each of its {count} images")
    if count and not 0 <= labels.min() <= labels.max() < len(source.classes):
        raise ValueError(f"{path} has labels outside 0 ... {len(source.classes) - 1}")
    return labels.astype(np.int64)


def _read_parquet(source: Source, shards: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Decode the shards, or take the arrays that an earlier call decoded from the same content."""
    _check_complete(shards)
    key = hashlib.sha256("".join(files.sha256_file(path) for path in shards).encode()).hexdigest()
    cached = files.cache_folder() / "decoded" / f"{source.name}-{key[:32]}.npz"
    arrays = _read_cache(cached)
    if arrays is None:
        decoded = [_read_shard(source, path) for path in shards]
        arrays = np.concatenate([p[0] for p in decoded]), np.concatenate([p[1] for p in decoded])
        _write_cache(cached, *arrays)
    return arrays


def _check_complete(shards: list[Path]) -> None:
    # train-00000-of-00006.parquet announces how many shards there are
    count = shards[0].stem.rpartition("-of-")[2]
    if count.isdigit() and int(count) != len(shards):
        held = f"{shards[0].parent} holds {len(shards)} of {int(count)} files"
        raise FileNotFoundError(f"{held} like {shards[0].name}: copy the others there too")


def _read_shard(source: Source, path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_schema(path).names
        if "img" not in columns or source.label_column not in columns:
            raise ValueError(
                f"{path} has columns {', '.join(columns)}; {source.name} has img and {source.label_column}"
            )
        table = pyarrow.parquet.read_table(path, columns=["img", source.label_column])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    pictures.refuse_truncation()
    encoded = [image["bytes"] if isinstance(image, dict) else None for image in table["img"].to_pylist()]
    labels = _checked_labels(source, path, table[source.label_column].to_pylist(), len(encoded))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding Python's lock
        decoded = list(pool.map(_decode, encoded))
    images = np.empty((len(decoded), 32, 32, 3), np.uint8)
    for index, image in enumerate(decoded):
        if image is None or image.shape != (32, 32, 3):
            raise ValueError(f"{path}: image {index} is not a readable 32x32 image")
        images[index] = image
    return images, labels


def _decode(data: bytes | None) -> np.ndarray | None:
    """uint8 (H, W, 3), or None for what is no image or has no 8-bit RGB copy, see `pictures.rgb`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            return np.asarray(pictures.rgb(image))
    except (OSError, ValueError, SyntaxError):
        return None


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the images' bytes in C order, then the int64 labels'."""
    sha = hashlib.sha256(np.ascontiguousarray(images).data)
    sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached arrays, or None when there are none or they are not what was written."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
            return (images, labels) if digest(images, labels) == str(archive["digest"]) else None
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels, digest=np.array(digest(images, labels)))
    try:
        files.atomic_write_bytes(path, buffer.getvalue())
    except OSError:
        return  # a cache that cannot be written costs time, nothing else
