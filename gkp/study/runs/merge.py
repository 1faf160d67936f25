"""Taking over records, with their weights, that another machine computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from gkp import evaluate
from gkp.study.runs.locks import alone
from gkp.study.runs.record import Fact, Record
from gkp.study.runs.record_parts import Kept
from gkp.study.runs.store import Store
from gkp.utils.files import atomic_write_bytes, readable_file, sha256_file

Measurement = tuple[str, str, str]  # rule, SHA-256 of the weights, attack


def merge(source: str | Path, store: Store) -> list[str]:
    """Take what the records below `source`/results say and those here do not; one line about each.

    A record is taken when none of its configuration is here, or when it has every measurement of the one
    here and others too. Where each has some of the same weights that the other lacks, the one here gets
    them (`united`). Weights come along, from below `source`. A record whose run is being worked on here is
    left. All is checked before anything is written: FileNotFoundError where there are no records, or weights
    are missing; ValueError for weights with another SHA-256 than recorded; DamagedRecord, naming the file.
    """
    other = Store(source)
    records = other.files()
    if not records:
        raise FileNotFoundError(f"no records in {other.results}: give a folder that holds results/ of gkp")
    weights: list[dict[str, bytes]] = []
    for record in records:
        chosen, _ = _chosen(record, _here(record, store))
        weights.append(_weights(chosen, other, store) if chosen is not None else {})
    lines = [_take(record, files, store) for record, files in zip(records, weights, strict=True)]
    store.update_manifest()
    return sorted(lines, key=lambda line: line.startswith("left"))


def _take(record: Record | Fact, weights: Mapping[str, bytes], store: Store) -> str:
    """Write what is to be written of the record, while nobody works on its run; a line that says so.

    weights: {file below a root: content} that come along.
    """
    try:
        name = record.hash if isinstance(record, Record) else f"{record.suite}-{record.label}"
        with alone(name, store.root).acquire(blocking=False):
            chosen, line = _chosen(record, _here(record, store))
            if chosen is not None:
                for file, data in weights.items():
                    atomic_write_bytes(store.root / file, data)
                store.write(chosen)
            return line
    except Timeout:
        return f"left {record.suite}/{record.stem}: a process here works on it; merge again when that is done"


def _here(record: Record | Fact, store: Store) -> Record | Fact | None:
    """What this store has of the same configuration."""
    if isinstance(record, Record):
        return store.find(record.run)
    path = store.path(record.suite, record.stem)
    return store.read(path) if path.exists() else None


def _chosen(record: Record | Fact, here: Record | Fact | None) -> tuple[Record | Fact | None, str]:
    """What is to be written of a record and of the one here, None for nothing; a line that says so."""
    name = f"{record.suite}/{record.stem}"
    if here is None:
        return record, f"took {name}"
    if not isinstance(record, Record) or not isinstance(here, Record):
        return None, f"left {name}: what is here says as much"
    new, old = _says(record), _says(here)
    more = {key for key, n in new.items() if n > old.get(key, -1)}
    if more and record.suite == here.suite and not any(n > new.get(key, -1) for key, n in old.items()):
        return record, f"took {name}"
    merged = united(here, record)
    if merged is not here:
        return merged, f"united {name}: {len(_says(merged)) - len(old)} measurements came to those here"
    if more:
        return None, f"left {name}: its weights are of another training than those here, which stay"
    return None, f"left {name}: what is here says as much"


def united(here: Record, other: Record) -> Record:
    """The record here with the attacks that only the other has, or has on more images, of the same weights.

    Where both have an attack on equally many images, what is here stays. The other's evaluations come along,
    so that it is known where each number is from. `here` itself where there is nothing to add.
    """
    kept: dict[str, Kept] = {}
    added: set[str] = set()
    for rule, ours in here.kept.items():
        theirs = other.kept.get(rule)
        same = theirs is not None and theirs.sha256 == ours.sha256
        metrics = theirs.metrics if theirs is not None and same else {}
        more = {a: m for a, m in metrics.items() if a not in ours.metrics or m.n > ours.metrics[a].n}
        added |= more.keys()
        kept[rule] = _with(ours, more) if more else ours
    if not added:
        return here
    origins = (*other.evaluations, {**other.value(["provenance"]), "attacks": sorted(added - other.later)})
    known = [
        {**origin, "attacks": names} for origin in origins if (names := sorted(added & {*origin["attacks"]}))
    ]
    return replace(here, kept=kept, evaluations=(*here.evaluations, *known))


def _with(kept: Kept, more: Mapping[str, Any]) -> Kept:
    """The checkpoint with more metrics, and what its evaluation then says of itself."""
    metrics = {**kept.metrics, **more}
    said = evaluate.self_check(metric.outcome for metric in metrics.values())
    return replace(kept, metrics=metrics, self_check=tuple(said))


def _says(record: Record) -> dict[Measurement, int]:
    """The measurements of a record, with the number of images of each."""
    return {
        (rule, kept.sha256, attack): metric.n
        for rule, kept in record.kept.items()
        for attack, metric in kept.metrics.items()
    }


def _weights(record: Record | Fact, other: Store, store: Store) -> dict[str, bytes]:
    """{file below a root: content} of the record's weights that are not here yet."""
    contents = {}
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
        contents[file] = path.read_bytes()
    return contents
