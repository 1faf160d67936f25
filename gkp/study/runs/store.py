"""The result store: records below results/, weights below checkpoints/."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

from gkp.study.runs import suites
from gkp.study.runs.locks import alone
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record import Fact, Record, parse
from gkp.study.runs.run import VERSION, Run
from gkp.study.runs.suites import grids
from gkp.study.runs.suites.grids import Suite
from gkp.utils.files import atomic_write_text, readable_file

NAME = re.compile(r"[^\s,:]+")  # an attack's name, among the words of a sentence
EPOCHS = "epochs"  # the fact that says how many a budget chose, and why
_State = tuple[int, ...]
_parsed: dict[Path, tuple[_State, Record | Fact]] = {}  # every file once, for all stores of this process


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

    def write(self, record: Record | Fact) -> Path:
        """Write one record atomically. OSError names the path; NaN is refused with ValueError."""
        path = self.path(record.suite, record.stem)
        text = record.text
        try:
            atomic_write_text(path, text)
        except OSError as error:
            raise OSError(f"cannot write the record {path}: {error.strerror or error}") from error
        return path

    def read(self, path: str | Path) -> Record | Fact:
        """Read one record; DamagedRecord when it is not whole or not what its name says."""
        path = Path(path)
        state = _state(readable_file(path))
        known = _parsed.get(path)
        if known is None or known[0] != state:
            known = _parsed[path] = (state, self.parse(path.read_bytes(), path))
        return known[1]

    def parse(self, data: bytes, path: Path) -> Record | Fact:
        """The same for the content of a file that is to be `path`."""
        advice = "delete it and run the suite again, or restore it from git"
        try:
            record = parse(json.loads(data.decode("utf-8"), parse_constant=_refuse_constant))
            wrong = next(record.contradictions(), "") if isinstance(record, Record) else ""
        except (ValueError, RecursionError) as error:
            raise DamagedRecord(f"damaged record {path}: {error}; {advice}") from error
        if record.version != VERSION or path.stem != record.stem:
            raise DamagedRecord(f"{path} holds {record.stem} of version {record.version}; {advice}")
        if path.parent.name != record.suite:
            raise DamagedRecord(
                f"{path} is a record of the suite {record.suite!r}, in whose folder all suites find it: "
                "delete this copy"
            )
        if wrong:
            raise DamagedRecord(f"damaged record {path}: {wrong}; {advice}")
        return record

    def files(self, suite: str | None = None) -> list[Record | Fact]:
        """Every record and fact (of one suite), sorted by path. A damaged one is named and refused."""
        return [self.read(path) for path in sorted(self.results.glob(f"{suite or '*'}/*.json"))]

    def all(self, suite: str | None = None) -> list[Record]:
        """Every record of a network (of one suite), sorted by path."""
        return [record for record in self.files(suite) if isinstance(record, Record)]

    def facts(self, suite: str) -> list[Fact]:
        """The computed facts of a suite, sorted by path."""
        return [fact for fact in self.files(suite) if isinstance(fact, Fact)]

    def fact(self, suite: str, name: str) -> Fact | None:
        """The computed fact of that suite and name; None when there is none."""
        return next((fact for fact in self.facts(suite) if fact.label == name), None)

    def suite(self, name: str) -> Suite:
        """The suite of that name, in the epochs that a budget chose here for one that lets it."""
        suite = suites.get(name)
        fact = self.fact(name, EPOCHS) if suite.epochs_within_budget else None
        return suite.in_epochs(fact.facts["epochs"]) if fact else suite

    def of_suite(self, name: str) -> list[Record]:
        """The records below results/<name> and those of the suite's runs that another suite made.

        Of a record that several suites share, each sees the attacks that it asks for.
        """
        runs = {run.hash: run for run in self.suite(name).ordered()} if name in suites.SUITES else {}
        records = [record for record in self.all() if record.suite == name or record.hash in runs]
        return [asked_for(r, runs[r.hash]) if r.hash in runs else r for r in records]

    def entries(self, name: str) -> list[Record | Fact]:
        """The records and the facts of a suite."""
        return [*self.of_suite(name), *self.facts(name)]

    def find(self, run: Run) -> Record | None:
        """The record of that configuration, whatever suite it was made for; None when there is none."""
        for path in self._ending(f"-{run.hash[:8]}.json"):
            record = self.read(path)
            if isinstance(record, Record) and record.hash == run.hash:
                return record
        return None

    def _ending(self, ending: str) -> list[Path]:
        """Record files whose name ends so, sorted; in hundreds of calls quicker than a pattern."""
        folders = [path for path in self.results.iterdir() if path.is_dir()] if self.results.is_dir() else []
        return sorted(f / name for f in folders for name in os.listdir(f) if name.endswith(ending))

    def update_manifest(self) -> Path:
        """Write checkpoints/manifest.json: suite/name.safetensors -> SHA-256 and record, committed ones.

        rule: those that chose these weights, separated by commas. Processes do it one after the other, so
        that none leaves out what another has just written.
        """
        with alone("manifest", self.root):
            return self._write_manifest()

    def _write_manifest(self) -> Path:
        files: dict[str, dict[str, str]] = {}
        for record in self.all():
            for rule, kept in record.kept.items():
                if kept.file and record.suite != grids.LIVE:
                    name = kept.file.removeprefix("checkpoints/")
                    rules = f"{files[name]['rule']}, {rule}" if name in files else rule
                    about = {"record": record.stem, "suite": record.suite, "rule": rules}
                    files[name] = {"sha256": kept.sha256, **about}
        path = self.checkpoints / "manifest.json"
        atomic_write_text(path, json.dumps(files, indent=1, sort_keys=True) + "\n")
        return path

    def manifest(self) -> dict[str, dict[str, str]]:
        """What `update_manifest` wrote; {} when no checkpoint is shipped."""
        path = self.checkpoints / "manifest.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}


def asked_for(record: Record, run: Run) -> Record:
    """The record with the attacks of `run.evaluation` alone, and what their evaluations say of themselves.

    Rules that keep the same weights show the same attacks.
    """
    checkpoints = {}
    for rule, kept in record.kept.items():
        alike = (other for other, its in record.kept.items() if its.sha256 == kept.sha256)
        names = {entry.attack.name for entry in run.entries(*alike)}
        others = kept.metrics.keys() - names
        metrics = {name: metric for name, metric in kept.metrics.items() if name in names}
        said = tuple(text for text in kept.self_check if others.isdisjoint(NAME.findall(text)))
        checkpoints[rule] = replace(kept, metrics=metrics, self_check=said)
    return replace(record, kept=checkpoints)


def is_complete(run: Run, store: Store) -> bool:
    """Whether the run has a record with every attack that is asked for."""
    record = store.find(run)
    return record is not None and not missing_entries(record, run)


def missing_entries(record: Record, run: Run) -> dict[str, list[Entry]]:
    """Per checkpoint rule, the attacks of `run.evaluation` that the record lacks or has on other images."""
    missing = {}
    for rule, kept in record.kept.items():
        have = {name: metric.asked_n for name, metric in kept.metrics.items()}
        lacking = [entry for entry in run.entries(rule) if have.get(entry.attack.name, -1) != entry.n]
        if lacking:
            missing[rule] = lacking
    return missing


def _state(path: Path) -> _State:
    """What changes when a file is written anew; a file that replaces another is another one."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a record may hold")
