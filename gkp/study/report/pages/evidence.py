"""What generated blocks are made from, and claims that are asked on the spot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gkp.study.analysis import claims
from gkp.study.analysis.claims import Claim, Verdict
from gkp.study.analysis.compared import Comparison
from gkp.study.report.tables import to_markdown
from gkp.study.runs.store import Store

WORDS = {"OK": "yes", "MISS": "no", "OPEN": "open", "MISSING": "no record"}


@dataclass(frozen=True)
class Evidence:
    """The records, the verdict of every claim, and how many printed numbers wait, by suite.

    up: the path from the page to the repository, "" for README.md and "../" for a page in docs/.
    read: suite -> its comparison, once it was asked for.
    """

    store: Store
    judged: Sequence[Verdict] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    up: str = ""
    read: dict[str, Comparison] = field(default_factory=dict, repr=False, compare=False)

    def comparison(self, suite: str) -> Comparison:
        """The records of a suite; many blocks ask for the same ones."""
        if suite not in self.read:
            self.read[suite] = Comparison(self.store.of_suite(suite))
        return self.read[suite]

    def verdict(self, name: str) -> Verdict:
        """The verdict of the claim with that id; ValueError when there is none."""
        for verdict in self.judged:
            if verdict.claim.id == name:
                return verdict
        raise ValueError(f"{claims.CLAIMS} has no claim {name!r}: correct the id, or add the claim")

    def difference(self, suite: str, attack: str, against: str, label: str = "sr-gkp") -> Verdict:
        """Whether `label` keeps what `against` has under an attack: the claim about it, or one without id."""
        statement = f"{label} keeps what {against} has"
        return self.asked(statement, {"suite": suite, "label": label, "against": against, "attack": attack})

    def longer(self, suite: str, before: str, attack: str, label: str) -> Verdict:
        """Whether `label` keeps in one suite what its shorter training in another, `before`, left it."""
        statement = f"{label} keeps what it has in {before}"
        return self.asked(statement, {"suite": suite, "label": label, "before": before, "attack": attack})

    def asked(self, statement: str, ours: Mapping[str, Any]) -> Verdict:
        """The verdict of the claim about just that, or one on the spot, without id.

        A claim about a seed is the same as one about all where the networks have no other in common.
        """
        same = [dict(ours), *({**ours, "seed": seed} for seed in self._only_seed(ours))]
        for verdict in self.judged:
            if verdict.claim.ours in same:
                return verdict
        claim = Claim("", statement, "points", "", dict(ours), at_least=0.0)
        return claims.judge([claim], self.store.entries)[0]

    def _only_seed(self, ours: Mapping[str, Any]) -> set[int]:
        """The seed that what is compared has in common; nothing where there are several."""
        places = [(ours["suite"], ours.get("label")), (ours["suite"], ours.get("against"))]
        places.append((ours.get("before", ours["suite"]), ours.get("label")))
        seeds = [self.comparison(suite).seeds_of_each.get(str(label)) for suite, label in places]
        common = set.intersection(*filter(None, seeds), *([set()] if not any(seeds) else []))
        return common if len(common) == 1 else set()

    def notebook(self, name: str) -> str:
        """A link to a notebook, as seen from the page."""
        return f"[{name}]({self.up}notebooks/{name}.ipynb)"

    def short_link(self, name: str) -> str:
        """The same, by the notebook's number alone."""
        return f"[{name.partition('_')[0]}]({self.up}notebooks/{name}.ipynb)"


def answer(verdicts: Sequence[Verdict]) -> str:
    """ "yes" or "no" where all verdicts are alike, else how many of each: "1 no, 5 open"."""
    words = [WORDS[verdict.status] for verdict in verdicts]
    kinds = [word for word in WORDS.values() if word in words]
    if len(kinds) == 1:
        return kinds[0]
    return ", ".join(f"{words.count(word)} {word}" for word in kinds)


def compact(frame: pd.DataFrame) -> str:
    """A pipe table without the blanks that align its source."""
    return re.sub(r" +\|", " |", re.sub(r":-+", ":--", to_markdown(frame)))
