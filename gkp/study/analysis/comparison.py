"""What is compared: the records of a suite, the attacks that tell most, one row per method.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from gkp.attacks import Attack
from gkp.attacks.outcome import STRENGTH
from gkp.study.analysis.labels import (
    BENIGN,
    CONTROL,
    CONTROLS,
    DATASETS,
    attack_titles,
    network_title,
    ordered,
)
from gkp.study.runs import protocols, suites
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.run import BASELINE
from gkp.study.runs.store import Store

PROTOCOL = tuple(entry.attack.name for entry in protocols.paper()[1:])  # the paper's three attacks


Answers = tuple[str, str]  # label of a network, name of an attack


class Point(NamedTuple):
    """Accuracy (percent) of networks that differ in their seed alone, n images each, by the first one.

    low and high are the 95 % Wilson interval of one seed, or mean -/+ the standard deviation of several.
    """

    mean: float
    low: float
    high: float
    seeds: int
    n: int

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> Point:
        first, mean = metrics[0], 100 * fmean(metric.accuracy for metric in metrics)
        if len(metrics) == 1:
            return cls(mean, 100 * first.low, 100 * first.high, 1, first.n)
        spread = 100 * stdev(metric.accuracy for metric in metrics)
        return cls(mean, mean - spread, mean + spread, len(metrics), first.n)

    @property
    def text(self) -> str:
        """ "91.98 ± 0.53": half the interval, or the deviation."""
        return f"{self.mean:.2f} ± {(self.high - self.low) / 2:.2f}"


class Comparison:
    """Records that are compared, and what is made of them: each once, when it is first asked for.

    Iterates over all its records. Where nothing else is said, a network is its last epoch.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def compared(self) -> list[Record]:
        """The records that are compared: trained networks and the unpruned start."""
        return [r for r in self if r.run.method != BASELINE and (r.run.recipe or not r.pruned)]

    @property
    def trained(self) -> list[Record]:
        """The compared networks without the unpruned start."""
        return [record for record in self.compared if record.run.recipe]

    @cached_property
    def twins(self) -> dict[str, str]:
        """Label -> an earlier one (in the order of all figures): pruned networks that are the same twice.

        They answer alike on every image under every attack that both met. Tests and counts take them once.
        """
        answers: dict[str, dict[tuple[int, str], str]] = {}
        for record in self.compared:
            if record.pruned:
                bits = {(record.run.seed, name): metric.bits for name, metric in record.metrics().items()}
                answers.setdefault(record.label, {}).update(bits)
        found: dict[str, str] = {}
        labels = ordered(answers)
        for place, label in enumerate(labels):
            for other in labels[:place]:
                both = answers[label].keys() & answers[other].keys()
                if both and all(answers[label][key] == answers[other][key] for key in both):
                    found.setdefault(label, other)
        return found

    @cached_property
    def labels(self) -> list[str]:
        """The labels to compare, in the order of all figures, without twins."""
        return [x for x in ordered(record.label for record in self.compared) if x not in self.twins]

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """Name -> every attack that all networks to compare met after their last epoch, benign first."""
        shared: dict[str, Attack] | None = None
        for record in self.compared:
            own = {name: metric.attack for name, metric in record.metrics().items()}
            shared = own if shared is None else {name: a for name, a in shared.items() if name in own}
        return dict(sorted((shared or {}).items(), key=lambda item: item[0] != BENIGN))

    @cached_property
    def met(self) -> dict[str, Attack]:
        """Name -> every attack that any network met, in the order of tables."""
        found = {metric.attack.name: metric.attack for record in self for metric in record.measured()}
        return {name: found[name] for name in attack_titles(found)}

    @cached_property
    def titles(self) -> dict[str, str]:
        """Name -> column title of every attack that any network met, in the order of tables."""
        return attack_titles(self.met)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per attack, checkpoint and run, accuracies as fractions."""
        return pd.DataFrame(row for record in self for row in _rows(record))

    def right(self, label: str, attack: str) -> dict[int, Tensor]:
        """Seed -> bool (N,), which images the network of that label classifies right under the attack."""
        metrics = {r.run.seed: r.metrics().get(attack) for r in self if r.label == label}
        return {seed: metric.right for seed, metric in metrics.items() if metric}

    def pairs(
        self, first: Answers, second: Answers, others: Comparison | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Seed that both have -> the answers of the two, (label, attack), on the images that both saw.

        others: where the second is, if not here.
        """
        own, other = self.right(*first), (others or self).right(*second)
        sizes = {seed: min(len(own[seed]), len(other[seed])) for seed in sorted(own.keys() & other.keys())}
        return {seed: (own[seed][:n], other[seed][:n]) for seed, n in sizes.items()}

    @cached_property
    def points(self) -> dict[tuple[str, str, str], Point]:
        """(label, rule, attack) -> what the trainings of that label have in common."""
        found: dict[tuple[str, str, str], list[Metric]] = {}
        for record in self:
            for rule, kept in record.kept.items():
                for attack, metric in kept.metrics.items():
                    found.setdefault((record.label, rule, attack), []).append(metric)
        return {key: Point.of(metrics) for key, metrics in found.items()}

    def having(self, names: Iterable[str]) -> Comparison:
        """The records to compare whose network met every one of these attacks."""
        wanted = set(names)
        return Comparison(record for record in self.compared if wanted <= record.metrics().keys())

    def chosen_by(self, rule: str) -> Comparison:
        """The trained networks as the rule keeps them, in place of their last epoch; the others as here."""
        found = []
        for record in self.compared:
            if rule in record.kept:
                found.append(replace(record, kept={"last": record.kept[rule]}))
            elif not record.run.recipe:
                found.append(record)
        return Comparison(found)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trained networks."""
        return sorted({record.run.seed for record in self.trained})

    @property
    def pruned(self) -> Comparison:
        """The compared networks that are pruned."""
        return Comparison(record for record in self.compared if record.pruned)


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    run, after = record.run, record.cost.after
    for rule, kept in record.kept.items():
        for attack, metric in kept.metrics.items():
            yield {
                "suite": record.suite,
                "dataset": run.dataset,
                "network": run.network,
                "method": run.method,
                "label": record.label,
                "seed": run.seed,
                "rule": rule,
                "epoch": kept.epoch,
                "attack": attack,
                "accuracy": metric.accuracy,
                "low": metric.low,
                "high": metric.high,
                "n": metric.n,
                "correct": metric.correct,
                "macs": after.usual.macs,
                "params": after.usual.params,
                "macs_paper": after.paper.macs,
                "params_paper": after.paper.params,
                "macs_ratio": record.cost.macs_ratio,
                "misses_target": record.misses_target,
                "prune_seconds": record.pruning.seconds,
                "data_images": record.pruning.data_images,
                "self_check": "; ".join(kept.self_check),
                "hash": record.hash,
            }


# ---- records -------------------------------------------------------------------------------------


def load(root: str | Path, suite: str) -> Comparison:
    """The records of a suite. ValueError for an unknown suite, FileNotFoundError when there is no record."""
    suites.get(suite)
    found = Comparison(Store(root).of_suite(suite))
    if not found.compared:
        raise FileNotFoundError(
            f"no results of the suite {suite!r}: run `python -m gkp run --suite {suite}`, or set compute=True"
        )
    return found


def setting(comparison: Comparison) -> str:
    """What was compared, in one sentence: network, data, share of MACs, training, seeds, images."""
    chosen, trained = comparison.compared, comparison.trained
    data = next(record.provenance.data for record in chosen if record.provenance.data)
    seeds = sorted({record.run.seed for record in trained})
    ratios = [f"{100 * ratio:.1f}" for ratio in sorted(r.cost.macs_ratio for r in chosen if r.pruned)]
    left = " to ".join(dict.fromkeys((ratios[0], ratios[-1]))) if ratios else "100"
    pruned = {record.label for record in chosen if record.pruned} - set(CONTROLS)
    whole = "all" if data.images == data.official_size else "of the publisher's"
    off = any(record.misses_target for record in chosen)
    return (
        f"{network_title(trained[0].run.network)} on {DATASETS.get(data.dataset, data.dataset)}: "
        f"{len(pruned)} pruning methods and the controls, with "
        f"{left} % of the prunable convolutions' multiply-adds left, {trained[0].run.epochs} "
        f"epochs of training each, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"tested on up to {data.images:,} images ({whole} {data.official_size:,})."
        + (" †: more than 1 % off the target of multiply-adds." if off else "")
    )


def twins_text(comparison: Comparison) -> str:
    """A sentence naming the twins; "" without any."""
    pairs = [f"{first} and {label}" for label, first in comparison.twins.items()]
    if not pairs:
        return ""
    return f"One and the same network under two names, tested and counted once: {'; '.join(pairs)}."


def controls(comparison: Comparison) -> list[str]:
    """The controls that pruned networks are tested against, as far as they have records."""
    return [label for label in (CONTROL, "random") if label in {record.label for record in comparison}]


def mean_size(comparison: Comparison, label: str) -> tuple[float, float]:
    """Millions of MACs and of parameters of the networks of that label."""
    sizes = [record.cost.after.usual for record in comparison if record.label == label]
    return fmean(size.macs for size in sizes) / 1e6, fmean(size.params for size in sizes) / 1e6


def marked(comparison: Comparison, label: str) -> str:
    """The label, with a dagger where a network of it misses the target of MACs."""
    return f"{label} †" if any(r.misses_target for r in comparison if r.label == label) else label


# ---- attacks -------------------------------------------------------------------------------------


def paper_attacks(comparison: Comparison) -> list[str]:
    """The attacks of the paper's protocol: eps after normalisation, FGSM on predicted labels."""
    return [name for name in comparison.attacks if name in PROTOCOL]


