"""Fetching CIFAR: one download, a checked archive, and nothing written but its plain files."""

import dataclasses
import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from cifar_files import same, write_official

from gkp import data
from gkp.data import cifar
from gkp.utils import files


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Every test has a cache of its own, and no data but those it wrote."""
    monkeypatch.setenv("GKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GKP_DATA", raising=False)


@pytest.fixture
def published(tmp_path, monkeypatch, serve):
    """A small archive in the place of CIFAR-10's, on a local server; its path and what it holds."""
    expected = write_official(tmp_path / "upstream", "cifar10")
    archive = tmp_path / "upstream" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "upstream" / "cifar-10-batches-py", "cifar-10-batches-py")
    source = cifar.SOURCES["cifar10"]
    url = f"{serve(tmp_path / 'upstream')}/{archive.name}"
    small = dataclasses.replace(source, url=url, sha256=files.sha256_file(archive))
    monkeypatch.setitem(cifar.SOURCES, "cifar10", small)
    return archive, expected


def test_download_once_then_offline(tmp_path, published, capfd):
    archive, expected = published
    assert same(data.load("cifar10", "test", download=True), *expected["test"])
    output = capfd.readouterr()
    assert output.err == ""  # a notebook would show it as a change
    archive.unlink()
    assert same(data.load("cifar10", "train"), *expected["train"])
    assert [p.name for p in (tmp_path / "cache" / "data").iterdir()] == ["cifar-10-batches-py"]


def test_a_damaged_download_is_refused_and_leaves_nothing(tmp_path, published):
    archive, _ = published
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz"):
        data.load("cifar10", "test", root=tmp_path / "here", download=True)
    assert list((tmp_path / "here").iterdir()) == []


def test_no_network_is_one_clear_sentence(tmp_path, published):
    archive, _ = published
    archive.unlink()
    with pytest.raises(files.DownloadError, match=r"cannot download .* \(HTTP 404\): .*GKP_DATA"):
        data.load("cifar10", "test", root=tmp_path / "here", download=True)


HOSTILE = {
    "outside": lambda: member("../../escaped.py"),
    "outside from within": lambda: member("cifar-10-batches-py/../../escaped.py"),
    "above": lambda: member("cifar-10-batches-py/.."),
    "absolute": lambda: member("/tmp/escaped.py"),
    "another folder": lambda: member("cifar-100-python/train"),
    "deeper": lambda: member("cifar-10-batches-py/more/test_batch"),
    "no folder": lambda: member("test_batch"),
    "backslash": lambda: member("cifar-10-batches-py/..\\escaped.py"),
    "drive": lambda: member("cifar-10-batches-py/C:escaped.py"),
    "symbolic link": lambda: member("cifar-10-batches-py/test_batch", tarfile.SYMTYPE, "../escaped.py"),
    "hard link": lambda: member("cifar-10-batches-py/test_batch", tarfile.LNKTYPE, "../escaped.py"),
    "link to a folder": lambda: member("cifar-10-batches-py", tarfile.SYMTYPE, "/"),
    "device": lambda: member("cifar-10-batches-py/test_batch", tarfile.CHRTYPE),
    "pipe": lambda: member("cifar-10-batches-py/test_batch", tarfile.FIFOTYPE),
}


def member(name, kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def republish(monkeypatch, archive, change):
    """The archive of `published` with its members changed, under its new hash."""
    with tarfile.open(archive) as tar:
        held = [(entry, tar.extractfile(entry).read() if entry.isreg() else b"") for entry in tar]
    with tarfile.open(archive, "w:gz") as tar:
        for entry, content in change(held):
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    source = dataclasses.replace(cifar.SOURCES["cifar10"], sha256=files.sha256_file(archive))
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("first", [True, False])
def test_an_archive_writes_plain_files_of_its_folder_and_nothing_else(
    tmp_path, published, monkeypatch, kind, first
):
    extra = [(HOSTILE[kind](), b"")]
    republish(monkeypatch, published[0], lambda held: extra + held if first else held + extra)
    root = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="which is no plain file of cifar-10-batches-py/"):
        data.load("cifar10", "test", root=root, download=True)
    assert not list(tmp_path.rglob("escaped*"))
    assert [path.name for path in root.iterdir()] == [published[0].name]


def test_an_archive_without_a_batch_is_named(tmp_path, published, monkeypatch):
    republish(monkeypatch, published[0], lambda held: [h for h in held if "data_batch_3" not in h[0].name])
    with pytest.raises(ValueError, match="lacks cifar-10-batches-py/data_batch_3"):
        data.load("cifar10", "test", root=tmp_path / "here", download=True)
    assert not (tmp_path / "here" / "cifar-10-batches-py").exists()


def test_what_is_no_archive_is_named(tmp_path, published, monkeypatch):
    archive, _ = published
    for content in (b"hello", archive.read_bytes()[:-200]):
        archive.write_bytes(content)
        source = dataclasses.replace(cifar.SOURCES["cifar10"], sha256=files.sha256_file(archive))
        monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
        with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is not a readable archive"):
            data.load("cifar10", "test", root=tmp_path / f"here{len(content)}", download=True)


@pytest.mark.parametrize("as_type", [str, Path])
def test_unpacking_needs_no_filter_of_newer_pythons(tmp_path, published, monkeypatch, as_type):
    """Python 3.11.0 to 3.11.3 have no `filter`; the name of a root may be a string everywhere."""

    def without_filter(self, path=".", members=None, *, numeric_owner=False):
        raise AssertionError("not needed")

    monkeypatch.setattr(tarfile.TarFile, "extractall", without_filter)
    root = as_type(tmp_path / "here")
    cifar.fetch(cifar.SOURCES["cifar10"], root)
    for part in cifar.PARTS:
        images, labels = cifar.read(cifar.SOURCES["cifar10"], part, [root], download=False)
        assert np.array_equal(images, published[1][part][0])
        assert np.array_equal(labels, published[1][part][1])
        assert same(data.load("cifar10", part, root=root), *published[1][part])


def test_two_that_download_at_once_unpack_once(tmp_path, published, monkeypatch):
    archive, expected = published
    unpack, others, seen = cifar._unpack, [], []

    def load() -> None:
        seen.append(data.load("cifar10", "test", download=True))

    def unpacked_while_another_asks(*places: Path) -> None:
        if not others:
            others.append(threading.Thread(target=load))
            others[0].start()
            others[0].join(0.5)
            assert others[0].is_alive()
        else:
            seen.append("unpacked again")
        unpack(*places)

    monkeypatch.setattr(cifar, "_unpack", unpacked_while_another_asks)
    load()
    others[0].join()
    assert len(seen) == 2
    assert all(same(split, *expected["test"]) for split in seen)
