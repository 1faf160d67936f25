"""How fast things are beside other ways to do them: the records of `python -m benchmarks` as tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gkp.study.analysis.method.costs import measured_on, seconds_text
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

SUITE = "benchmarks"
COLUMNS = ("part", "what", "ours", "against", "seconds", "against_seconds", "ratio", "low", "high", "goal")


def facts(root: str | Path) -> list[Fact]:
    """The records of the benchmarks, by name; [] where nothing was measured."""
    return sorted(Store(root).facts(SUITE), key=lambda fact: fact.label)


def ratios(root: str | Path, part: str | None = None) -> pd.DataFrame:
    """One row per comparison with COLUMNS, of one part (the name of a record) or of all.

    ratio: how many times as fast as what it is measured against, low and high its quartiles over the rounds.
    """
    rows = [
        {"part": fact.label, **row}
        for fact in facts(root)
        if part in (None, fact.label)
        for row in fact.facts["rows"]
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def ratios_text(frame: pd.DataFrame) -> pd.DataFrame:
    """`ratios` as words: times, the ratio with its quartiles, the goal and whether it is met."""
    rows = []
    for row in frame.itertuples():
        times = f"{row.ratio:.2f}" + (f" ({row.low:.2f} to {row.high:.2f})" if row.low < row.high else "")
        goal = "–" if pd.isna(row.goal) else f"{row.goal:g}: {'met' if row.ratio >= row.goal else 'missed'}"
        rows.append(
            {
                "what": row.what,
                "ours": f"{row.ours}, {seconds_text(row.seconds)}",
                "against": f"{row.against}, {seconds_text(row.against_seconds)}",
                "times as fast": times,
                "goal": goal,
            }
        )
    return pd.DataFrame(rows)


def machines(root: str | Path, part: str | None = None) -> str:
    """Where it was measured: "1 thread of cpu: ...", each machine once."""
    return "; ".join(sorted({measured_on(fact) for fact in facts(root) if part in (None, fact.label)}))
