"""Numbers that the paper, its release or this artifact state, and whether the records bear them out.

`expected/claims.toml` holds one table per claim:

    id, statement    what is claimed, by whom
    expect           the number; or at_least / at_most for a bound
    unit             "%", "layers", ...; tolerance, in the same unit, and `why` it is that large
    ours             where our number is: `suite` and further conditions on the record (label, rule, or a
                     field of its configuration), and either `attack` (accuracy in percent) or `path`;
                     `against`, with `attack`: the difference to that label, in points, seed by seed;
                     `over`, with `attack`: the difference to the same network under that other attack, on
                     the images that both saw, in points
    each             true: every matching record has to meet the claim, the worst one is shown
    verdict          "miss" where an honest miss is known; then `explanation` says why

The numbers of the paper's own tables are claims without a table each (`gkp.published.claims`); their known
misses stand under `[explained]`, id = "why".
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkp.evaluate import unpack_bits
from gkp.records import Record

CLAIMS = Path("expected") / "claims.toml"


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
        if self.verdict not in ("ok", "miss") or (self.verdict == "miss") != bool(self.explanation):
            raise ValueError(f'claim {self.id}: a verdict "miss" needs an explanation, "ok" has none')
        if ("attack" in self.ours) == ("path" in self.ours) or "suite" not in self.ours:
            raise ValueError(f"claim {self.id}: ours needs a suite, and either an attack or a path")
        if "against" in self.ours and not {"attack", "label"} <= set(self.ours):
            raise ValueError(f"claim {self.id}: against needs an attack and a label")
        if "over" in self.ours and ("attack" not in self.ours or "against" in self.ours):
            raise ValueError(f"claim {self.id}: over needs an attack, and no against")

    @property
    def wanted(self) -> str:
        for word, value in (("", self.expect), (">= ", self.at_least), ("<= ", self.at_most)):
            if value is not None:
                return f"{word}{value:.{self.digits}f}"
        raise AssertionError

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
    """`status` is "OK", "MISS", or "MISSING" without a usable record; `values` are ours, one per record."""

    claim: Claim
    values: tuple[float, ...]
    status: str

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
        spread = f" ± {statistics.stdev(self.values):.2f}" if self._has_spread else ""
        count = "worst of " if self.claim.each else "n="
        return f"{self.ours:.{self.claim.digits}f}{spread} ({count}{len(self.values)})"

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
        tables = tomllib.loads(Path(path).read_text("utf-8")).get("claim", [])
        claims = [Claim(**table) for table in tables]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
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
    return [_judge(claim, _values(claim, known[claim.ours["suite"]])) for claim in claims]


def _judge(claim: Claim, values: tuple[float, ...]) -> Verdict:
    if not values or not all(math.isfinite(value) for value in values):
        return Verdict(claim, values, "MISSING")
    verdict = Verdict(claim, values, "OK")
    # A number printed with two decimals and its tolerance meet in decimal, not in binary.
    within = round(claim.distance(verdict.ours), 9) <= claim.tolerance
    return verdict if within else Verdict(claim, values, "MISS")


def _values(claim: Claim, records: Sequence[Record]) -> tuple[float, ...]:
    places = ("suite", "attack", "path", "rule", "against", "over")
    if other := claim.ours.get("against"):
        own, theirs = (_by_seed(_plain(claim, label), records) for label in (claim.ours["label"], other))
        return tuple(own[seed] - theirs[seed] for seed in sorted(own.keys() & theirs.keys(), key=str))
    conditions = {key: value for key, value in claim.ours.items() if key not in places}
    rule = claim.ours.get("rule", "last")
    values = []
    for record in records:
        if not all(_field(record, key) == value for key, value in conditions.items()):
            continue
        if "attack" in claim.ours:
            metrics = _follow(record, ["checkpoints", rule, "metrics"]) or {}
            value = _percent(metrics, claim.ours["attack"], claim.ours.get("over"))
            values += [] if value is None else [value]
        elif (value := _follow(record, claim.ours["path"])) is not None:
            values.append(float(value))
    return tuple(values)


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


def _by_seed(claim: Claim, records: Sequence[Record]) -> dict[Any, float]:
    """Seed -> value of the claim."""
    seeds = {record["config"].get("seed") for record in records}
    found = {}
    for seed in seeds:
        values = _values(claim, [r for r in records if r["config"].get("seed") == seed])
        if values:
            found[seed] = statistics.fmean(values)
    return found


def _plain(claim: Claim, label: str) -> Claim:
    """The same claim about the accuracy of `label` itself."""
    ours = {key: value for key, value in claim.ours.items() if key != "against"}
    return replace(claim, ours=ours | {"label": label})


def _field(record: Record, key: str) -> Any:
    return record[key] if key in record else record["config"].get(key)


def _follow(record: Record, path: Sequence[str]) -> Any:
    value: Any = record
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
