"""What pruning costs and saves, as tables: the paper's times beside ours, counts, latency, every method.

From the records of the suite "cost", of a comparison's runs, and from expected/paper_times.csv.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gkp import pruners
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import network_title, ordered
from gkp.study.runs.record import Fact, Record
from gkp.study.runs.store import Store

NETWORKS = ("resnet20", "resnet32", "resnet56", "resnet110", "vgg16")
MISSING = "not yet recorded"


def measured_on(fact: Fact) -> str:
    """Where a time was measured, in words: "1 thread of cpu: AMD EPYC, with bfloat16 instructions"."""
    threads, precision = fact.facts["threads"], fact.provenance.bfloat16
    where = f"{threads} thread{'s' * (threads != 1)} of {fact.provenance.device}"
    return f"{where}, with{'out' * (precision != 'native')} bfloat16 instructions" if precision else where


def times(root: str | Path, suite: str = "cost") -> pd.DataFrame:
    """network, weights, layers, seconds, least, most, grouping: what our pruning step took; by network."""
    rows = []
    for name in ("pruning-time", "pruning-time-vgg16"):
        fact = Store(root).fact(suite, name)
        for network, measured in (fact.facts["networks"] if fact else {}).items():
            rows.append({"network": network, **measured})
    columns = ["network", "weights", "layers", "seconds", "least", "most", "grouping_seconds"]
    return pd.DataFrame(rows, columns=columns)


def times_text(root: str | Path, printed: str | Path, suite: str = "cost") -> pd.DataFrame:
    """One row per network with a time: the paper's and the release's of the whole pruning step, and ours."""
    paper, ours = pd.read_csv(printed, dtype=str), times(root, suite).set_index("network")
    whole = paper[paper.stage == "whole pruning"]
    rows = []
    for network in NETWORKS:
        row = {"network": network_title(network)}
        for title, source, method in (
            ("TMI-GKP, paper", "paper", "TMI-GKP"),
            ("SR-GKP, paper", "paper", "SR-GKP"),
            ("SR-GKP, released notebook", "released notebook", "SR-GKP"),
            ("SR-GKP, released code, 2 cores", "released code", "SR-GKP"),
        ):
            cell = whole[(whole.network == network) & (whole.source == source) & (whole.method == method)]
            row[title] = cell.printed.iloc[0] if len(cell) else "–"
        known = network in ours.index
        row["SR-GKP, ours"] = seconds_text(ours.seconds[network]) if known else MISSING
        row["of these, snaking"] = seconds_text(ours.grouping_seconds[network]) if known else "–"
        row["weights"] = ours.weights[network] if known else "–"
        if known or set(row.values()) - {row["network"], MISSING, "–"}:
            rows.append(row)
    return pd.DataFrame(rows)


def seconds_text(seconds: float) -> str:
    """ "0.85 s", "12.3 s", "21 ms", "4.2 ms"."""
    if seconds < 0.01:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def counts_text(facts: Mapping[str, Any]) -> pd.DataFrame:
    """The `cost-table` fact: MACs and parameters in millions, printed by the paper and counted by us."""
    rows = []
    for row in facts["rows"]:
        line = {"network": network_title(row["network"]), "removed": f"{100 * row['rate']:g} %"}
        for kind, title in (("macs", "MACs (M)"), ("params", "parameters (M)")):
            line[f"{title}, paper"] = row[f"{kind}_paper"]
            line[f"{title}, ours"] = row[kind] + ("" if row[f"{kind}_equal"] else " ≠")
        rows.append(line)
    return pd.DataFrame(rows)


def _first(records: Iterable[Record]) -> dict[str, Record]:
    """Label -> its first record, in the order of all figures."""
    by_label: dict[str, Record] = {}
    for record in records:
        by_label.setdefault(record.label, record)
    return {label: by_label[label] for label in ordered(by_label)}


def latency_text(facts: Mapping[str, Any]) -> pd.DataFrame:
    """One row per network and execution: time over that of the unpruned network, with its quartiles."""
    rows = []
    for network, batches in facts["networks"].items():
        executions = sorted(next(iter(batches.values())), key=lambda title: title != "unpruned")
        for execution in executions:
            row = {"network": network_title(network), "execution": execution}
            for batch, measured in batches.items():
                timing, dense = measured[execution], measured["unpruned"]["seconds"]
                spread = f"{timing['low'] / dense:.2f} to {timing['high'] / dense:.2f}"
                row[f"{batch}: milliseconds"] = f"{1000 * timing['seconds']:.1f}"
                row[f"{batch}: over unpruned"] = f"{timing['ratio']:.2f} ({spread})"
            rows.append(row)
    return pd.DataFrame(rows)


def steps(comparison: Comparison, timed: Mapping[str, Any] | None) -> pd.DataFrame:
    """method, seconds, warm, images: the pruning step of every one-shot method of the records.

    timed: the fact `method-time`, medians of repeated calls, for methods that look at weights alone ("warm").
    The others have the seconds of their run, once, with all that they need beforehand. images: looked at.
    """
    rows = []
    for label, record in _first(r for r in comparison.trained if r.pruned).items():
        if pruners.get(record.run.method).schedule == "one-shot":
            warm = (timed or {"methods": {}})["methods"].get(label)
            seconds = warm["seconds"] if warm else record.pruning.seconds
            rows.append((label, seconds, bool(warm), record.pruning.data_images))
    return pd.DataFrame(rows, columns=["method", "seconds", "warm", "images"])


def left(comparison: Comparison) -> pd.DataFrame:
    """label, then the share of MACs and parameters that is left, percent: macs_usual, params_paper, ..."""
    rows = []
    for label, record in _first(comparison.pruned).items():
        row: dict[str, Any] = {"label": label}
        for name in ("usual", "paper"):
            before, after = (getattr(count, name) for count in (record.cost.before, record.cost.after))
            for kind in ("macs", "params"):
                row[f"{kind}_{name}"] = 100 * getattr(after, kind) / getattr(before, kind)
        rows.append(row)
    return pd.DataFrame(rows)
