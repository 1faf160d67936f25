"""The same pruned networks fine-tuned in several ways: what a way brings, beside the choice of a structure.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from gkp.attacks import Attack
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import gain
from gkp.study.analysis.labels import BENIGN
from gkp.study.analysis.method import anova
from gkp.study.analysis.method.factors import corrected, tested
from gkp.study.analysis.paired import alike
from gkp.study.runs import suites
from gkp.study.runs.pace import passes
from gkp.study.runs.store import Store
from gkp.study.runs.suites.stages import FINETUNINGS

# Under which fine-tunings are compared.
ROBUST = Attack("pgd", eps=0.5 / 255, step=0.125 / 255, iterations=10).name
FACTORS = ("structure", "fine_tuning")


def ways(store: Store) -> dict[str, Comparison]:
    """How the finalists were fine-tuned -> the records of their suite, seed 0, as far as there are any."""
    return {
        name: Comparison(r for r in store.of_suite(suite) if r.run.seed == 0 and r.label in _finalists())
        for name, suite in FINETUNINGS.items()
    }


def _finalists() -> set[str]:
    return {run.label for run in suites.get(FINETUNINGS["distillation"]).runs}


def ways_text(finetunings: Mapping[str, Comparison]) -> pd.DataFrame:
    """fine-tuning, epochs, passes over the images, records of all asked for, seconds of a training."""
    rows = []
    for name, comparison in finetunings.items():
        recipe = next(run.recipe for run in suites.get(FINETUNINGS[name]).runs if run.recipe)
        row = {"fine-tuning": name, "epochs": str(recipe.epochs)}
        row["passes"] = f"{recipe.epochs * passes(recipe):.1f}"
        row["trainings there"] = f"{len(comparison)} of {len(_finalists())}"
        seconds = [record.training_seconds for record in comparison]
        rows.append(row | {"seconds each": f"{fmean(seconds):.0f}" if seconds else "–"})
    return pd.DataFrame(rows)


def table_text(finetunings: Mapping[str, Comparison], names: Sequence[str]) -> pd.DataFrame:
    """network, and its accuracy per attack and fine-tuning: one training, the first column's best first."""
    plain = finetunings["plain"]
    rows: dict[str, dict[str, str]] = {label: {} for label in plain.labels}
    for name in names:
        for way, comparison in finetunings.items():
            for record in comparison:
                metric = record.metrics().get(name)
                if metric and record.label in rows:
                    rows[record.label][f"{plain.titles[name]}, {way}"] = f"{100 * metric.accuracy:.1f}"
    frame = pd.DataFrame([{"network": label} | row for label, row in rows.items()]).fillna("–")
    if len(frame.columns) < 2:  # no records
        return frame
    return frame.sort_values(
        frame.columns[1], ascending=False, key=lambda texts: pd.to_numeric(texts, errors="coerce")
    )


def variance_text(finetunings: Mapping[str, Comparison], names: Sequence[str]) -> pd.DataFrame:
    """Which carries more, the choice of a structure or of a fine-tuning: `anova.text`, a row per attack.

    Over the pruned networks that have every fine-tuning; no rows before two of them do.
    """
    rows = []
    for name in names:
        frame = _crossed(finetunings, name)
        if anova.separable(frame, FACTORS):
            about = {"attack": finetunings["plain"].titles[name], "networks": str(len(frame))}
            rows += [about | row for row in anova.text(anova.variance(frame, FACTORS))]
    return pd.DataFrame(rows).fillna("–")


def _crossed(finetunings: Mapping[str, Comparison], attack: str) -> pd.DataFrame:
    """structure, fine_tuning, accuracy (percent) of the pruned networks that have every fine-tuning."""
    frame = pd.DataFrame(
        [
            {"structure": record.label, "fine_tuning": way, "accuracy": 100 * metric.accuracy}
            for way, comparison in finetunings.items()
            for record in comparison
            if record.pruned and (metric := record.metrics().get(attack))
        ],
        columns=[*FACTORS, "accuracy"],
    )
    return frame[frame.groupby("structure").fine_tuning.transform("nunique") == len(finetunings)]


def cheaper(finetunings: Mapping[str, Comparison], attack: str) -> str:
    """What each fine-tuning adds on average under the attack, beside how far structures lie apart."""
    plain, lines = finetunings["plain"], []
    pruned = [r for r in plain if r.pruned and attack in r.metrics()]
    for name, other in [*finetunings.items()][1:]:
        moved = [
            [alike(other, (label, under), (label, under), plain) for under in (attack, BENIGN)]
            for label in other.labels
        ]
        gains = [[gain(*pair) for pair in pairs] for pairs in moved if all(len(a) for a, _ in pairs)]
        if gains:
            robust, clean = (fmean(column) for column in zip(*gains, strict=True))
            several = f"{len(gains)} network{'s' * (len(gains) > 1)}"
            lines.append(f"- {name}: **{robust:+.1f} points** ({clean:+.1f} clean), {several}")
        else:
            lines.append(f"- {name}: not yet measured, no training is there")
    right = [100 * record.metrics()[attack].accuracy for record in pruned]
    if len(finetunings) and any("**" in line for line in lines) and right:
        apart = f"**{max(right) - min(right):.1f} points** from the worst to the best"
        lines.append(f"- the choice of a structure: {apart} of {len(right)} pruned ones, one training each")
    return "\n".join(lines)


def retrained(comparison: Comparison, other: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """What another fine-tuning of the same pruned networks changes: `other` minus `comparison`.

    label, attack and the columns of `contrasts`, a row per network of both; Holm over all rows.
    """
    common = [label for label in other.labels if label in {record.label for record in comparison.trained}]
    rows = []
    for label in common:
        for name in names:
            a, b = alike(other, (label, name), (label, name), comparison)
            if len(a):
                rows.append({"label": label, "attack": name} | tested(a, b))
    return corrected(rows, ["label", "attack"])
