"""CIFAR's files in both layouts, of few random images, and what a reader should see in them."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gkp.data import cifar

CLASSES = {"cifar10": 10, "cifar100": 100}


def images_and_labels(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count)


def write_official(root, dataset, count=20):
    """torchvision's layout; returns what a reader should see, by part."""
    source, expected = cifar.SOURCES[dataset], {}
    (root / source.folder).mkdir(parents=True)
    for part, names in source.batches.items():
        batches = [images_and_labels(count, CLASSES[dataset], seed) for seed, _ in enumerate(names)]
        for name, (images, labels) in zip(names, batches, strict=True):
            rows = images.transpose(0, 3, 1, 2).reshape(count, 3072)
            content = {"data": rows, source.label_key: labels.tolist()}
            (root / source.folder / name).write_bytes(pickle.dumps(content, 2))
        expected[part] = tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return expected


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(folder, images, labels, *, part="test", columns=("img", "label"), shards=1, kind="PNG"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.array_split(np.arange(len(images)), shards)
    for shard, index in enumerate(rows):
        img = [{"bytes": encode(images[i], kind), "path": f"{i}.png"} for i in index]
        table = pa.table({columns[0]: img, columns[1]: labels[index], "more": labels[index]})
        pq.write_table(table, folder / f"{part}-{shard:05d}-of-{shards:05d}.parquet")


def same(split, images, labels):
    """The split holds exactly these images (N, H, W, C) and labels."""
    return np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), images) and np.array_equal(
        split.labels.numpy(), labels
    )
