"""The ablations as tables: searches on published kernels, networks before and after training, the paper.

Texts for notebooks, made from records, facts and the paper's tables in expected/; what has no record yet
says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import BENIGN
from gkp.study.analysis.method.costs import MISSING
from gkp.study.facts.ablations import ALL, titles
from gkp.study.runs import suites
from gkp.study.runs.record import Record
from gkp.study.runs.run import RATE, Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites import recipes

PAPER_COLUMNS = {"benign": "benign", "fgsm_0.01": "FGSM 0.01", "fgsm_0.1": "FGSM 0.1"}


def facts(root: str | Path, suite: str, name: str) -> dict[str, Any]:
    """The recorded fact of that name; FileNotFoundError says how to compute it."""
    fact = Store(root).fact(suite, name)
    if fact is None:
        raise FileNotFoundError(f"no record of {name!r}: run `python -m gkp run --suite {suite}`")
    return dict(fact.facts)


# ---- searches ------------------------------------------------------------------------------------


def search_text(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row per search of `ablations.search_facts`, over all networks; the reference has 100."""
    rows = []
    for title in titles(facts):
        entry = facts["searches"][title]
        whole = entry["networks"][ALL]
        shared = [per["shared_percent"] for name, per in entry["networks"].items() if name != ALL]
        comparable = whole["same_groups"] is not None
        rows.append(
            {
                "search": title.replace("|", r"\|"),  # it goes into a Markdown table
                "layers": f"{whole['layers']} (to {entry['widest_layer']} channels)",
                "groups with the same set": (
                    f"{whole['same_groups']} of {whole['groups']}" if comparable else "other groups"
                ),
                "kernels in common": f"{whole['shared_percent']:.2f} %",
                "kernels, lowest to highest network": f"{min(shared):.1f} to {max(shared):.1f}",
                "frozen cost (reference 100)": f"{whole['frozen_percent']:.1f}" if comparable else "–",
                "cost of Eq. 3 (reference 100)": f"{whole['eq3_percent']:.1f}" if comparable else "–",
            }
        )
    return pd.DataFrame(rows)


def smoother_text(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row per network: percent of all sets that are smoother than the one the reference keeps."""
    rows = []
    for network, numbers in facts["smoother"].items():
        row = {"network": network, "groups": str(numbers["groups"])}
        row |= {
            f"{width} channels": f"{mean:.1f}"
            for width, mean in sorted(numbers["by_channels"].items(), key=lambda item: int(item[0]))
        }
        row |= {"all groups": f"{numbers['mean_percent']:.1f}", "median": f"{numbers['median_percent']:.1f}"}
        rows.append(row | {"least": f"{numbers['least_percent']:.1f}"})
    return pd.DataFrame(rows).fillna("–")


# ---- networks ------------------------------------------------------------------------------------


def untuned(run: Run) -> Run:
    """The same pruning without any training, as the ablation suite records it."""
    return replace(run, recipe=None, validation=0, macs_ratio=None, rate=RATE)


def networks_text(suite: str, root: str | Path, attacks: Sequence[str]) -> pd.DataFrame:
    """One row per network of the suite, in its order: clean accuracy untuned, then fine-tuned under attacks.

    A network that was not trained because it is that of the defaults says so.
    """
    store, rows = Store(root), []
    names = Comparison(store.of_suite(suite)).titles
    runs = _networks(suite)
    default = next((_untuned_sha(store, run) for run in runs if _name(run) == "sr-gkp"), None)
    for run in runs:
        row = {"network": _name(run), "untuned, benign": "–"}
        if run.prunes:
            row["untuned, benign"] = _accuracy(store.find(untuned(run)), BENIGN)
        trained = store.find(run) if run.recipe or not run.prunes else None
        repeats = run.prunes and not run.recipe and default == _untuned_sha(store, run) is not None
        for attack in (BENIGN, *attacks):
            row[names.get(attack, attack)] = _accuracy(trained, attack, "as sr-gkp" if repeats else MISSING)
        rows.append(row)
    return pd.DataFrame(rows)


def _name(run: Run) -> str:
    """The label of the network once it is trained."""
    return replace(run, recipe=recipes.SHORT_RECIPE).label if run.prunes and not run.recipe else run.label


def _networks(suite: str) -> list[Run]:
    """Seed 0 of every network, trained where the suite trains it; those that it does not train are last."""
    runs = [run for run in suites.get(suite).runs if run.seed == 0]
    main = [run for run in runs if run.recipe or not run.prunes]
    trained = {untuned(run).hash for run in main if run.prunes}
    return main + [run for run in runs if run not in main and untuned(run).hash not in trained]


def _untuned_sha(store: Store, run: Run) -> str | None:
    record = store.find(untuned(run))
    return record.kept["last"].sha256 if record else None


def _accuracy(record: Record | None, attack: str, unknown: str = MISSING) -> str:
    metric = record.metrics().get(attack) if record else None
    if metric is None:
        return unknown
    return f"{100 * metric.accuracy:.2f} ± {50 * (metric.high - metric.low):.2f}"


# ---- the paper -----------------------------------------------------------------------------------


def paper_selection(path: str | Path) -> pd.DataFrame:
    """Tables 4 and 5 of the paper as printed: grouping and selection."""
    printed = pd.read_csv(path, dtype=str).fillna("–")
    names = {"network": "network", "grouping": "grouping", "selection": "selection"}
    return printed.rename(columns={**names, "checkpoint_rule": "checkpoint", **PAPER_COLUMNS})[
        [*names.values(), "checkpoint", *PAPER_COLUMNS.values()]
    ]


def paper_alpha(path: str | Path) -> pd.DataFrame:
    """Tables 14 to 16: per network, the best-benign row of each alpha ("CSB")."""
    printed = pd.read_csv(path, dtype=str).fillna("–")
    chosen = printed[printed.table.isin(("14", "15", "16")) & printed.method.str.endswith("CSB")]
    chosen = chosen[chosen.checkpoint_rule.str.startswith("Best Benign")]
    frame = chosen.rename(columns=PAPER_COLUMNS)[["network", "method", *PAPER_COLUMNS.values()]]
    return frame.rename(columns={"method": "alpha"}).replace({"alpha": {" CSB$": ""}}, regex=True)


def paper_alpha_spread(path: str | Path, images: int = 10_000) -> pd.DataFrame:
    """Per network and column: how far the paper's values of alpha lie apart, and what chance alone allows.

    chance: the range of that many networks of one and the same accuracy that 95 % of all draws of `images`
    test images stay below, the studentized range with the images drawn anew for each network; images they
    share make it smaller, another training larger.
    """
    from scipy.stats import studentized_range  # slow to import

    rows = []
    for network, group in paper_alpha(path).groupby("network", sort=False):
        row = {"network": network, "values of alpha": str(len(group))}
        widest = studentized_range.ppf(0.95, len(group), math.inf)
        for column in PAPER_COLUMNS.values():
            values = group[column].astype(float)
            share = values.mean() / 100
            chance = 100 * widest * (share * (1 - share) / images) ** 0.5
            row[column] = f"{values.max() - values.min():.2f} (chance: up to {chance:.2f})"
        rows.append(row)
    return pd.DataFrame(rows)
