"""Numbers that the paper, its release or this artifact state, and whether the records bear them out.

`expected/claims.toml` holds one table per claim:

    id, statement    what is claimed, by whom
    expect           the number; or at_least / at_most for a bound
    unit             "%", "layers", ...; tolerance, in the same unit, and `why` it is that large
    ours             where our number is: `suite` and further conditions on the record (label, rule, or a
                     field of its configuration; `but`: labels that are left out), and either `attack`
                     (accuracy in percent) or `path`;
                     `against`, with `attack`: the difference to that label on the same images, in points,
                     seed by seed;
                     `over`, with `attack`: the difference to the same network under that other attack, on
                     the images that both saw, in points;
                     `before`, with `attack` and a label: the difference to the same label in that other
                     suite, which trained it otherwise, on the same images, in points, seed by seed
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gkp.study.analysis.compared import Comparison, stacked
from gkp.study.runs.record import Filed, Record
from gkp.study.runs.record_parts import Metric
from gkp.utils.files import readable_file
from gkp.utils.stats import FEWEST, paired_difference, student

CLAIMS = Path("expected") / "claims.toml"
PLACES = (
    "suite",
    "but",
    "attack",
    "path",
    "rule",
    "against",
    "over",
    "before",
)  # fields of `ours` that are no condition

COMPARED = ("against", "before")  # two networks on the same images


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
        numbers = [value for value in (self.expect, self.at_least, self.at_most) if value is not None]
        if len(numbers) != 1:
            raise ValueError(f"claim {self.id}: give exactly one of expect, at_least and at_most")
        if self.verdict not in ("ok", "miss", "open") or (self.verdict == "ok") == bool(self.explanation):
            raise ValueError(f'claim {self.id}: verdict "miss" or "open" needs an explanation, "ok" has none')
        if ("attack" in self.ours) == ("path" in self.ours) or "suite" not in self.ours:
            raise ValueError(f"claim {self.id}: ours needs a suite, and either an attack or a path")
        for word in (word for word in COMPARED if word in self.ours):
            if not {"attack", "label"} <= set(self.ours):
                raise ValueError(f"claim {self.id}: {word} needs an attack and a label")
            if self.each or self.expect is not None:
                raise ValueError(f"claim {self.id}: {word} needs a bound, at_least or at_most, and no each")
        if "over" in self.ours and ("attack" not in self.ours or "against" in self.ours):
            raise ValueError(f"claim {self.id}: over needs an attack, and no against")
        if len({"against", "over", "before"} & set(self.ours)) > 1:
            raise ValueError(f"claim {self.id}: give one of against, over and before")

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
        if not self.claim.each:
            return statistics.fmean(self.values)
        if self.claim.expect is not None:
            return max(self.values, key=self.claim.distance)
        return max(self.values) if self.claim.at_least is None else min(self.values)

    @property
    def ours_text(self) -> str:
        if self.status == "MISSING":
            return "no record"
        if "path" in self.claim.ours and len(self.values) == 1:  # a number that is counted, not trained for
            return f"{self.ours:.{self.claim.digits}f}"
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


def judge(claims: Sequence[Claim], records_of: Callable[[str], Sequence[Filed]]) -> list[Verdict]:
    """One verdict per claim; `records_of(suite)` gives the records and facts of a suite.

    A claim without a matching record, or with a NaN, is "MISSING".
    """
    suites = {suite for claim in claims for suite in (claim.ours["suite"], _other_suite(claim))}
    known = {suite: records_of(suite) for suite in suites}
    return [_judge(claim, known[claim.ours["suite"]], known[_other_suite(claim)]) for claim in claims]


def _other_suite(claim: Claim) -> str:
    """Where the network is that the claim's is compared with."""
    return str(claim.ours.get("before", claim.ours["suite"]))


def _judge(claim: Claim, records: Sequence[Filed], others: Sequence[Filed]) -> Verdict:
    interval = None
    if any(word in claim.ours for word in COMPARED):
        pairs = _pairs(claim, records, others)
        values = tuple(100 * float(a.double().mean() - b.double().mean()) for a, b in pairs)
        interval = _interval(values, pairs) if pairs else None
    else:
        values = _values(claim, _matching(claim, _distinct(records) if claim.each else records))
    if not values or not all(math.isfinite(value) for value in values):
        return Verdict(claim, values, "MISSING")
    verdict = Verdict(claim, values, "OK", interval)
    if interval and interval[0] < claim.bound < interval[1]:
        return replace(verdict, status="OPEN")
    # A number printed with two decimals and its tolerance meet in decimal, not in binary.
    within = round(claim.distance(verdict.ours), 9) <= claim.tolerance
    return verdict if within else replace(verdict, status="MISS")


def _values(claim: Claim, records: Sequence[Filed]) -> tuple[float, ...]:
    if "path" in claim.ours:
        values = [record.value(claim.ours["path"]) for record in records]
    else:
        rule = claim.ours.get("rule", "last")
        metrics = [record.metrics(rule) for record in records if isinstance(record, Record)]
        values = [_percent(by_attack, claim.ours) for by_attack in metrics]
    return tuple(float(value) for value in values if value is not None)


def _matching(claim: Claim, records: Sequence[Filed], label: str | None = None) -> list[Filed]:
    """The records that meet the claim's conditions; `label` instead of the claim's own."""
    conditions = {key: value for key, value in claim.ours.items() if key not in PLACES}
    conditions |= {"label": label} if label else {}
    left_out = claim.ours.get("but", ())
    return [record for record in records if record.meets(conditions) and record.label not in left_out]


def _pairs(claim: Claim, records: Sequence[Filed], others: Sequence[Filed]) -> list[tuple[Tensor, Tensor]]:
    """Per common seed, which images the claim's network and the other one have right, the same images."""
    attack, label, rule = claim.ours["attack"], claim.ours["label"], claim.ours.get("rule", "last")
    other = claim.ours.get("against", label)
    first, second = (
        Comparison(
            replace(r, kept={"last": r.kept[rule]})
            for r in _matching(claim, side, name)
            if isinstance(r, Record) and rule in r.kept
        )
        for side, name in ((records, label), (others, other))
    )
    return list(first.pairs((label, attack), (other, attack), second).values())


def _interval(values: Sequence[float], pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """In points: over seeds where there are enough, else over the images of all pairs."""
    if len(values) >= FEWEST:
        return student(values)
    low, high = paired_difference(*stacked(pairs))
    return 100 * low, 100 * high


def _distinct(records: Sequence[Filed]) -> list[Filed]:
    """The records without those that answer like an earlier one on every image under every attack."""
    seen: dict[object, Filed] = {}
    for record in records:
        metrics = record.metrics() if isinstance(record, Record) else {}
        answers = tuple(sorted((name, metric.bits) for name, metric in metrics.items()))
        seen.setdefault(answers or record.hash, record)
    return list(seen.values())


def _percent(metrics: Mapping[str, Metric], ours: Mapping[str, Any]) -> float | None:
    """Accuracy under the claim's attack, or its difference to that under `over`; None where one lacks."""
    found = [metrics.get(ours[name]) for name in ("attack", "over") if name in ours]
    known = [metric for metric in found if metric]
    if len(known) < len(found):
        return None
    if len(known) == 1:
        return 100 * known[0].accuracy
    n = min(metric.n for metric in known)
    first, second = (metric.right[:n].double().mean().item() for metric in known)
    return 100 * (first - second)
