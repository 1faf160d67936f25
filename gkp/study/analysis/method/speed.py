"""How fast things are beside other ways to do them: the records of `python -m benchmarks` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.study.analysis.labels import network_title
from gkp.study.analysis.method.costs import measured_on, seconds_text
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store

SUITE = "benchmarks"
BETAS = {"reference": "the released code", "exact": "Eq. 3"}
TIMES = ("seconds", "against_seconds", "ratio", "low", "high")
COLUMNS = ("part", "what", "ours", "against", *TIMES, "at_peak", "goal", "earlier")


def facts(root: str | Path) -> list[Fact]:
    """The records of the benchmarks, by name; [] where nothing was measured."""
    return sorted(Store(root).facts(SUITE), key=lambda fact: fact.label)


def ratios(root: str | Path, part: str | None = None) -> pd.DataFrame:
    """One row per comparison with COLUMNS, of one part (the name of a record) or of all.

    ratio: how many times as fast as what it is measured against, low and high its quartiles over the rounds;
    earlier: the ratios of other runs; at_peak: the ratio of the work at the processor's peak. None without.
    """
    rows = [
        {"part": fact.label, **row}
        for fact in facts(root)
        if part in (None, fact.label)
        for row in fact.facts.get("rows", ())
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def ratios_text(frame: pd.DataFrame) -> pd.DataFrame:
    """`ratios` as words: times, the ratio with its quartiles, the goal and whether it is met."""
    rows = []
    for row in frame.itertuples():
        digits = 3 if row.ratio < (row.goal or 0) <= round(row.ratio, 2) else 2  # a near miss looks like one
        spread = f" ({row.low:.2f} to {row.high:.2f})" if row.low < row.high else ""
        others = row.earlier if isinstance(row.earlier, list) else []
        goal = "–" if pd.isna(row.goal) else f"{row.goal:g}: {'met' if row.ratio >= row.goal else 'missed'}"
        rows.append(
            {
                "what": row.what,
                "ours": f"{row.ours}, {seconds_text(row.seconds)}",
                "against": f"{row.against}, {seconds_text(row.against_seconds)}",
                "times as fast": f"{row.ratio:.{digits}f}{spread}",
                "at the peak": "–" if pd.isna(row.at_peak) else f"{row.at_peak:.2f}",
                "in other runs": ", ".join(f"{old:.2f}" for old in others) or "–",
                "goal": goal,
            }
        )
    table = pd.DataFrame(rows)
    optional = {"at the peak": "at_peak", "in other runs": "earlier"}
    empty = [title for title, column in optional.items() if frame[column].isna().all()]
    return table.drop(columns=empty, errors="ignore")


def roofline_text(root: str | Path) -> pd.DataFrame:
    """The least time of pruned networks by the dense one's on this machine, all channels gathered."""
    measured = next((fact.facts for fact in facts(root) if fact.label == "deployment"), {})
    rows = [
        {
            "network": network_title(row["network"]),
            "batch": row["batch"],
            "groups": row["groups"],
            "least time, the dense network's is 1": f"{row['of_dense']:.2f}",
        }
        for row in measured.get("roofline", ())
    ]
    return pd.DataFrame(rows)


def text(root: str | Path, part: str | None = None) -> pd.DataFrame:
    """A part's record, or the ratios of all, as words; without rows where it was not measured."""
    measured = {fact.label: fact.facts for fact in facts(root)}.get(part or "", {})
    if "shares" in measured:
        return shares_text(measured["shares"])
    if "mean_gap_percent" in measured:
        return gaps_text(measured)
    return ratios_text(ratios(root, part))


def shares_text(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What it costs that groups share sets of kept channels: a row for each search and `share`."""
    columns = {
        "search": [f"beta of {BETAS[row['beta']]}" for row in rows],
        "share": [f"{row['share']:g}" for row in rows],
        "sets of a layer, mean": [f"{row['sets']:.1f}" for row in rows],
        "Eq. 3, share 0 is 100 %": [f"{row['eq3_percent']:.1f} %" for row in rows],
        "worst layer": [f"{row['eq3_least_percent']:.1f} %" for row in rows],
        "kept kernels that changed": [f"{row['changed_percent']:.1f} %" for row in rows],
    }
    return pd.DataFrame(columns)


def gaps_text(measured: Mapping[str, Any]) -> pd.DataFrame:
    """How much more than the optimum of Eq. 3 the beam's sets cost: a row for each layer, and all of them."""
    rows = [
        {
            "layer": row["layer"],
            "proved": f"{row['proved']} of {row['groups']} groups",
            **{f"beta of {BETAS[beta]}": _spread(gaps) for beta, gaps in sorted(row["gap_percent"].items())},
        }
        for row in measured["layers"]
    ]
    whole = {
        beta: [gap for row in measured["layers"] for gap in row["gap_percent"][beta]]
        for beta in sorted(measured["mean_gap_percent"])
    }
    every = {f"beta of {BETAS[beta]}": _spread(gaps) for beta, gaps in whole.items()}
    rows.append({"layer": "all", "proved": f"{measured['proved']} of {measured['groups']} groups", **every})
    return pd.DataFrame(rows)


def _spread(percent: Sequence[float]) -> str:
    """Mean and range of percentages."""
    mean = sum(percent) / len(percent)
    return f"{mean:.2f} % ({min(percent):.2f} to {max(percent):.2f})"


def by_size(root: str | Path) -> pd.DataFrame:
    """Seconds of the search of one square layer of random weights: width, groups, median; recorded rows."""
    rows = [row for fact in facts(root) for row in fact.facts.get("by_size", ())]
    return pd.DataFrame(rows, columns=["width", "groups", "median", "least", "most"])


def machines(root: str | Path, part: str | None = None) -> str:
    """Where it was measured: "1 thread of cpu: ...", each machine once."""
    return "; ".join(sorted({measured_on(fact) for fact in facts(root) if part in (None, fact.label)}))
