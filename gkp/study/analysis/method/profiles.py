"""Sentences and tables of the profiles' suite and of its networks fine-tuned otherwise, for what is there.

Accuracies are in percent, differences in points. A cell without a record has a dash.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from gkp.attacks import Attack
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import gain, mean_size, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROLS
from gkp.study.analysis.method import factors
from gkp.study.analysis.paired import LEVEL, alike, p_text
from gkp.study.facts.timings import FILTERS, FILTERS_EARLY, GROUPED, GROUPED_EARLY
from gkp.study.runs import protocols, suites
from gkp.study.runs.pace import passes
from gkp.study.runs.store import Store
from gkp.study.runs.suites import stages
from gkp.study.runs.suites.stages import FINETUNINGS

# Under which fine-tunings are compared.
ROBUST = Attack("pgd", eps=0.5 / 255, step=0.125 / 255, iterations=10).name


def there(store: Store, suite: str) -> str:
    """ "**19 of 58 runs** of cifar10-resnet20-profiles have a record, 18 of them trainings of 8 networks"."""
    runs, recorded = suites.get(suite).ordered(), Comparison(store.of_suite(suite))
    networks = len({record.label for record in recorded.trained})
    done = f"**{len(recorded)} of {len(runs)} runs** of `{suite}` have a record"
    return f"{done}, {len(recorded.trained)} of them trainings of {networks} networks."


def missing(store: Store, suite: str) -> str:
    """What a suite lacks: "Missing: sr-gkp-b (seeds 1, 2), ..."; "" when nothing does."""
    recorded = {record.hash for record in store.of_suite(suite)}
    seeds: dict[str, list[str]] = {}
    for run in suites.get(suite).ordered():
        if run.hash not in recorded:
            seeds.setdefault(run.label, []).append(str(run.seed))
    named = [
        f"{label} (seed{'s' * (len(numbers) > 1)} {', '.join(numbers)})" for label, numbers in seeds.items()
    ]
    return f"Missing: {'; '.join(named)}." if named else ""


def sharp(comparison: Comparison) -> list[str]:
    """Names of the strongest attacks that the suite asks for and a network has met, by eps."""
    names = [entry.attack.name for entry in protocols.strong_pgd(seed=1)]
    return [name for name in names if name in comparison.titles] or [sound_attack(comparison)]


# ---- tests as text -------------------------------------------------------------------------------


def tested_text(frame: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Rows of `factors.contrasts`, `finalists` or `retrained`, a column per attack.

    A cell is "+1.20 better (p = 0.012)", without a word where it is not significant, or a dash.
    """
    keys = [name for name in ("factor", "level", "against", "label") if name in frame]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in frame.to_dict("records"):
        word = f" {row['verdict']}" if row["p"] < LEVEL else ""
        text = f"{row['difference']:+.2f}{word} ({p_text(row['p'])})"
        line = lines.setdefault(tuple(row[key] for key in keys), {"networks": str(row["networks"])})
        line[titles[row["attack"]]] = text
    rows = [dict(zip(keys, names, strict=True)) | line for names, line in lines.items()]
    return pd.DataFrame(rows).fillna("–")


def variance_text(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """attack, profiles, factor, share of the variance, best and worst level and the points between them.

    Of all networks, and without those of the reverse profile, which is there to show the price of a bad one
    and decides how much a profile seems to carry. No rows where too few are there to tell factors apart.
    """
    rows = []
    for name, (profiles, networks) in itertools.product(names, _without_reverse(comparison).items()):
        if not factors.separable(networks, name):
            continue
        for row in factors.variance(networks, name).to_dict("records"):
            text = {"attack": comparison.titles[name], "profiles": profiles, "factor": row["factor"]}
            text["share of the variance"] = f"{row['share']:.0f} %"
            if row["factor"] != "rest":
                text["best against worst"] = f"{row['best']} against {row['worst']}"
                text["points"] = f"{row['points']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
            rows.append(text)
    return pd.DataFrame(rows).fillna("–")


def _without_reverse(comparison: Comparison) -> dict[str, Comparison]:
    """Words -> the networks, whole and without those of the reverse profile where it has any."""
    reverse = {
        r.hash for by_factor, r in factors.crossed(comparison) if by_factor["profile"] == stages.REVERSE
    }
    networks = {"all": comparison}
    if reverse:
        networks[f"without {stages.REVERSE}"] = Comparison(r for r in comparison if r.hash not in reverse)
    return networks


# ---- costs and other fine-tunings ----------------------------------------------------------------


def costs_text(comparison: Comparison) -> pd.DataFrame:
    """network, MACs, parameters, and both as shares of the unpruned network's, in the usual convention."""
    rows = []
    for label in comparison.labels:
        macs, params = mean_size(comparison, label)
        before = next(r.cost.before.usual for r in comparison if r.label == label)
        row = {"network": label, "MACs (M)": f"{macs:.2f}", "params (M)": f"{params:.3f}"}
        row["MACs left"] = f"{100e6 * macs / before.macs:.1f} %"
        rows.append(row | {"params left": f"{100e6 * params / before.params:.1f} %"})
    return pd.DataFrame(rows)


def latency(measured: Mapping[str, Any]) -> str:
    """The times of forward passes of a ResNet-20 pruned at one rate and by the profile, in a sentence.

    measured: the networks of the fact `latency`: {network: {batch: {execution: seconds, ratio, ...}}}.
    """
    pruned = {GROUPED: "grouped kernels at one rate", GROUPED_EARLY: f"of `{factors.BEST}`"}
    pruned |= {FILTERS: "filters removed at one rate", FILTERS_EARLY: f"and {stages.EARLY}"}
    parts = []
    for execution, words in pruned.items():
        times = [f"**{by[execution]['ratio']:.1f}** at {batch}" for batch, by in measured["resnet20"].items()]
        parts.append(f"{words} {', '.join(times)}")
    return f"Time of a forward pass, over the unpruned ResNet-20's: {'; '.join(parts)}."


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


def cheaper(finetunings: Mapping[str, Comparison], attack: str) -> str:
    """What each fine-tuning adds on average under the attack, beside how far structures lie apart."""
    plain, lines = finetunings["plain"], []
    pruned = [r for r in plain if r.label not in CONTROLS and attack in r.metrics()]
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
