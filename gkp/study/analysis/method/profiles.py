"""Sentences and tables of the profiles' suite, for what is there.

Accuracies are in percent, differences in points. A cell without a record has a dash.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import mean_size, sound_attack
from gkp.study.analysis.labels import attack_title
from gkp.study.analysis.method import anova, factors
from gkp.study.analysis.paired import LEVEL, p_text
from gkp.study.facts.timings import FILTERS, FILTERS_EARLY, GROUPED, GROUPED_EARLY
from gkp.study.runs import protocols, suites
from gkp.study.runs.store import Store, missing_entries
from gkp.study.runs.suites import stages

# Levels that cost the most: half of the layers lose nearly all; late stages lose most.
EXTREME = (("which", "first"), ("profile", stages.REVERSE))


def there(store: Store, suite: str) -> str:
    """ "**19 of 58 runs** of cifar10-resnet20-profiles have a record, 18 of them trainings of 8 networks"."""
    runs, recorded = suites.get(suite).ordered(), Comparison(store.of_suite(suite))
    networks = len({record.label for record in recorded.trained})
    done = f"**{len(recorded)} of {len(runs)} runs** of `{suite}` have a record"
    return f"{done}, {len(recorded.trained)} of them trainings of {networks} networks."


def missing(store: Store, suite: str) -> str:
    """What a suite lacks: "Missing: sr-gkp-b (seeds 1, 2). Without PGD-10 1/255: 2 runs.", or ""."""
    recorded = {record.hash: record for record in store.of_suite(suite)}
    seeds, without_attack = dict[str, list[str]](), Counter[str]()
    for run in suites.get(suite).ordered():
        if record := recorded.get(run.hash):
            without_attack.update(
                attack_title(entry.attack)
                for entries in missing_entries(record, run).values()
                for entry in entries
            )
        else:
            seeds.setdefault(run.label, []).append(str(run.seed))
    named = [
        f"{label} (seed{'s' * (len(numbers) > 1)} {', '.join(numbers)})" for label, numbers in seeds.items()
    ]
    counted = [f"Without {title}: {n} run{'s' * (n > 1)}." for title, n in without_attack.items()]
    return " ".join([f"Missing: {'; '.join(named)}."] * bool(named) + counted)


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
    """attack, networks, factor, share of the variance, best and worst level and the points between them.

    Of all networks, and without those of `EXTREME` levels, each time one more is left out: they cost more
    than any other choice brings, and decide how much a factor seems to carry. No rows where too few are
    there to tell factors apart.
    """
    rows = []
    for name, (words, networks) in itertools.product(names, _narrower(comparison).items()):
        if not factors.separable(networks, name):
            continue
        about = {"attack": comparison.titles[name], "networks": words}
        rows += [about | row for row in anova.text(factors.variance(networks, name))]
    return pd.DataFrame(rows).fillna("–")


def _narrower(comparison: Comparison) -> dict[str, Comparison]:
    """Words -> the networks: all, and without those of one and of two extreme levels where it has any."""
    networks, left_out, kept = {"all": comparison}, list[str](), comparison
    for factor, level in EXTREME:
        less = without(kept, factor, level)
        if len(less) < len(kept):
            kept = less
            left_out.append(f"{factor} {level}")
            networks[f"without {', '.join(left_out)}"] = kept
    return networks


def without(comparison: Comparison, factor: str, level: str) -> Comparison:
    """The comparison less the crossed networks of this level of the factor."""
    those = {r.hash for by_factor, r in factors.crossed(comparison) if by_factor[factor] == level}
    return Comparison(record for record in comparison if record.hash not in those)


def rates(comparison: Comparison) -> str:
    """How many kernels SR-GKP takes by which layers it prunes, in a sentence; "" without both kinds."""
    found = {
        by_factor["which"]: 100 * record.pruning.rate
        for by_factor, record in factors.crossed(comparison)
        if by_factor == factors.PUBLISHED | {"which": by_factor["which"]}
    }
    if found.keys() != set(stages.WHICH):
        return ""
    whole, half = (f"**{found[which]:.0f} %**" for which in ("all", "first"))
    return (
        f"For these multiply-adds one rate takes {whole} of the kernels of all convolutions, or {half} of "
        "those of the first of each block."
    )


# ---- costs ---------------------------------------------------------------------------------------


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
