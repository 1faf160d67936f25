"""Unpacking: nothing damaged, nothing outside the store, nothing less than what is there."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from record_factory import make_record

from gkp.files import sha256_bytes
from gkp.pack import CONTENTS, FORMAT, archive
from gkp.records import Record, Store
from gkp.run_state import save_state
from gkp.unpack import PackError, read_archive, unpack

STATE = "work/state/0123456789abcdef.pt"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def pack_of(tmp_path: Path) -> Callable[..., Path]:
    def write(files: dict[str, bytes]) -> Path:
        path = tmp_path / f"pack-{len(list(tmp_path.glob('*.tar'))):02d}.tar"
        path.write_bytes(archive(files))
        return path

    return write


def as_bytes(record: Record) -> bytes:
    return json.dumps(record).encode()


def state(tmp_path: Path, epochs: int) -> bytes:
    save_state(tmp_path / "state.pt", {}, {"epochs": [{}] * epochs, "model": torch.zeros(2)})
    return (tmp_path / "state.pt").read_bytes()


def record_files(weights: bytes = b"weights") -> tuple[dict[str, bytes], Record]:
    """{path: content} of a record and its weights, and the record."""
    record = make_record()
    file = f"checkpoints/small/{record['stem']}.safetensors"
    record["checkpoints"]["last"] |= {"file": file, "sha256": sha256_bytes(weights)}
    return {f"results/small/{record['stem']}.json": as_bytes(record), file: weights}, record


def test_records_weights_and_states_come_back_and_the_manifest_knows(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    files, record = record_files()
    pack_of(files | {STATE: state(tmp_path, 3)})
    done = unpack([tmp_path], store)
    assert sorted(done.written) == sorted([*files, STATE])
    assert store.all() == [record]
    (name,) = store.manifest()
    assert (store.checkpoints / name).read_bytes() == b"weights"
    again = unpack([tmp_path], store)
    assert not again.written
    assert set(again.kept) == {*files, STATE}


def test_a_record_and_its_weights_may_come_in_two_archives(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    files, _ = record_files()
    (record, data), (weights, content) = files.items()
    first, second = pack_of({record: data}), pack_of({weights: content})
    assert unpack([first], store).kept == {
        record: f"its weights, {weights}, are neither here nor in these archives"
    }
    assert unpack([second], store).kept.keys() == {weights}
    assert not store.all()
    assert sorted(unpack([first, second], store).written) == sorted(files)


def test_a_record_is_replaced_only_by_one_that_says_more(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    files, record = record_files()
    name = next(iter(files))
    more = json.loads(as_bytes(record))
    more["checkpoints"]["last"]["metrics"]["fgsm"] = record["checkpoints"]["last"]["metrics"]["benign"]
    other, _ = record_files(b"other weights")
    small, large, different = pack_of(files), pack_of(files | {name: as_bytes(more)}), pack_of(other)
    unpack([large], store)
    for lesser in (small, different):
        assert unpack([lesser], store).kept[name] == "the record here says as much"
        assert store.all() == [more]
        assert (store.root / list(files)[1]).read_bytes() == b"weights"
    (store.root / name).write_bytes(as_bytes(record))
    assert name in unpack([large], store).written
    assert store.all() == [more]


def test_a_state_is_replaced_only_by_one_of_more_epochs(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    three, four = state(tmp_path, 3), state(tmp_path, 4)
    unpack([pack_of({STATE: three})], store)
    assert unpack([pack_of({STATE: four})], store).written == [STATE]
    assert "4 epochs" not in unpack([pack_of({STATE: three})], store).text()
    assert (store.root / STATE).read_bytes() == four


def test_a_run_with_a_record_needs_no_state(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    files, record = record_files()
    name = f"work/state/{record['hash']}.pt"
    done = unpack([pack_of(files | {name: state(tmp_path, 3)})], store)
    assert done.kept == {name: "its run has a record"}


def test_snapshots_come_back_once_and_not_for_a_run_that_is_done(
    store: Store, pack_of: Callable[..., Path]
) -> None:
    name = "work/snapshots/0123456789abcdef/epoch-035.safetensors"
    assert unpack([pack_of({name: b"first"})], store).written == [name]
    assert unpack([pack_of({name: b"second"})], store).kept == {name: "it is here already"}
    assert (store.root / name).read_bytes() == b"first"
    record = make_record()
    store.write(record)
    of_done = f"work/snapshots/{record['hash']}/epoch-035.safetensors"
    assert unpack([pack_of({of_done: b"first"})], store).kept == {of_done: "its run has a record"}
    store.write(record | {"pruned": False})
    assert unpack([pack_of({of_done: b"first"})], store).written == [of_done]


# ---- refusals ------------------------------------------------------------------------------------


def test_one_wrong_byte_anywhere_in_a_member_is_found(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path]
) -> None:
    good, bad = pack_of({STATE: state(tmp_path, 1)}), pack_of({STATE.replace("0", "1"): state(tmp_path, 2)})
    data = bytearray(bad.read_bytes())
    data[data.index(b"PK")] ^= 1  # the first byte of the state
    bad.write_bytes(data)
    with pytest.raises(PackError, match=r"pack-01\.tar is damaged: .*SHA-256"):
        unpack([good, bad], store)
    assert not store.root.exists()


@pytest.mark.parametrize("length", [0, 100, 600, 2000])
def test_a_cut_archive_is_refused(
    store: Store, tmp_path: Path, pack_of: Callable[..., Path], length: int
) -> None:
    path = pack_of({STATE: state(tmp_path, 1)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PackError, match=r"pack-00\.tar"):
        unpack([path], store)
    assert not store.root.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "/etc/passwd",
        "results/../../outside.json",
        "results/small/../../../outside.json",
        "results/small/.hidden.json",
        "results/small/deeper/record.json",
        "checkpoints/manifest.json",
        "checkpoints/small/code.py",
        "gkp/cli.py",
        "work/state/0123.pt",
        "work/snapshots/0123456789abcdef/../state.safetensors",
        "work/state/0123456789abcdef.pt\n",
    ],
)
def test_a_path_that_no_store_has_is_refused(store: Store, pack_of: Callable[..., Path], name: str) -> None:
    with pytest.raises(PackError, match="is no record, weights or training state"):
        unpack([pack_of({name: b"{}"})], store)
    assert not store.root.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused(store: Store, tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "pack-00.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(STATE)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(PackError, match="not a plain file"):
        unpack([path], store)


def hand_made(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def contents(files: dict[str, bytes], version: int = FORMAT) -> bytes:
    listed = {name: {"sha256": sha256_bytes(data)} for name, data in files.items()}
    return json.dumps({"format": version, "files": listed}).encode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(STATE, b"x")], "no readable contents.json"),
        ([(CONTENTS, b"[]"), (STATE, b"x")], "no readable contents.json"),
        ([(CONTENTS, contents({}, 99))], "another version"),
        ([(CONTENTS, contents({})), (STATE, b"x")], "not what it lists"),
        ([(CONTENTS, contents({STATE: b"x"}))], "not what it lists"),
        ([(CONTENTS, contents({STATE: b"x"})), (STATE, b"x"), (STATE, b"y")], "a path twice"),
    ],
)
def test_an_archive_that_does_not_keep_the_format_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(PackError, match=message):
        read_archive(hand_made(tmp_path / "pack-00.tar", members))


def test_a_record_that_is_not_what_its_path_says_is_refused(
    store: Store, pack_of: Callable[..., Path]
) -> None:
    record = make_record()
    with pytest.raises(PackError, match="holds small/"):
        unpack([pack_of({f"results/other/{record['stem']}.json": as_bytes(record)})], store)
    record["checkpoints"]["last"]["file"] = "checkpoints/../../outside.safetensors"
    with pytest.raises(PackError, match="outside of checkpoints/"):
        unpack([pack_of({f"results/small/{record['stem']}.json": as_bytes(record)})], store)


def test_a_state_that_is_none_is_refused(store: Store, pack_of: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="not a training state"):
        unpack([pack_of({STATE: b"cos\nsystem\n"})], store)
    assert not store.root.exists()


def test_an_empty_place_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pack-00\.tar"):
        unpack([tmp_path], store)
