"""The parts of a record, and how they are read: the dataclasses here are the schema of its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache, cached_property
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from gkp.attacks import Attack
from gkp.attacks.outcome import Outcome, pack_bits, unpack_bits
from gkp.study.runs.protocols import Entry
from gkp.train.history import EpochRow
from gkp.utils.stats import wilson

Json = Mapping[str, Any]


@cache
def reader(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of a type annotation from JSON; it raises TypeError or ValueError for another kind.

    A dataclass takes the entries that it has fields for, and all of them as `source` if it has such a field.
    """
    inner = get_args(kind)
    if kind is Any:
        return lambda value: value
    if NoneType in inner:
        some = reader(inner[0])
        return lambda value: None if value is None else some(value)
    if get_origin(kind) is tuple:
        readers = [reader(item) for item in inner if item is not ...]
        if inner[-1] is ...:
            return lambda value: tuple(map(readers[0], value))
        return lambda value: tuple(read(item) for read, item in zip(readers, value, strict=True))
    if inner:
        entry = reader(inner[1])
        return lambda value: {key: entry(item) for key, item in _of_kind(value, dict).items()}
    if is_dataclass(kind):
        return _dataclass_reader(kind)
    return lambda value: _of_kind(value, (int, float) if kind is float else kind)


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    readers = {name: reader(hint) for name, hint in hints(kind).items() if name != "source"}
    sourced = "source" in hints(kind)

    def read(value: Any) -> Any:
        given = _of_kind(value, dict)
        source = {"source": given} if sourced else {}
        return kind(**source, **{name: read(given[name]) for name, read in readers.items() if name in given})

    return read


def hints(kind: Any) -> dict[str, Any]:
    """Field -> type of a dataclass."""
    return get_type_hints(kind, localns={"Attack": Attack})  # which recipes import for type checkers alone


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


@dataclass(frozen=True)
class Metric:
    """One attack on one network: counts of its first `n` test images, fractions with 95 % Wilson interval.

    asked_n: as in `Entry`. bits: which images are right, see `right`. zero_gradient, repeatable, flags: signs
    of gradient masking as in `Outcome`, in the JSON only where there is something to tell.
    """

    source: Json = field(repr=False, compare=False)
    n: int
    asked_n: int | None
    correct: int
    accuracy: float
    low: float
    high: float
    seconds: float
    attack: Attack
    bits: str = field(repr=False)
    zero_gradient: int | None = None
    repeatable: bool = True
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, source: Json) -> Metric:
        kind: Any = cls
        metric: Metric = reader(kind)(source)
        return metric

    @classmethod
    def of(cls, outcome: Outcome, entry: Entry) -> Metric:
        """What an attack left, for a record."""
        signs: dict[str, Any] = {"flags": list(outcome.flags)} if outcome.flags else {}
        if outcome.zero_gradient is not None:
            signs["zero_gradient"] = outcome.zero_gradient
        if not outcome.repeatable:
            signs["repeatable"] = False
        about = {"asked_n": entry.n, "seconds": round(outcome.seconds, 3), "attack": asdict(entry.attack)}
        return cls.parse(about | signs | _counted(outcome.correct))

    @cached_property
    def right(self) -> Tensor:
        """bool (n,): which images are classified right. ValueError where the bits are damaged."""
        return unpack_bits(self.bits, self.n)

    def contradiction(self) -> str:
        """What it says of itself that cannot be, in words; "" for nothing. ValueError as for `right`."""
        right = int(unpack_bits(self.bits, self.n).sum())
        if self.correct != right:
            return f"{self.correct} images are said to be right, the bits have {right}"
        if abs(self.accuracy - right / self.n) > 1e-9:
            return f"its accuracy is said to be {self.accuracy:g}, the bits give {right / self.n:g}"
        return ""

    @property
    def outcome(self) -> Outcome:
        signs = (self.zero_gradient, self.repeatable, self.flags)
        return Outcome(self.attack.name, self.right, self.seconds, self.attack, *signs)

    def first(self, n: int) -> Metric:
        """The same on its first n images alone."""
        return self if n == self.n else self.parse({**self.source, **_counted(self.right[:n])})


def _counted(right: Tensor) -> dict[str, Any]:
    n, correct = len(right), int(right.sum())
    low, high = wilson(correct, n)
    accuracy = {"accuracy": correct / n, "low": low, "high": high}
    return {"n": n, "correct": correct, "bits": pack_bits(right), **accuracy}


@dataclass(frozen=True)
class Kept:
    """A checkpoint: its epoch, the SHA-256 of its weights, their file below the root (None: with their
    publisher), {name of an attack: metric}, and what the evaluation found wrong with itself."""

    epoch: int
    sha256: str
    file: str | None
    metrics: Mapping[str, Metric]
    self_check: tuple[str, ...]

    @property
    def json(self) -> dict[str, Any]:
        about = {"epoch": self.epoch, "sha256": self.sha256, "file": self.file}
        metrics = {name: metric.source for name, metric in self.metrics.items()}
        return {**about, "metrics": metrics, "self_check": list(self.self_check)}


@dataclass(frozen=True)
class Size:
    """Multiply-adds and parameters in one convention of counting."""

    macs: int
    params: int


@dataclass(frozen=True)
class Count:
    """A network's size in the usual convention and in the paper's, and the MACs that may be pruned."""

    usual: Size
    paper: Size
    prunable_macs: int


@dataclass(frozen=True)
class Cost:
    """Sizes before and after pruning; macs_ratio: share of the prunable MACs that is left."""

    before: Count
    after: Count
    macs_ratio: float


@dataclass(frozen=True)
class Pruning:
    """The pruning step alone; epochs: those that it had to train first.

    Of methods that drive groups or masks to zero in training: how many there are and had come to zero.
    """

    rate: float
    seconds: float
    data_images: int
    epochs: int = 0
    groups: int | None = None
    zero_groups: int | None = None
    masks: int | None = None
    zero_masks: int | None = None


@dataclass(frozen=True)
class Course:
    """The course of a training."""

    epochs: tuple[EpochRow, ...]


@dataclass(frozen=True)
class Data:
    """The test images: how many, and how many their publisher gives."""

    dataset: str
    images: int
    official_size: int


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from; None where it does not say."""

    commit: str | None = None
    dirty: bool | None = None
    device: str | None = None
    threads: int | None = None
    bfloat16: str | None = None
    seconds: float | None = None
    data: Data | None = None
