"""Packing what a call of `fill` made into archives small enough for transport.

An archive is a plain tar file. Its first member, contents.json, lists every other member with its size and
SHA-256. Members are records, weights and training states, named by their path below the store's root.
`gkp.unpack` puts them back.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gkp.files import atomic_write_bytes, sha256_bytes
from gkp.records import Store

FORMAT = 1
CONTENTS = "contents.json"
LIMIT_BYTES, LIMIT_FILES = 16 * 2**20, 8
HASH_LENGTH = 16  # of `Run.hash`, with which the names below work/ begin
PATTERNS = (
    "results/*/*.json",
    "checkpoints/*/*.safetensors",
    "work/state/*.pt",
    "work/snapshots/*/*.safetensors",
)

Stamps = Mapping[str, tuple[int, int, int]]


@dataclass
class Packed:
    """What was written, and what did not fit: paths below the store's root."""

    archives: list[Path] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def text(self) -> str:
        size = sum(path.stat().st_size for path in self.archives) / 2**20
        lines = [f"packed {len(self.files)} files into {len(self.archives)} archives, {size:.1f} MiB"]
        if self.left_out:
            lines.append(f"did not fit, still below the root: {', '.join(self.left_out)}")
        return "\n".join(lines)


def stamps(root: str | Path) -> Stamps:
    """What tells a changed file from one that is as it was: {path below root: (inode, size, time in ns)}."""
    found = {}
    for path in (path for pattern in PATTERNS for path in sorted(Path(root).glob(pattern))):
        with suppress(FileNotFoundError):  # a run that ends removes its training states
            about = path.stat()
            found[path.relative_to(root).as_posix()] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def archives_in(folder: str | Path) -> list[Path]:
    """The archives below `folder`, in the order of their names."""
    return sorted(Path(folder).glob("pack-[0-9][0-9].tar"))


def pack(
    store: Store,
    folder: str | Path,
    since: Stamps,
    hashes: Iterable[str] = (),
    *,
    limit_bytes: int = LIMIT_BYTES,
    limit_files: int = LIMIT_FILES,
) -> Packed:
    """Write what is new or changed `since` into folder/pack-00.tar, pack-01.tar, ...; replaces earlier ones.

    Records come first, each with its weights, then training states in the order of `hashes` (of runs),
    others last. What belongs together, a record and its weights or states and snapshots of one run, stands
    in one archive where it fits.
    """
    packed = Packed()
    boxes: list[dict[str, bytes]] = []
    for unit in _units(store, since, list(hashes)):
        parts = [unit] if _size(unit) <= limit_bytes else [{name: data} for name, data in unit.items()]
        filled = _placed(boxes, parts, limit_bytes, limit_files)
        if filled is None:
            packed.left_out += unit
        else:
            boxes = filled
            packed.files += unit
    for number, box in enumerate(boxes):
        path = Path(folder) / f"pack-{number:02d}.tar"
        atomic_write_bytes(path, archive(box))
        packed.archives.append(path)
    for stale in archives_in(folder)[len(boxes) :]:
        stale.unlink()
    return packed


def archive(box: Mapping[str, bytes]) -> bytes:
    """A tar file of these files and the list of them; the same bytes for the same files."""
    contents = {name: {"bytes": len(data), "sha256": sha256_bytes(data)} for name, data in box.items()}
    text = json.dumps({"format": FORMAT, "files": contents}, indent=1) + "\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {CONTENTS: text.encode(), **box}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _units(store: Store, since: Stamps, hashes: list[str]) -> Iterable[dict[str, bytes]]:
    """What belongs together: a record and its weights, states and snapshots of one run; by value.

    Records are looked for before weights are read: weights are written first, so none is missed.
    """
    now = stamps(store.root)
    changed = [name for name, stamp in now.items() if since.get(name) != stamp]
    for name in (name for name in changed if name.startswith("results/")):
        record = store.read(store.root / name)
        weights = [kept["file"] for kept in record.get("checkpoints", {}).values() if kept["file"]]
        yield _read(store.root, [name, *(file for file in weights if file in changed)])
    states: dict[str, list[str]] = {}
    for name in (name for name in changed if name.startswith("work/")):
        states.setdefault(name.split("/")[2][:HASH_LENGTH], []).append(name)
    rank = {run: position for position, run in enumerate(hashes)}
    for run in sorted(states, key=lambda run: rank.get(run, len(rank))):
        yield _read(store.root, states[run])


def _read(root: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The files' content; without those that a run has removed meanwhile because it ended."""
    found = {}
    for name in names:
        with suppress(FileNotFoundError):
            found[name] = (root / name).read_bytes()
    return found


def _size(box: Mapping[str, bytes]) -> int:
    """At most how many bytes the archive of `box` has: headers, padding and an entry of the list."""
    overhead = 2 * tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
    return overhead + sum(len(data) + 2 * tarfile.BLOCKSIZE + 150 + len(name) for name, data in box.items())


def _placed(
    boxes: list[dict[str, bytes]], parts: list[dict[str, bytes]], limit_bytes: int, limit_files: int
) -> list[dict[str, bytes]] | None:
    """The boxes with every part in the first that has room, or None when one finds none."""
    boxes = [dict(box) for box in boxes]
    for part in parts:
        room = next((box for box in boxes if _size({**box, **part}) <= limit_bytes), None)
        if room is None and (len(boxes) == limit_files or _size(part) > limit_bytes):
            return None
        if room is None:
            boxes.append(room := {})
        room.update(part)
    return boxes
