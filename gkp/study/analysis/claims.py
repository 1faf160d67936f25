"""Numbers that the paper, its release or this artifact state, and whether the records bear them out.

`expected/claims.toml` holds one table per claim:

    id, statement    what is claimed, by whom
    expect           the number; or at_least / at_most for a bound
    unit             "%", "layers", ...; tolerance, in the same unit, and `why` it is that large
    ours             where our number is: `suite` and further conditions on the record (label, rule, or a
                     field of its configuration), and either `attack` (accuracy in percent) or `path`;
                     `against`, with `attack`: the difference to that label on the same images, in points,
                     seed by seed;
                     `over`, with `attack`: the difference to the same network under that other attack, on
                     the images that both saw, in points
    each             true: every matching record has to meet the claim, the worst one is shown; a network
                     under two names counts once
    verdict          "miss" where an honest miss is known, "open" where chance cannot be told from a
                     difference; then `explanation` says why

The numbers of the paper's own tables are claims without a table each (`gkp.study.analysis.paper.claims`);
their known misses stand under `[explained]`, id = "why".
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkp.attacks.outcome import unpack_bits
from gkp.study.runs.store import Record
from gkp.utils.files import readable_file
from gkp.utils.stats import FEWEST, paired_difference, student

CLAIMS = Path("expected") / "claims.toml"
PLACES = ("suite", "attack", "path", "rule", "against", "over")  # fields of `ours` that are no condition


@dataclass(frozen=True)
class Claim:
    """One statement with a number; see the module's docstring for the fields."""

    id: str
    statement: str
    unit: str
    why: str
    ours: dict[str, Any]
    tolerance: float = 0.0
    expect: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    each: bool = False
    verdict: str = "ok"
    explanation: str = ""
    digits: int = 2

    def __post_init__(self) -> None:
        given = [value for value in (self.expect, self.at_least, self.at_most) if value is not None]
        if len(given) != 1:
            raise ValueError(f"claim {self.id}: give exactly one of expect, at_least and at_most")
        if self.verdict not in ("ok", "miss", "open") or (self.verdict == "ok") == bool(self.explanation):
            raise ValueError(f'claim {self.id}: verdict "miss" or "open" needs an explanation, "ok" has none')
        if ("attack" in self.ours) == ("path" in self.ours) or "suite" not in self.ours:
            raise ValueError(f"claim {self.id}: ours needs a suite, and either an attack or a path")
        if "against" in self.ours and not {"attack", "label"} <= set(self.ours):
            raise ValueError(f"claim {self.id}: against needs an attack and a label")
        if "over" in self.ours and ("attack" not in self.ours or "against" in self.ours):
            raise ValueError(f"claim {self.id}: over needs an attack, and no against")
        if "against" in self.ours and (self.each or self.expect is not None):
            raise ValueError(f"claim {self.id}: against needs a bound, at_least or at_most, and no each")

    @property
    def wanted(self) -> str:
        for word, value in (("", self.expect), (">= ", self.at_least), ("<= ", self.at_most)):
            if value is not None:
                return f"{word}{value:.{self.digits}f}"
        raise AssertionError

    @property
    def bound(self) -> float:
        """Where a claim about a bound turns from right to wrong, its tolerance included; NaN without one."""
        if self.at_least is not None:
            return self.at_least - self.tolerance
        return math.nan if self.at_most is None else self.at_most + self.tolerance

    def distance(self, value: float) -> float:
        """How far `value` is from being right, in the claim's unit; 0 where a bound is met."""
        if self.expect is not None:
            return abs(value - self.expect)
        if self.at_least is not None:
            return max(0.0, self.at_least - value)
        assert self.at_most is not None  # a Claim has one of the three
        return max(0.0, value - self.at_most)


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim; `values` are ours, one per record.

    status: "OK", "MISS", "MISSING" without a usable record, or "OPEN" when the bound lies inside the 95 %
    interval of a difference. interval: of that difference, over seeds where there are three or more, else
    over images; each for itself, not corrected for the number of claims.
    """

    claim: Claim
    values: tuple[float, ...]
    status: str
    interval: tuple[float, float] | None = None

    @property
    def as_expected(self) -> bool:
        return self.status == self.claim.verdict.upper()

    @property
    def ours(self) -> float:
        """The mean over records (seeds), or the worst where each record counts."""
        if self.claim.each:
            return max(self.values, key=self.claim.distance)
        return statistics.fmean(self.values)

    @property
    def ours_text(self) -> str:
        if self.status == "MISSING":
            return "no record"
        count = f"worst of {len(self.values)}" if self.claim.each else f"n={len(self.values)}"
        if self.interval:
            low, high = self.interval
            return f"{self.ours:+.{self.claim.digits}f} ({low:+.2f} to {high:+.2f}, {count})"
        spread = f" ± {statistics.stdev(self.values):.2f}" if self._has_spread else ""
        return f"{self.ours:.{self.claim.digits}f}{spread} ({count})"

    @property
    def _has_spread(self) -> bool:
        return len(self.values) > 1 and not self.claim.each

    @property
    def line(self) -> str:
        """One line for the terminal."""
        claim = self.claim
        text = f"{f'[{self.status}]':9} {claim.id:3} expected {claim.wanted} {claim.unit}"
        text += f" | ours {self.ours_text} | tol {claim.tolerance:g} | {claim.statement} ({claim.why})"
        return text + (f" | {claim.explanation}" if claim.explanation else "")


def load(path: str | Path = CLAIMS) -> list[Claim]:
    """Read the claims; ValueError names the file and the claim that is not well formed."""
    try:
        tables = tomllib.loads(readable_file(path).read_text("utf-8")).get("claim", [])
        claims = [Claim(**table) for table in tables]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; mend it, or restore it from git") from error
    ids = [claim.id for claim in claims]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: two claims share an id")
    return claims


def explained_misses(path: str | Path = CLAIMS) -> dict[str, str]:
    """Id -> explanation of the known misses among the numbers of the paper's own tables."""
    return tomllib.loads(Path(path).read_text("utf-8")).get("explained", {})


