"""Putting archives of `gkp.pack` back into a store: all are checked before anything is written."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gkp.files import atomic_write_bytes, sha256_bytes, sha256_file
from gkp.pack import CONTENTS, FORMAT, archives_in
from gkp.records import Record, Store
from gkp.run_state import epochs_done

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
RECORD = re.compile(rf"results/{PART}/{PART}\.json")
WEIGHTS = re.compile(rf"checkpoints/{PART}/{PART}\.safetensors")
STATE = re.compile(r"work/state/([0-9a-f]{16})(-[a-z]+)?\.pt")
SNAPSHOT = re.compile(r"work/snapshots/([0-9a-f]{16})/epoch-\d{3,}\.safetensors")
LARGEST = 2**30  # bytes of an archive that is still read into memory


class PackError(ValueError):
    """An archive that is damaged, or not one of `gkp.pack`; nothing was written."""


@dataclass
class Unpacked:
    """Paths that were written, and why others were not."""

    written: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        lines = [f"wrote {name}" for name in self.written]
        return "\n".join([*lines, *(f"left out {name}: {reason}" for name, reason in self.kept.items())])


def unpack(places: Iterable[str | Path], store: Store) -> Unpacked:
    """Put the archives in these folders (or these archives) into `store` and update its manifest.

    A record is written when none is there, or when it has all attacks of the one there and more; weights
    go with their record; a training state when its run has no record and no state of as many epochs; a
    snapshot when it is not there and still serves a run.
    PackError names an archive that is damaged or holds a path of no store; FileNotFoundError an empty place.
    """
    archives = [(path, read_archive(path)) for place in places for path in _archives(Path(place))]
    records, weights, states, snapshots = {}, {}, {}, {}
    for path, files in archives:
        for name, data in files.items():
            if RECORD.fullmatch(name):
                records[path, name] = _record(name, data, path, store)
            elif WEIGHTS.fullmatch(name):
                weights[name, sha256_bytes(data)] = data
            elif SNAPSHOT.fullmatch(name):
                snapshots[name] = data
            else:
                states[path, name] = data, epochs_done(data, f"{path}: {name}")
    done = Unpacked()
    for (_, name), record in records.items():
        _take_record(name, record, weights, store, done)
    for (_, name), (data, epochs) in states.items():
        _take_state(name, data, epochs, store, done)
    for name, data in snapshots.items():
        _take_snapshot(name, data, store, done)
    for name, _ in weights:
        if name not in done.written:
            done.kept[name] = "its record is in none of these archives, or was left out"
    store.update_manifest()
    return done


def read_archive(path: Path) -> dict[str, bytes]:
    """{path below a store's root: content} of an archive, checked against its own list."""
    if path.stat().st_size > LARGEST:
        raise PackError(f"{path} is larger than any archive of `gkp fill`")
    try:
        with tarfile.open(path, "r:") as tar:
            found = []
            for member in tar.getmembers():
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise PackError(f"{path}: {member.name!r} is not a plain file")
                found.append((member.name, content.read()))
    except (tarfile.TarError, OSError) as error:
        raise PackError(f"{path} is damaged: {error}; fetch it again") from error
    files = dict(found)
    if len(files) != len(found):
        raise PackError(f"{path} holds a path twice")
    listed = _contents(path, files.pop(CONTENTS, b""))
    for name in files:
        if not any(pattern.fullmatch(name) for pattern in (RECORD, WEIGHTS, STATE, SNAPSHOT)):
            raise PackError(
                f"{path}: {name!r} is no record, weights or training state of a store: leave it out"
            )
    if set(files) != set(listed):
        raise PackError(f"{path} is damaged: what it holds is not what it lists; fetch it again")
    for name, data in files.items():
        if sha256_bytes(data) != listed[name]:
            raise PackError(f"{path} is damaged: {name} has another SHA-256 than listed; fetch it again")
    return files


def _contents(path: Path, data: bytes) -> dict[str, str]:
    """{path: SHA-256} of the list that an archive begins with."""
    try:
        contents = json.loads(data)
        if contents["format"] != FORMAT:
            raise PackError(f"{path} was written by another version of gkp")
        return {name: entry["sha256"] for name, entry in contents["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PackError):
            raise
        raise PackError(f"{path} has no readable {CONTENTS}: it is no archive of `gkp fill`") from error


def _archives(place: Path) -> list[Path]:
    found = [place] if place.is_file() else archives_in(place)
    if not found:
        raise FileNotFoundError(f"no pack-00.tar, pack-01.tar, ... in {place}: give the folder of `gkp fill`")
    return found


def _record(name: str, data: bytes, archive: Path, store: Store) -> Record:
    record = store.parse(data, Path(name))
    if name != f"results/{record['suite']}/{record['stem']}.json":
        raise PackError(f"{archive}: {name} holds {record['suite']}/{record['stem']}")
    wrong = [file for file in _weights(record) if not WEIGHTS.fullmatch(file)]
    if wrong:
        raise PackError(f"{archive}: {name} has its weights in {wrong[0]!r}, outside of checkpoints/")
    return record


def _weights(record: Record) -> dict[str, str]:
    """{file: SHA-256} of the weights that a record names."""
    kept = record.get("checkpoints", {}).values()
    return {each["file"]: each["sha256"] for each in kept if each["file"]}


def _existing(run_hash: str, store: Store) -> Record | None:
    """The record of that hash in whatever suite."""
    paths = sorted(store.results.glob(f"*/*-{run_hash[:8]}.json"))
    return next((record for record in map(store.read, paths) if record["hash"] == run_hash), None)


def _measured(record: Record) -> set[tuple]:
    """What a record says: an entry per attack, checkpoint and number of images."""
    return {
        (rule, kept["sha256"], attack, metric["n"])
        for rule, kept in record.get("checkpoints", {}).items()
        for attack, metric in kept["metrics"].items()
    }


def _take_record(
    name: str, record: Record, weights: dict[tuple[str, str], bytes], store: Store, done: Unpacked
) -> None:
    existing = _existing(record["hash"], store)
    if existing is not None and not _measured(record) > _measured(existing):
        done.kept[name] = "the record here says as much"
        return
    fresh = {}
    for file, sha256 in _weights(record).items():
        path = store.root / file
        if (file, sha256) in weights:
            fresh[file] = weights[file, sha256]
        elif not path.is_file() or sha256_file(path) != sha256:
            done.kept[name] = f"its weights, {file}, are neither here nor in these archives"
            return
    for file, data in fresh.items():
        atomic_write_bytes(store.root / file, data)
    store.write(record)
    done.written += [*fresh, name]


def _take_state(name: str, data: bytes, epochs: int, store: Store, done: Unpacked) -> None:
    match, path = STATE.fullmatch(name), store.root / name
    assert match is not None  # read_archive lets no other name pass
    if _existing(match[1], store) is not None:
        done.kept[name] = "its run has a record"
    elif path.exists() and epochs_done(path.read_bytes(), str(path)) >= epochs:
        done.kept[name] = f"the state here has at least its {epochs} epochs"
    else:
        atomic_write_bytes(path, data)
        done.written.append(name)


def _take_snapshot(name: str, data: bytes, store: Store, done: Unpacked) -> None:
    match, path = SNAPSHOT.fullmatch(name), store.root / name
    assert match is not None  # as above
    record = _existing(match[1], store)
    if path.exists():
        done.kept[name] = "it is here already"
    elif record is not None and record["pruned"]:  # those of a baseline serve the runs that start from it
        done.kept[name] = "its run has a record"
    else:
        atomic_write_bytes(path, data)
        done.written.append(name)
