"""Records: one JSON file per run, the single source of every number shown anywhere, read once into types.

A `Record` is one network of a suite, pruned, trained and attacked; a `Fact` is what was computed without
training. Both keep the JSON that they were read from and give it back as it was. What a file holds and no
attribute shows (versions of libraries, memory, what the rules of training chose) is for `value` to reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from gkp.study.runs.record_parts import (
    Cost,
    Course,
    Json,
    Kept,
    Metric,
    Provenance,
    Pruning,
    hints,
    reader,
)
from gkp.study.runs.run import VERSION, Run
from gkp.train.history import EpochRow

TOLERANCE = 0.01  # of a target of MACs


@dataclass(frozen=True)
class Filed:
    """What every record says. hash: of its configuration; stem: the file's name without ending."""

    source: Json = field(repr=False, compare=False)
    version: int
    hash: str
    suite: str
    stem: str
    label: str
    provenance: Provenance

    @property
    def json(self) -> dict[str, Any]:
        return dict(self.source)

    @property
    def text(self) -> str:
        """The file. ValueError for NaN and infinity."""
        return json.dumps(self.json, indent=1, sort_keys=True, allow_nan=False) + "\n"

    def value(self, path: Sequence[str]) -> Any:
        """What the JSON holds there; None where there is nothing."""
        part: Any = self.json
        for key in path:
            if not isinstance(part, Mapping) or key not in part:
                return None
            part = part[key]
        return part

    def meets(self, conditions: Json) -> bool:
        """Whether the fields have these values, or the configuration's where there is no such field."""
        config = self.source["config"]
        return all((self.source if k in self.source else config).get(k) == v for k, v in conditions.items())


@dataclass(frozen=True)
class Fact(Filed):
    """What was computed without training; `facts` is as its function in `gkp.study.facts` gives it."""

    config: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def of(cls, name: str, suite: str, facts: Json, provenance: Json) -> Fact:
        """A new fact; its identity is its name and the version."""
        config = {"facts": name, "version": VERSION}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
        identity = {"version": VERSION, "hash": digest, "suite": suite, "stem": f"{name}-{digest[:8]}"}
        parts = {"label": name, "config": config, "facts": facts, "provenance": provenance}
        fact = parse(identity | parts)
        assert isinstance(fact, cls)  # it has no checkpoints
        return fact


@dataclass(frozen=True)
class Record(Filed):
    """One network. kept: {rule: checkpoint}.

    evaluations: provenance of every later evaluation of the saved weights, with the names of its "attacks".
    """

    run: Run
    cost: Cost
    pruning: Pruning
    history: Course | None
    kept: Mapping[str, Kept]
    evaluations: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, run: Run, suite: str, kept: Mapping[str, Kept], **parts: Any) -> Record:
        """A new record; parts: start, cost, pruning, history and provenance as in the JSON."""
        identity = {"version": VERSION, "hash": run.hash, "suite": suite, "stem": run.stem}
        about = {"label": run.label, "pruned": run.prunes, "config": run_config(run)}
        checkpoints = {"checkpoints": {rule: checkpoint.json for rule, checkpoint in kept.items()}}
        record = parse({**identity, **about, "evaluations": [], **parts, **checkpoints})
        assert isinstance(record, cls)  # it has checkpoints
        return record

    @property
    def json(self) -> dict[str, Any]:
        checkpoints = {rule: kept.json for rule, kept in self.kept.items()}
        return {**self.source, "checkpoints": checkpoints, "evaluations": list(self.evaluations)}

    def contradictions(self) -> Iterator[str]:
        """What it says of itself that cannot be, in words. ValueError where an attack's bits are damaged."""
        if self.run.hash != self.hash:
            yield (
                f"it has the hash of {self.stem} but another configuration (where a default changed, raise "
                "gkp.study.runs.run.VERSION)"
            )
        for rule, kept in self.kept.items():
            for name, metric in kept.metrics.items():
                if name != metric.attack.name:
                    yield f"under {name} ({rule}) stands {metric.attack.name}"
                elif contradiction := metric.contradiction():
                    yield f"under {name} ({rule}) {contradiction}"

    @property
    def epochs(self) -> tuple[EpochRow, ...]:
        """The course of its training; () without one."""
        return self.history.epochs if self.history else ()

    @property
    def pruned(self) -> bool:
        return self.run.prunes

    @property
    def training_seconds(self) -> float:
        return sum(row.seconds for row in self.epochs)

    @property
    def later(self) -> set[str]:
        """Names of the attacks that were added to the finished run."""
        return {name for evaluation in self.evaluations for name in evaluation["attacks"]}

    @property
    def misses_target(self) -> bool:
        """Whether the network is more than 1 % off what it was to be pruned to: no fair comparison."""
        before, left = self.cost.before, self.cost.after.usual
        if self.run.params_ratio is not None:
            target = self.run.params_ratio * before.usual.params
            return abs(left.params - target) > TOLERANCE * target
        if self.run.macs_ratio is None:
            return False
        target = before.usual.macs - (1 - self.run.macs_ratio) * before.prunable_macs
        return abs(left.macs - target) > TOLERANCE * target

    def metrics(self, rule: str = "last") -> Mapping[str, Metric]:
        """{name: metric} of the checkpoint that the rule keeps; {} where it keeps none."""
        return self.kept[rule].metrics if rule in self.kept else {}

    def measured(self) -> Iterator[Metric]:
        """All metrics of all checkpoints."""
        return (metric for kept in self.kept.values() for metric in kept.metrics.values())

    def with_kept(self, rule: str, kept: Kept) -> Record:
        """The record with that checkpoint; others with the same weights get its metrics too."""
        shared = {
            name: replace(other, metrics=kept.metrics, self_check=kept.self_check)
            for name, other in self.kept.items()
            if other.sha256 == kept.sha256
        }
        return replace(self, kept={**self.kept, **shared, rule: kept})


def run_config(run: Run) -> dict[str, Any]:
    """Every hashed field of a run as JSON would give it back, defaults included.

    But for the target of parameters, which the first records do not know: it is there where it is set.
    """
    config = asdict(replace(run, evaluation=()))
    del config["evaluation"]
    if run.params_ratio is None:
        del config["params_ratio"]
    trainings = {name: getattr(run, name) for name in ("recipe", "baseline")}
    config |= {name: recipe.json for name, recipe in trainings.items() if recipe}
    as_read: dict[str, Any] = json.loads(json.dumps(config))
    return as_read


def parse(source: Any) -> Record | Fact:
    """A record from its JSON. ValueError names the parts that are missing or of another kind."""
    given = source if isinstance(source, dict) else {}
    kind: type[Record] | type[Fact] = Record if "checkpoints" in given else Fact
    types = hints(kind)
    attributes, wrong = {}, []
    for item in fields(kind)[1:]:
        name = _CALLED.get(item.name, item.name) if kind is Record else item.name
        try:
            attributes[item.name] = reader(types[item.name])(given.get(name))
        except (TypeError, ValueError):  # the part is not what it has to be
            wrong.append(name)
    if wrong:
        raise ValueError(f"no (right) {', '.join(wrong)}")
    return kind(given, **attributes)


_CALLED = {"run": "config", "kept": "checkpoints"}  # attributes that the JSON calls otherwise