def judge(claims: Sequence[Claim], records_of: Callable[[str], Sequence[Record]]) -> list[Verdict]:
    """One verdict per claim; `records_of(suite)` gives the records of a suite.

    A claim without a matching record, or with a NaN, is "MISSING".
    """
    known = {suite: records_of(suite) for suite in {claim.ours["suite"] for claim in claims}}
    return [_judge(claim, known[claim.ours["suite"]]) for claim in claims]


def _judge(claim: Claim, records: Sequence[Record]) -> Verdict:
    interval = None
    if "against" in claim.ours:
        pairs = _pairs(claim, records)
        values = tuple(100 * float(a.double().mean() - b.double().mean()) for a, b in pairs)
        interval = _interval(values, pairs) if pairs else None
    else:
        values = _values(claim, _distinct(records) if claim.each else records)
    if not values or not all(math.isfinite(value) for value in values):
        return Verdict(claim, values, "MISSING")
    verdict = Verdict(claim, values, "OK", interval)
    if interval and interval[0] < claim.bound < interval[1]:
        return replace(verdict, status="OPEN")
    # A number printed with two decimals and its tolerance meet in decimal, not in binary.
    within = round(claim.distance(verdict.ours), 9) <= claim.tolerance
    return verdict if within else replace(verdict, status="MISS")


def _values(claim: Claim, records: Sequence[Record]) -> tuple[float, ...]:
    rule = claim.ours.get("rule", "last")
    values = []
    for record in _matching(claim, records):
        if "attack" in claim.ours:
            metrics = _follow(record, ["checkpoints", rule, "metrics"]) or {}
            value = _percent(metrics, claim.ours["attack"], claim.ours.get("over"))
            values += [] if value is None else [value]
        elif (value := _follow(record, claim.ours["path"])) is not None:
            values.append(float(value))
    return tuple(values)


def _matching(claim: Claim, records: Sequence[Record], label: str | None = None) -> list[Record]:
    """The records that meet the claim's conditions; `label` instead of the claim's own."""
    conditions = {key: value for key, value in claim.ours.items() if key not in PLACES}
    conditions |= {"label": label} if label else {}
    return [r for r in records if all(_field(r, key) == value for key, value in conditions.items())]


def _pairs(claim: Claim, records: Sequence[Record]) -> list[tuple[Tensor, Tensor]]:
    """Per common seed, which images the claim's network and the other one have right, the same images."""
    sides = []
    for label in (claim.ours["label"], claim.ours["against"]):
        found = {}
        for record in _matching(claim, records, label):
            metrics = _follow(record, ["checkpoints", claim.ours.get("rule", "last"), "metrics"]) or {}
            if metric := metrics.get(claim.ours["attack"]):
                found[record["config"].get("seed")] = unpack_bits(metric["bits"], metric["n"])
        sides.append(found)
    own, other = sides
    sizes = {seed: min(len(own[seed]), len(other[seed])) for seed in sorted(own.keys() & other.keys())}
    return [(own[seed][:n], other[seed][:n]) for seed, n in sizes.items()]


def _interval(values: Sequence[float], pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """In points: over seeds where there are enough, else over the images of all pairs."""
    if len(values) >= FEWEST:
        return student(values)
    n = min(len(side) for pair in pairs for side in pair)
    a, b = (torch.stack([answers[:n] for answers in side]) for side in zip(*pairs, strict=True))
    low, high = paired_difference(a, b)
    return 100 * low, 100 * high


def _distinct(records: Sequence[Record]) -> list[Record]:
    """The records without those that answer like an earlier one on every image under every attack."""
    seen: dict[str, Record] = {}
    for record in records:
        metrics = _follow(record, ["checkpoints", "last", "metrics"]) or {}
        answers = sorted((name, metric["bits"]) for name, metric in metrics.items())
        seen.setdefault(str(answers or record["hash"]), record)
    return list(seen.values())


def _percent(metrics: dict[str, Any], attack: str, over: str | None) -> float | None:
    """Accuracy under `attack`, or its difference to that under `over`; None where one is missing."""
    if not {attack, over or attack} <= metrics.keys():
        return None
    if over is None:
        return 100 * metrics[attack]["accuracy"]
    sides = [unpack_bits(metrics[name]["bits"], metrics[name]["n"]) for name in (attack, over)]
    n = min(map(len, sides))
    first, second = (side[:n].double().mean().item() for side in sides)
    return 100 * (first - second)


def _field(record: Record, key: str) -> Any:
    return record[key] if key in record else record["config"].get(key)


def _follow(record: Record, path: Sequence[str]) -> Any:
    value: Any = record
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
