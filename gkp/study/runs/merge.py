"""Taking over records, with their weights, that another machine computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gkp.study.runs.record import Fact, Record
from gkp.study.runs.store import Store
from gkp.utils.files import atomic_write_bytes, readable_file, sha256_file


def merge(source: str | Path, store: Store) -> list[str]:
    """Take the records below `source`/results that say more than those here; one line about each.

    A record is taken when none of its configuration is here, or when it has every measurement of the one
    here and others too. Its weights come with it, from below `source`. All is checked before anything is
    written: FileNotFoundError where there are no records, or weights are missing; ValueError for weights
    with another SHA-256 than recorded; DamagedRecord, naming the file.
    """
    other = Store(source)
    records = other.files()
    if not records:
        raise FileNotFoundError(f"no records in {other.results}: give a folder that holds results/ of gkp")
    here = {record.hash: record for record in store.files()}
    wanted = [r for r in records if r.hash not in here or _says(r) > _says(here[r.hash])]
    weights = {file: data for record in wanted for file, data in _weights(record, other, store).items()}
    for file, data in weights.items():
        atomic_write_bytes(store.root / file, data)
    for record in wanted:
        store.write(record)
    store.update_manifest()
    left = [record for record in records if record not in wanted]
    return [
        *(f"took {record.suite}/{record.stem}" for record in wanted),
        *(f"left {record.suite}/{record.stem}: what is here says as much" for record in left),
    ]


def _says(record: Record | Fact) -> set[tuple[Any, ...]]:
    """The measurements of a record: rule, weights, attack and number of images of each."""
    return {
        (rule, kept.sha256, attack, metric.n)
        for rule, kept in (record.kept.items() if isinstance(record, Record) else ())
        for attack, metric in kept.metrics.items()
    }


def _weights(record: Record | Fact, other: Store, store: Store) -> dict[str, bytes]:
    """{file below a root: content} of the record's weights that are not here yet."""
    found = {}
    for kept in record.kept.values() if isinstance(record, Record) else ():
        file, sha256 = kept.file, kept.sha256
        if not file or ((store.root / file).is_file() and sha256_file(store.root / file) == sha256):
            continue
        path = other.root / file
        if not path.resolve().is_relative_to(other.checkpoints.resolve()):
            raise ValueError(
                f"{record.stem} has its weights in {file!r}, outside of checkpoints/: leave it out"
            )
        if sha256_file(readable_file(path)) != sha256:
            raise ValueError(f"{path} is damaged: another SHA-256 than recorded; fetch it again")
        found[file] = path.read_bytes()
    return found
