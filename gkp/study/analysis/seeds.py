"""What a seed moves: the spread over seeds, and differences between methods paired by seed.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gkp.study.analysis.comparison import compared, distinct
from gkp.study.analysis.labels import attack_titles, ordered
from gkp.study.analysis.paired import bits
from gkp.study.runs.store import Record
from gkp.utils.stats import FEWEST, student


def spread(records: Iterable[Record], names: Sequence[str], rule: str = "last") -> pd.DataFrame:
    """configuration (JSON), label, epochs, attack, seeds, mean, deviation, range (points).

    One row per configuration and attack; only those that were run with several seeds, everything else alike.
    """
    groups: dict[tuple[str, str, int, str], list[float]] = {}
    for record in {record["hash"]: record for record in compared(records)}.values():
        same = {key: value for key, value in record["config"].items() if key != "seed"}
        epochs = (same.get("recipe") or {}).get("epochs", 0)
        for name in names:
            metric = record["checkpoints"].get(rule, {}).get("metrics", {}).get(name)
            if metric:
                key = (json.dumps(same, sort_keys=True), record["label"], epochs, name)
                groups.setdefault(key, []).append(100 * metric["accuracy"])
    columns = ["configuration", "label", "epochs", "attack", "seeds", "mean", "deviation", "range"]
    found = [
        (*key, len(v), float(np.mean(v)), float(np.std(v, ddof=1)), max(v) - min(v))
        for key, v in groups.items()
        if len(v) > 1
    ]
    return pd.DataFrame(found, columns=columns)


def spread_text(records: Sequence[Record], names: Sequence[str]) -> pd.DataFrame:
    """`spread` as a text table: one row per configuration, "mean ± deviation (range)" per attack."""
    found, titles = spread(records, names), attack_titles(records)
    cells = found.assign(
        attack=found.attack.map(titles),
        cell=[f"{r.mean:.2f} ± {r.deviation:.2f} ({r.range:.2f})" for r in found.itertuples()],
    )
    place = {label: number for number, label in enumerate(ordered(cells.label))}
    lines = []
    for (_, label, epochs, n), part in cells.groupby(["configuration", "label", "epochs", "seeds"]):
        line = {"network": label, "epochs": str(epochs), "seeds": str(n)}
        lines.append(line | dict(zip(part.attack, part.cell, strict=True)))
    return pd.DataFrame(sorted(lines, key=lambda line: place[line["network"]])).fillna("–")


def against(
    records: Sequence[Record], attack: str, control: str, confidence: float = 0.95, rule: str = "last"
) -> pd.DataFrame:
    """method, differences (points, one per common seed), mean, low, high: each method minus `control`.

    Seeds draw the order of the images and what augmentation does to them, alike for all methods, so that
    they are paired. The interval is Student's, over seeds: it is about other trainings, as McNemar's test is
    about other images. Rows: methods with three seeds or more in common with the control.
    """
    reference, rows = bits(records, control, attack, rule), []
    for label in distinct(records, rule):
        own = bits(records, label, attack, rule)
        common = sorted(own.keys() & reference.keys())
        if label == control or len(common) < FEWEST:
            continue
        sizes = {seed: min(len(own[seed]), len(reference[seed])) for seed in common}
        gains = [
            100 * (own[s][:n].double().mean() - reference[s][:n].double().mean()).item()
            for s, n in sizes.items()
        ]
        rows.append((label, gains, np.mean(gains), *student(gains, confidence)))
    return pd.DataFrame(rows, columns=["method", "differences", "mean", "low", "high"])


def against_text(records: Sequence[Record], attacks: Sequence[str], control: str) -> pd.DataFrame:
    """Text table: "-2.20 (-2.81 to -1.59)" per method and attack; the intervals are not corrected."""
    titles, columns = attack_titles(records), {}
    for attack in attacks:
        cells = {
            row.method: f"{row.mean:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
            for row in against(records, attack, control).itertuples()
        }
        columns[titles.get(attack, attack)] = pd.Series(cells, dtype=object)
    return pd.DataFrame(columns).rename_axis("method").reset_index()
