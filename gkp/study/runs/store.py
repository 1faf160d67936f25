"""The result store: one small JSON file per run, the single source of every number shown anywhere.

A record is a dictionary:

    version, hash, suite, stem      identity; `hash` is `Run.hash`, `stem` names the files
    config                          every field of the `Run`, defaults included
    start                           {"weights", "sha256"}: where the network came from
    cost                            {"before", "after": {"usual", "paper": {"macs", "params"}, ...},
                                    "macs_ratio": share of the prunable MACs that is left}
    pruning                         {"rate", "seconds", "data_images"} of the pruning step alone, and
                                    "epochs" where it had to train first
    history                         one dictionary per epoch
    checkpoints                     {rule: {"epoch", "sha256", "file", "metrics", "self_check"}}
    provenance                      code, versions, device, data, time and memory of the training
    evaluations                     the same for every later evaluation of the saved weights

`metrics` maps the name of an attack to {"correct", "n", "accuracy", "low", "high", "bits", "seconds",
"attack"}: counts, fractions with their 95 % Wilson interval, and the packed correctness of each image for
paired tests; newer ones also have "zero_gradient", how many images stay right where the gradient is exactly
zero, and where it is so "repeatable": false, two forward passes of one image differ. A record of computed
facts has `facts` instead of `checkpoints`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.study.runs import suites
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import wrong_parts
from gkp.study.runs.run import VERSION, Run
from gkp.utils.files import atomic_write_text, readable_file

Record = dict[str, Any]
NAME = re.compile(r"[^\s,:]+")  # an attack's name, among the words of a sentence
TOLERANCE = 0.01  # of a target of MACs


class DamagedRecord(ValueError):
    """A record file that cannot be what it says; the message names the file and what to do."""


class Store:
    """The records below `root`/results and the weights below `root`/checkpoints."""

    def __init__(self, root: str | Path = ".") -> None:
        self.root = Path(root)
        self.results = self.root / "results"
        self.checkpoints = self.root / "checkpoints"

    def path(self, suite: str, stem: str) -> Path:
        return self.results / suite / f"{stem}.json"

    def weights_path(self, suite: str, stem: str, rule: str = "last") -> Path:
        """Where the final weights go; other rules than "last" are part of the name."""
        return self.checkpoints / suite / f"{stem}{'' if rule == 'last' else f'-{rule}'}.safetensors"

    def write(self, record: Record) -> Path:
        """Write one record atomically. OSError names the path; NaN is refused with ValueError."""
        path = self.path(record["suite"], record["stem"])
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
        try:
            atomic_write_text(path, text)
        except OSError as error:
            raise OSError(f"cannot write the record {path}: {error.strerror or error}") from error
        return path

    def read(self, path: str | Path) -> Record:
        """Read one record; DamagedRecord when it is not whole or not what its name says."""
        path = Path(path)
        return self.parse(readable_file(path).read_bytes(), path)

    def parse(self, data: bytes, path: Path) -> Record:
        """The same for the content of a file that is to be `path`."""
        advice = "delete it and run the suite again, or restore it from git"
        try:
            record = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DamagedRecord(f"damaged record {path}: {error}; {advice}") from error
        if wrong := wrong_parts(record):
            raise DamagedRecord(f"damaged record {path}: no (right) {', '.join(wrong)}; {advice}")
        if record["version"] != VERSION or path.stem != record["stem"]:
            raise DamagedRecord(f"{path} holds {record['stem']} of version {record['version']}; {advice}")
        return record

    def all(self, suite: str | None = None) -> list[Record]:
        """Every record (of one suite), sorted by path. A damaged one is named and refused."""
        return [self.read(path) for path in sorted(self.results.glob(f"{suite or '*'}/*.json"))]

    def of_suite(self, name: str) -> list[Record]:
        """The records below results/<name> and those of the suite's runs that another suite made.

        Of a record that several suites share, each sees the attacks that it asks for.
        """
        runs = {run.hash: run for run in suites.get(name).ordered()} if name in suites.SUITES else {}
        found = [record for record in self.all() if record["suite"] == name or record["hash"] in runs]
        return [asked_for(r, runs[r["hash"]]) if r["hash"] in runs else r for r in found]

    def fact(self, suite: str, name: str) -> Record | None:
        """The record of a computed fact of that suite; None when there is none."""
        return next((record for record in self.all(suite) if record["label"] == name), None)

    def find(self, run: Run) -> Record | None:
        """The record of that configuration, whatever suite it was made for; None when there is none."""
        for path in sorted(self.results.glob(f"*/*-{run.hash[:8]}.json")):
            record = self.read(path)
            if record["hash"] != run.hash:
                continue
            if not _agrees(record["config"], run_config(run)):
                raise DamagedRecord(
                    f"{path} has the hash of {run.stem} but another configuration: "
                    "a default changed, so raise gkp.study.runs.run.VERSION"
                )
            return record
        return None

    def update_manifest(self) -> Path:
        """Write checkpoints/manifest.json: suite/name.safetensors -> SHA-256 and record, committed ones.

        rule: those that chose these weights, separated by commas.
        """
        files: dict[str, dict[str, str]] = {}
        for record in self.all():
            for rule, kept in record.get("checkpoints", {}).items():
                if kept.get("file") and record["suite"] != "digits":
                    name = kept["file"].removeprefix("checkpoints/")
                    rules = f"{files[name]['rule']}, {rule}" if name in files else rule
                    about = {"record": record["stem"], "suite": record["suite"], "rule": rules}
                    files[name] = {"sha256": kept["sha256"], **about}
        path = self.checkpoints / "manifest.json"
        atomic_write_text(path, json.dumps(files, indent=1, sort_keys=True) + "\n")
        return path

    def manifest(self) -> dict[str, dict[str, str]]:
        """What `update_manifest` wrote; {} when no checkpoint is shipped."""
        path = self.checkpoints / "manifest.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}


def run_config(run: Run) -> dict[str, Any]:
    """Every hashed field of a run as JSON would give it back, defaults included."""
    fields = asdict(run)
    del fields["evaluation"]
    return json.loads(json.dumps(fields))


def _agrees(recorded: Any, now: Any) -> bool:
    """Whether everything recorded still holds; fields that came later, at their default, do not count."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        return all(key in now and _agrees(value, now[key]) for key, value in recorded.items())
    return recorded == now


