"""What is compared: the records of a suite, the attacks that tell most, one row per method.

Everything here reads records and returns data frames; accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gkp.attacks.outcome import STRENGTH, pack_bits, unpack_bits
from gkp.study.analysis.labels import (
    BENIGN,
    CONTROL,
    CONTROLS,
    DATASETS,
    attack_titles,
    marked,
    network_title,
    ordered,
)
from gkp.study.runs import protocols, suites
from gkp.study.runs.store import Record, Store, misses_target, table
from gkp.utils.stats import wilson

PROTOCOL = tuple(entry.attack.name for entry in protocols.paper()[1:])  # the paper's three attacks


# ---- records -------------------------------------------------------------------------------------


def load(root: str | Path, suite: str) -> list[Record]:
    """The records of a suite. ValueError for an unknown suite, FileNotFoundError when there is no record."""
    suites.get(suite)
    records = Store(root).of_suite(suite)
    if not compared(records):
        raise FileNotFoundError(
            f"no results of the suite {suite!r}: run `python -m gkp run --suite {suite}`, or set compute=True"
        )
    return records


def setting(records: Sequence[Record]) -> str:
    """What was compared, in one sentence: network, data, share of MACs, training, seeds, images."""
    chosen = compared(records)
    trained = [record["config"] for record in chosen if record["config"]["recipe"]]
    first, data = trained[0], next(r["provenance"]["data"] for r in chosen if "data" in r["provenance"])
    seeds = sorted({config["seed"] for config in trained})
    ratios = [record["cost"]["macs_ratio"] for record in chosen if record.get("pruned")]
    left = (
        " to ".join(dict.fromkeys(f"{100 * r:.1f}" for r in (min(ratios), max(ratios)))) if ratios else "100"
    )
    pruned = {r["label"] for r in chosen if r.get("pruned")} - set(CONTROLS)
    whole = "all" if data["images"] == data["official_size"] else "of the publisher's"
    return (
        f"{network_title(first['network'])} on {DATASETS.get(data['dataset'], data['dataset'])}: "
        f"{len(pruned)} pruning methods and the controls, with "
        f"{left} % of the prunable convolutions' multiply-adds left, {first['recipe']['epochs']} "
        f"epochs of training each, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"tested on up to {data['images']:,} images ({whole} {data['official_size']:,})."
        + (" †: more than 1 % off the target of multiply-adds." if any(map(misses_target, chosen)) else "")
    )


def twins(records: Iterable[Record], rule: str = "last") -> dict[str, str]:
    """Label -> an earlier one (in the order of all figures): pruned networks that are the same twice.

    They answer alike on every image under every attack that both met. Tests and counts take them once.
    """
    answers: dict[str, dict[tuple[int, str], str]] = {}
    for record in filter(lambda record: record.get("pruned"), compared(records)):
        metrics = record["checkpoints"].get(rule, {}).get("metrics", {})
        own = answers.setdefault(record["label"], {})
        own |= {(record["config"]["seed"], name): metric["bits"] for name, metric in metrics.items()}
    found: dict[str, str] = {}
    labels = ordered(answers)
    for place, label in enumerate(labels):
        for other in labels[:place]:
            both = answers[label].keys() & answers[other].keys()
            if both and all(answers[label][key] == answers[other][key] for key in both):
                found.setdefault(label, other)
    return found


def distinct(records: Sequence[Record], rule: str = "last") -> list[str]:
    """The labels to compare, in the order of all figures, without twins."""
    alike = twins(records, rule)
    return [label for label in ordered(r["label"] for r in compared(records)) if label not in alike]


def twins_text(records: Iterable[Record], rule: str = "last") -> str:
    """A sentence naming the twins; "" without any."""
    pairs = [f"{first} and {label}" for label, first in twins(records, rule).items()]
    if not pairs:
        return ""
    return f"One and the same network under two names, tested and counted once: {'; '.join(pairs)}."


def controls(records: Iterable[Record]) -> list[str]:
    """The controls that pruned networks are tested against, as far as they have records."""
    labels = {record["label"] for record in records}
    return [label for label in (CONTROL, "random") if label in labels]


# ---- attacks -------------------------------------------------------------------------------------


def attacks(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Name -> description of every attack that all networks to compare met, benign first."""
    shared: dict[str, dict[str, Any]] | None = None
    for record in compared(records):
        for kept in record["checkpoints"].values():
            own = {name: metric["attack"] for name, metric in kept["metrics"].items()}
            shared = own if shared is None else {name: a for name, a in shared.items() if name in own}
    return dict(sorted((shared or {}).items(), key=lambda item: item[0] != BENIGN))


def paper_attacks(records: Iterable[Record]) -> list[str]:
    """The attacks of the paper's protocol: eps after normalisation, FGSM on predicted labels."""
    return [name for name in attacks(records) if name in PROTOCOL]


def pixel_attacks(records: Iterable[Record], kind: str | None = None) -> list[str]:
    """Attacks in pixels with true labels, by rising strength and then eps; of one kind if given."""
    found = {
        name: attack
        for name, attack in attacks(records).items()
        if attack["kind"] in STRENGTH and attack["space"] == "pixel" and attack["labels"] == "true"
        if attack.get("loss", "float32") == "float32"
    }
    chosen = [name for name, attack in found.items() if kind in (None, attack["kind"])]
    return sorted(chosen, key=lambda name: (STRENGTH[found[name]["kind"]], found[name]["eps"]))


