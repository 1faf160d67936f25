"""Archives: what goes into them, how large they get, and what is left out."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_factory import make_record

from gkp import pack
from gkp.files import sha256_bytes
from gkp.records import Store
from gkp.unpack import read_archive

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, name: str, size: int) -> None:
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def put_record(store: Store, size: int) -> tuple[str, str]:
    """A record and its weights; the names of both."""
    record = make_record()
    weights = f"checkpoints/small/{record['stem']}.safetensors"
    put(store, weights, size)
    digest = sha256_bytes((store.root / weights).read_bytes())
    record["checkpoints"]["last"] |= {"file": weights, "sha256": digest}
    return store.write(record).relative_to(store.root).as_posix(), weights


def state(letter: str, part: str = "") -> str:
    return f"work/state/{letter * 16}{part}.pt"


def test_only_what_is_new_or_changed_is_packed(store: Store, tmp_path: Path) -> None:
    put(store, state("a"), 10)
    put(store, state("b"), 10)
    before = pack.stamps(store.root)
    put(store, state("b"), 10)  # the same size
    put(store, state("c"), 10)
    packed = pack.pack(store, tmp_path / "out", before)
    assert packed.files == [state("b"), state("c")]
    assert pack.pack(store, tmp_path / "none", pack.stamps(store.root)).archives == []


def test_an_archive_lists_itself_for_anybody_with_tar(store: Store, tmp_path: Path) -> None:
    record, weights = put_record(store, 1000)
    put(store, state("a"), 700)
    (path,) = pack.pack(store, tmp_path / "out", {}).archives
    with tarfile.open(path) as tar:
        names = tar.getnames()
        listed = json.load(tar.extractfile("contents.json"))["files"]
    assert names == ["contents.json", record, weights, state("a")]
    for name, entry in listed.items():
        data = (store.root / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": sha256_bytes(data)}


def test_records_go_before_states_and_states_by_value(store: Store, tmp_path: Path) -> None:
    for letter in "abc":
        put(store, state(letter), 6 * MIB)
    record, weights = put_record(store, 6 * MIB)
    packed = pack.pack(store, tmp_path / "out", {}, ["c" * 16, "a" * 16], limit_files=1)
    assert packed.files == [record, weights, state("c")]
    assert packed.left_out == [state("a"), state("b")]
    assert "did not fit" in packed.text()
    assert state("a") in packed.text()


def test_what_belongs_together_stands_in_one_archive(store: Store, tmp_path: Path) -> None:
    put(store, state("a"), 10 * MIB)
    put(store, state("b"), 4 * MIB)
    put(store, state("b", "-pruning"), 4 * MIB)
    snapshot = f"work/snapshots/{'b' * 16}/epoch-035.safetensors"
    put(store, snapshot, 4 * MIB)
    first, second = pack.pack(store, tmp_path / "out", {}, ["a" * 16]).archives
    assert set(read_archive(first)) == {state("a")}
    assert set(read_archive(second)) == {state("b"), state("b", "-pruning"), snapshot}


def test_what_is_too_large_for_one_archive_is_spread_and_the_rest_said(store: Store, tmp_path: Path) -> None:
    put(store, state("a"), 12 * MIB)
    put(store, state("a", "-pruning"), 12 * MIB)
    put(store, state("b"), 17 * MIB)
    put(store, state("b", "-pruning"), 1)
    packed = pack.pack(store, tmp_path / "out", {})
    assert len(packed.archives) == 2
    assert packed.left_out == [state("b", "-pruning"), state("b")]  # neither without the other


def test_packing_again_replaces_what_was_packed(store: Store, tmp_path: Path) -> None:
    for letter in "abc":
        put(store, state(letter), 10 * MIB)
    assert len(pack.pack(store, tmp_path / "out", {}).archives) == 3
    for letter in "bc":
        (store.root / state(letter)).unlink()
    assert len(pack.pack(store, tmp_path / "out", {}).archives) == 1
    assert len(list((tmp_path / "out").iterdir())) == 1


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30))
def test_the_estimate_of_an_archive_is_never_too_small(sizes: list[int]) -> None:
    box = {f"results/suite/{'x' * (n % 60)}-{n}.json": bytes(size) for n, size in enumerate(sizes)}
    assert len(pack.archive(box)) <= pack._size(box)


@given(st.lists(st.integers(1, 90_000), min_size=1, max_size=12), st.integers(1, 4))
def test_limits_are_kept(sizes: list[int], limit_files: int) -> None:
    boxes: list[dict[str, bytes]] = []
    for number, size in enumerate(sizes):
        name = f"work/state/{number:016x}.pt"
        filled = pack._placed(boxes, [{name: bytes(size)}], 100_000, limit_files)
        boxes = boxes if filled is None else filled
    assert len(boxes) <= limit_files
    assert all(len(pack.archive(box)) <= 100_000 for box in boxes)


def test_the_same_files_give_the_same_bytes() -> None:
    box = {"work/state/0123456789abcdef.pt": b"state"}
    assert pack.archive(box) == pack.archive(dict(box))
    with tarfile.open(fileobj=io.BytesIO(pack.archive(box))) as tar:
        assert tar.getmembers()[0].mtime == 0