def asked_for(record: Record, run: Run) -> Record:
    """The record with the attacks of `run.evaluation` alone, and what their evaluations say of themselves."""
    names = {entry.attack.name for entry in run.evaluation}
    checkpoints = {}
    for rule, kept in record.get("checkpoints", {}).items():
        others = kept["metrics"].keys() - names
        metrics = {name: metric for name, metric in kept["metrics"].items() if name in names}
        said = [text for text in kept["self_check"] if others.isdisjoint(NAME.findall(text))]
        checkpoints[rule] = kept | {"metrics": metrics, "self_check": said}
    return record | {"checkpoints": checkpoints}


def is_complete(run: Run, store: Store) -> bool:
    """Whether the run has a record with every attack that is asked for."""
    record = store.find(run)
    return record is not None and not missing_entries(record, run)


def missing_entries(record: Record, run: Run) -> dict[str, list[Entry]]:
    """Per checkpoint rule, the attacks of `run.evaluation` that the record lacks or has on other images."""
    missing = {}
    for rule, kept in record["checkpoints"].items():
        have = {name: metric["asked_n"] for name, metric in kept["metrics"].items()}
        lacking = [entry for entry in run.evaluation if have.get(entry.attack.name, -1) != entry.n]
        if lacking:
            missing[rule] = lacking
    return missing


def misses_target(record: Record) -> bool:
    """Whether the network is more than 1 % off the MACs it was to be pruned to: no fair comparison."""
    ratio = record["config"].get("macs_ratio")
    if ratio is None:
        return False
    before, after = record["cost"]["before"], record["cost"]["after"]
    target = before["usual"]["macs"] - (1 - ratio) * before["prunable_macs"]
    return abs(after["usual"]["macs"] - target) > TOLERANCE * target


def table(records: Iterable[Record], rule: str | None = None) -> pd.DataFrame:
    """One row per attack, checkpoint and run, accuracies as fractions; `rule` keeps one kind of them."""
    return pd.DataFrame(list(_rows(records, rule)))


def _rows(records: Iterable[Record], rule: str | None) -> Iterator[dict[str, Any]]:
    for record in records:
        config, cost = record["config"], record.get("cost", {})
        for name, kept in record.get("checkpoints", {}).items():
            if rule not in (None, name):
                continue
            for attack, metric in kept["metrics"].items():
                yield {
                    "suite": record["suite"],
                    "dataset": config["dataset"],
                    "network": config["network"],
                    "method": config["method"],
                    "label": record["label"],
                    "seed": config["seed"],
                    "rule": name,
                    "epoch": kept["epoch"],
                    "attack": attack,
                    **{key: metric[key] for key in ("accuracy", "low", "high", "n", "correct", "bits")},
                    "macs": cost["after"]["usual"]["macs"],
                    "params": cost["after"]["usual"]["params"],
                    "macs_paper": cost["after"]["paper"]["macs"],
                    "params_paper": cost["after"]["paper"]["params"],
                    "macs_ratio": cost["macs_ratio"],
                    "misses_target": misses_target(record),
                    "prune_seconds": record["pruning"]["seconds"],
                    "data_images": record["pruning"]["data_images"],
                    "self_check": "; ".join(kept["self_check"]),
                    "hash": record["hash"],
                }


def wide(records: Iterable[Record], rule: str = "last") -> pd.DataFrame:
    """One row per run, one column per attack (fractions), in the order of the records."""
    long = table(records, rule)
    if long.empty:
        return long
    keys = ["suite", "network", "label", "seed", "macs", "params", "macs_ratio", "prune_seconds", "hash"]
    return long.pivot_table(index=keys, columns="attack", values="accuracy", sort=False).reset_index()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a record may hold")