def sound_attack(records: Sequence[Record]) -> str:
    """The strongest kind of attack in pixels that every network met, at its smallest eps.

    ValueError when there is none: the records are then only those of the paper's protocol.
    """
    found, names = attacks(records), pixel_attacks(records)
    if not names:
        raise ValueError("no attack in pixel units is common to these records: run the suite to its end")
    strongest = found[names[-1]]["kind"]
    return next(name for name in names if found[name]["kind"] == strongest)


# ---- one point per method ------------------------------------------------------------------------


def points(records: Iterable[Record], names: Sequence[str], rule: str = "last") -> pd.DataFrame:
    """label, attack, mean, low, high (percent), seeds, n: one row per method and attack.

    low and high are the 95 % Wilson interval of one seed, or mean -/+ the standard deviation of several.
    Networks that were only pruned, and the training of the start, are not methods and are left out.
    """
    long = table(compared(records), rule)
    rows = []
    for label in ordered(long.label) if len(long) else []:
        for name in names:
            group = long[(long.label == label) & (long.attack == name)]
            if group.empty:
                continue
            mean, spread = 100 * group.accuracy.mean(), 100 * group.accuracy.std()
            one = len(group) == 1
            low = 100 * group.low.iloc[0] if one else mean - spread
            high = 100 * group.high.iloc[0] if one else mean + spread
            counts = {"seeds": len(group), "n": int(group.n.iloc[0])}
            rows.append({"label": label, "attack": name, "mean": mean, "low": low, "high": high} | counts)
    return pd.DataFrame(rows, columns=["label", "attack", "mean", "low", "high", "seeds", "n"])


def compared(records: Iterable[Record]) -> list[Record]:
    """The records that are compared: trained networks and the unpruned start."""
    kept = []
    for record in records:
        config = record["config"]
        untuned = record.get("pruned") and config.get("recipe") is None
        if "checkpoints" in record and config["method"] != "baseline" and not untuned:
            kept.append(record)
    return kept


def evenly(records: Iterable[Record]) -> list[Record]:
    """The compared networks with seeds that they have in common, so that their error bars are of one kind.

    Kept are the trained networks with at least as many seeds as most of them have (of two numbers that are
    equally frequent the larger), and the untrained ones.
    """
    found = compared(records)
    seeds, usual, common = _seeds(found)
    return [
        r
        for r in found
        if not r["config"]["recipe"] or (len(seeds[r["label"]]) >= usual and r["config"]["seed"] in common)
    ]


def without_extra_seeds(records: Sequence[Record]) -> list[Record]:
    """The records without trainings by seeds that most networks do not have, so that a table's rows compare.

    Unlike `evenly` it keeps networks with fewer seeds, and what is not compared.
    """
    seeds, usual, common = _seeds(compared(records))
    extra = {label for label, own in seeds.items() if len(own) > usual}
    return [r for r in records if r["label"] not in extra or r["config"]["seed"] in common]


def _seeds(found: Sequence[Record]) -> tuple[dict[str, set[int]], int, set[int]]:
    """Seeds of every trained network; how many most have; those that all with at least as many share."""
    seeds: dict[str, set[int]] = {}
    for record in found:
        if record["config"]["recipe"]:
            seeds.setdefault(record["label"], set()).add(record["config"]["seed"])
    counts = [len(one) for one in seeds.values()]
    usual = max(counts, key=lambda n: (counts.count(n), n), default=0)
    common = set.intersection(*(one for one in seeds.values() if len(one) >= usual)) if seeds else set()
    return seeds, usual, common


def on_same_images(records: Iterable[Record], names: Sequence[str], rule: str = "last") -> list[Record]:
    """The compared networks that met all of `names`, with what they had right of the images that all saw.

    Every attack saw the first images of one list, some more of them than others; intervals follow.
    """
    found = [
        r
        for r in compared(records)
        if set(names) <= r["checkpoints"].get(rule, {"metrics": {}})["metrics"].keys()
    ]
    n = min((r["checkpoints"][rule]["metrics"][name]["n"] for r in found for name in names), default=0)
    shortened = []
    for record in found:
        kept = record["checkpoints"][rule]
        metrics = {name: _first(kept["metrics"][name], n) for name in names}
        shortened.append(record | {"checkpoints": {rule: kept | {"metrics": metrics}}})
    return shortened


def _first(metric: dict[str, Any], n: int) -> dict[str, Any]:
    """The metric on its first n images."""
    right = unpack_bits(metric["bits"], metric["n"])[:n]
    correct = int(right.sum())
    low, high = wilson(correct, n)
    counts = {"n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high}
    return metric | counts | {"bits": pack_bits(right)}


def results(records: Sequence[Record], names: Sequence[str], rule: str = "last") -> pd.DataFrame:
    """Text table: one row per method, best benign accuracy first, "91.98 ± 0.53" per attack.

    A dagger marks a method that misses the target of MACs.
    """
    frame, titles = points(records, [BENIGN, *names], rule), attack_titles(records)
    long = table(compared(records), rule)
    costs = long.groupby("label")[["macs", "params"]].mean() / 1e6
    rows = []
    for label, group in frame.groupby("label", sort=False):
        row: dict[str, Any] = {"method": marked(label, long), "MACs (M)": f"{costs.macs[label]:.1f}"}
        row["params (M)"] = f"{costs.params[label]:.3f}"
        for point in group.itertuples():
            row[titles[point.attack]] = f"{point.mean:.2f} ± {(point.high - point.low) / 2:.2f}"
        rows.append((group["mean"].iloc[0], row))
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda item: -item[0])]).fillna("–")
