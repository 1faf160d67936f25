"""What a seed moves: the spread over seeds, and differences between methods paired by seed.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import gain
from gkp.study.analysis.labels import ordered
from gkp.study.runs.record import run_config
from gkp.utils.stats import FEWEST, student


def spread(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """configuration (JSON), label, epochs, attack, seeds, mean, deviation, range (points).

    One row per configuration and attack; only those that were run with several seeds, everything else alike.
    """
    groups: dict[tuple[str, str, int, str], list[float]] = {}
    for record in {record.hash: record for record in comparison.compared}.values():
        same = json.dumps(run_config(replace(record.run, seed=0)), sort_keys=True)
        for name in names:
            if metric := record.metrics().get(name):
                key = (same, record.label, record.run.epochs, name)
                groups.setdefault(key, []).append(100 * metric.accuracy)
    columns = ["configuration", "label", "epochs", "attack", "seeds", "mean", "deviation", "range"]
    rows = [
        (*key, len(v), float(np.mean(v)), float(np.std(v, ddof=1)), max(v) - min(v))
        for key, v in groups.items()
        if len(v) > 1
    ]
    return pd.DataFrame(rows, columns=columns)


def spread_text(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """`spread` as a text table: one row per configuration, "mean ± deviation (range)" per attack."""
    frame = spread(comparison, names)
    cells = frame.assign(
        attack=frame.attack.map(comparison.titles),
        cell=[f"{r.mean:.2f} ± {r.deviation:.2f} ({r.range:.2f})" for r in frame.itertuples()],
    )
    place = {label: number for number, label in enumerate(ordered(cells.label))}
    lines = []
    for (_, label, epochs, n), part in cells.groupby(["configuration", "label", "epochs", "seeds"]):
        line = {"network": label, "epochs": str(epochs), "seeds": str(n)}
        lines.append(line | dict(zip(part.attack, part.cell, strict=True)))
    return pd.DataFrame(sorted(lines, key=lambda line: place[line["network"]])).fillna("–")


def gains(comparison: Comparison, attack: str, control: str) -> dict[str, list[float]]:
    """Label of each other network -> its points above `control`, one per seed that both have."""
    pairs = {label: comparison.pairs((label, attack), (control, attack)) for label in comparison.labels}
    return {
        label: [gain(*pair) for pair in by_seed.values()]
        for label, by_seed in pairs.items()
        if label != control
    }


def against(comparison: Comparison, attack: str, control: str, confidence: float = 0.95) -> pd.DataFrame:
    """method, differences (points, one per common seed), mean, low, high: each method minus `control`.

    Seeds draw the order of the images and what augmentation does to them, alike for all methods, so that
    they are paired. The interval is Student's, over seeds: it is about other trainings, as McNemar's test is
    about other images. Rows: methods with three seeds or more in common with the control.
    """
    rows = [
        (label, differences, np.mean(differences), *student(differences, confidence))
        for label, differences in gains(comparison, attack, control).items()
        if len(differences) >= FEWEST
    ]
    return pd.DataFrame(rows, columns=["method", "differences", "mean", "low", "high"])


def against_text(comparison: Comparison, attacks: Sequence[str], control: str) -> pd.DataFrame:
    """Text table: "-2.20 (-2.81 to -1.59)" per method and attack; the intervals are not corrected."""
    columns = {}
    for attack in attacks:
        cells = {
            row.method: f"{row.mean:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
            for row in against(comparison, attack, control).itertuples()
        }
        columns[comparison.titles.get(attack, attack)] = pd.Series(cells, dtype=object)
    return pd.DataFrame(columns).rename_axis("method").reset_index()


def in_common(comparison: Comparison, labels: Iterable[str]) -> int:
    """How many seeds all these networks have: on so many trainings a comparison of them rests."""
    return len(set.intersection(*(comparison.seeds_of_each[label] for label in labels)))


def counted(comparison: Comparison, noun: str = "seed") -> str:
    """ "1 seed", "2 seeds" or, where not all networks have as many, "1 to 3 seeds"."""
    counts = [len(seeds) for seeds in comparison.seeds_of_each.values()]
    fewest, most = min(counts), max(counts)
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{number} {noun}{'s' * (most > 1)}"