def in_pixels(attack: Attack) -> bool:
    """Whether this is an attack whose eps counts in pixels."""
    return attack.kind in STRENGTH and attack.space == "pixel"


def pixel_attacks(comparison: Comparison, kind: str | None = None) -> list[str]:
    """Attacks in pixels with true labels, by rising strength and then eps; of one kind if given."""
    found = [
        attack
        for attack in comparison.attacks.values()
        if in_pixels(attack) and attack.labels == "true" and attack.loss == "float32"
        if kind in (None, attack.kind)
    ]
    return [attack.name for attack in sorted(found, key=lambda a: (STRENGTH[a.kind], a.eps))]


def sound_attack(comparison: Comparison) -> str:
    """The strongest kind of attack in pixels that every network met, at its smallest eps.

    ValueError when there is none: the records are then only those of the paper's protocol.
    """
    names = pixel_attacks(comparison)
    if not names:
        raise ValueError("no attack in pixel units is common to these records: run the suite to its end")
    return pixel_attacks(comparison, comparison.attacks[names[-1]].kind)[0]


# ---- one point per method ------------------------------------------------------------------------


def points(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """label, attack, mean, low, high (percent), seeds, n: one row per method and attack, as in `Point`.

    Networks that were only pruned, and the training of the start, are left out.
    """
    rows = [
        (label, name, *comparison.points[label, "last", name])
        for label in ordered(record.label for record in comparison.compared)
        for name in names
        if (label, "last", name) in comparison.points
    ]
    return pd.DataFrame(rows, columns=["label", "attack", *Point._fields])


def gain(a: Tensor, b: Tensor) -> float:
    """Points that the accuracy of `a`, bool (N,) or (S, N), is above that of `b`."""
    return 100 * (a.double().mean() - b.double().mean()).item()


def evenly(comparison: Comparison) -> Comparison:
    """The compared networks with seeds that they have in common, so that their error bars are of one kind.

    Kept are the trained networks with at least as many seeds as most of them have (of two numbers that are
    equally frequent the larger), and the untrained ones.
    """
    seeds, usual, common = _seeds(comparison)
    return Comparison(
        r
        for r in comparison.compared
        if not r.run.recipe or (len(seeds[r.label]) >= usual and r.run.seed in common)
    )


def without_extra_seeds(comparison: Comparison) -> Comparison:
    """The records without trainings by seeds that most networks do not have, so that a table's rows compare.

    Unlike `evenly` it keeps networks with fewer seeds, and what is not compared.
    """
    seeds, usual, common = _seeds(comparison)
    extra = {label for label, own in seeds.items() if len(own) > usual}
    return Comparison(r for r in comparison if r.label not in extra or r.run.seed in common)


def _seeds(comparison: Comparison) -> tuple[dict[str, set[int]], int, set[int]]:
    """Seeds of every trained network; how many most have; those that all with at least as many share."""
    seeds: dict[str, set[int]] = {}
    for record in comparison.trained:
        seeds.setdefault(record.label, set()).add(record.run.seed)
    counts = [len(one) for one in seeds.values()]
    usual = max(counts, key=lambda n: (counts.count(n), n), default=0)
    common = set.intersection(*(one for one in seeds.values() if len(one) >= usual)) if seeds else set()
    return seeds, usual, common


def on_same_images(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """The compared networks that met all of `names`, with what they had right of the images that all saw.

    Every attack saw the first images of one list, some more of them than others; intervals follow.
    """
    found = comparison.having(names)
    n = min((record.metrics()[name].n for record in found for name in names), default=0)
    shortened = []
    for record in found:
        metrics = {name: record.metrics()[name].first(n) for name in names}
        kept = {"last": replace(record.kept["last"], metrics=metrics)}
        shortened.append(replace(record, kept=kept))
    return Comparison(shortened)
