"""gkp.data.cifar: both layouts of the files, what is refused, the cache of decoded images."""

import functools
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cifar_files import CLASSES, encode, images_and_labels, same, write_official, write_parquet
from torchvision.datasets import CIFAR10

from gkp import data
from gkp.data import cifar


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Every test has a cache of its own, and no data but those it wrote."""
    monkeypatch.setenv("GKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GKP_DATA", raising=False)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_official_layout(tmp_path, dataset, part):
    expected = write_official(tmp_path, dataset)
    for root in (tmp_path, tmp_path / cifar.SOURCES[dataset].folder):
        split = data.load(dataset, part, root=root)
        assert same(split, *expected[part])
        assert split.labels.dtype == torch.int64
        assert len(split.classes) == CLASSES[dataset]
        assert split.official_size == {"train": 50_000, "test": 10_000}[part]


def test_official_layout_reads_what_torchvision_reads(tmp_path, monkeypatch):
    write_official(tmp_path, "cifar10")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda _: None)
    for part in ("train", "test"):
        reference = CIFAR10(tmp_path, train=part == "train")
        assert same(data.load("cifar10", part, root=tmp_path), reference.data, reference.targets)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    ("dataset", "below", "column"),
    [
        ("cifar10", "cifar10/plain_text", "label"),
        ("cifar10", "plain_text", "label"),
        ("cifar10", "", "label"),
        ("cifar100", "cifar100/cifar100", "fine_label"),
        ("cifar100", "", "fine_label"),
    ],
)
def test_parquet_layout(tmp_path, monkeypatch, dataset, below, column, kind):
    images, labels = images_and_labels(7, CLASSES[dataset])
    write_parquet(tmp_path / below, images, labels, columns=("img", column), shards=3, kind=kind)
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    assert same(data.load(dataset, "test"), images, labels)


def test_decoded_images_are_cached_checked_and_renewed(tmp_path, monkeypatch):
    images, labels = images_and_labels(5, 10)
    write_parquet(tmp_path, images, labels)
    load = functools.partial(data.load, "cifar10", "test", root=tmp_path)
    decode, count = cifar._decode, []
    monkeypatch.setattr(cifar, "_decode", lambda item: count.append(1) or decode(item))
    assert same(load(), images, labels)
    assert same(load(), images, labels)
    assert len(count) == 5  # the second time came from the cache
    (cached,) = (tmp_path / "cache" / "decoded").iterdir()
    whole = cached.read_bytes()
    # cut off, changed in the middle of the pixels, and something else altogether
    for damaged in (whole[:-50], whole[:2000] + b"\0\1\2" + whole[2003:], b"hello"):
        cached.write_bytes(damaged)
        assert same(load(), images, labels)
    assert len(count) == 20
    write_parquet(tmp_path, images[::-1], labels)
    assert same(load(), images[::-1], labels)  # other content, other key


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GKP_CACHE", str(tmp_path / "file" / "cache"))
    images, labels = images_and_labels(3, 10)
    write_parquet(tmp_path, images, labels)
    assert same(data.load("cifar10", "test", root=tmp_path), images, labels)


def test_bad_parquet_files_are_named(tmp_path):
    images, labels = images_and_labels(4, 10)
    path = tmp_path / "test-00000-of-00001.parquet"

    def refused(match):
        with pytest.raises(ValueError, match=match) as error:
            data.load("cifar10", "test", root=tmp_path)
        assert str(path) in str(error.value)

    path.write_text("not parquet at all\n")
    refused("not a readable parquet file")
    write_parquet(tmp_path, images, labels)
    path.write_bytes(path.read_bytes()[:-100])
    refused("not a readable parquet file")
    write_parquet(tmp_path, images, labels, columns=("picture", "label"))
    refused("has columns picture, label, more; cifar10 has img and label")
    write_parquet(tmp_path, images, labels + 10)
    refused("labels outside 0 ... 9")
    write_parquet(tmp_path, images[:, :31], labels)
    refused("image 0 is not a readable 32x32 image")
    pq.write_table(pa.table({"img": [{"bytes": b"junk"}], "label": [1]}), path)
    refused("image 0 is not a readable 32x32 image")
    pq.write_table(pa.table({"img": ["text"], "label": ["cat"]}), path)
    refused("label")


def test_a_missing_shard_is_reported(tmp_path):
    write_parquet(tmp_path, *images_and_labels(6, 10), shards=3)
    (tmp_path / "test-00001-of-00003.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3 files"):
        data.load("cifar10", "test", root=tmp_path)


def test_bad_official_files_are_named(tmp_path):
    write_official(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    good = path.read_bytes()
    rows = np.zeros((2, 3072), np.uint8)
    for bad in (
        good[:-10],
        pickle.dumps({"data": rows, "labels": [1]}, 2),
        pickle.dumps({"data": rows, "labels": [1, 10]}, 2),
        pickle.dumps({"data": rows[:, 1:], "labels": [1, 2]}, 2),
        pickle.dumps({"labels": [1, 2]}, 2),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="data_batch_3"):
            data.load("cifar10", "train", root=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing"):
        data.load("cifar10", "train", root=tmp_path)


def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set GKP_DATA .* download=True"):
        data.load("cifar10", "test")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load("cifar100", "test", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="choose one of digits, cifar10, cifar100"):
        data.load("mnist", "test")
    with pytest.raises(ValueError, match="choose one of train, test"):
        data.load("digits", "validation")


def test_sixteen_bit_images_in_parquet_are_those_of_8_bits(tmp_path):
    images, labels = images_and_labels(3, 10)
    grey = images[..., 0]
    table = {"img": [{"bytes": encode(g.astype(np.uint16) * 257)} for g in grey], "label": labels}
    pq.write_table(pa.table(table), tmp_path / "test-00000-of-00001.parquet")
    assert same(data.load("cifar10", "test", root=tmp_path), np.stack([grey] * 3, 3), labels)
