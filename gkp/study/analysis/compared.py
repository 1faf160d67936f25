"""Records that are compared: the class that the tables, tests and figures are made from.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gkp.attacks import Attack
from gkp.study.analysis.labels import (
    BENIGN,
    attack_titles,
    ordered,
)
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.run import BASELINE

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
        twins: dict[str, str] = {}
        labels = ordered(answers)
        for place, label in enumerate(labels):
            for other in labels[:place]:
                common = answers[label].keys() & answers[other].keys()
                if common and all(answers[label][key] == answers[other][key] for key in common):
                    twins.setdefault(label, other)
        return twins

    @cached_property
    def labels(self) -> list[str]:
        """The labels to compare, in the order of all figures, without twins."""
        return [x for x in ordered(record.label for record in self.compared) if x not in self.twins]

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """Name -> every attack that all networks to compare met after their last epoch, benign first."""
        shared: dict[str, Attack] | None = None
        for record in self.compared:
            met = {name: metric.attack for name, metric in record.metrics().items()}
            shared = met if shared is None else {name: a for name, a in shared.items() if name in met}
        return dict(sorted((shared or {}).items(), key=lambda item: item[0] != BENIGN))

    def images(self, attack: str) -> int:
        """On how many images every network to compare met this one of `attacks`."""
        return min(record.metrics()[attack].n for record in self.compared)

    @cached_property
    def met(self) -> dict[str, Attack]:
        """Name -> every attack that any network met, in the order of tables."""
        attacks = {metric.attack.name: metric.attack for record in self for metric in record.measured()}
        return {name: attacks[name] for name in attack_titles(attacks)}

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

        others: where the second is, if not here. The untouched network, which no seed made, has all seeds.
        """
        place = others or self
        a, b = self.right(*first), place.right(*second)
        a, b = self._as_often(first[0], a, b), place._as_often(second[0], b, a)
        sizes = {seed: min(len(a[seed]), len(b[seed])) for seed in sorted(a.keys() & b.keys())}
        return {seed: (a[seed][:n], b[seed][:n]) for seed, n in sizes.items()}

    def _as_often(
        self, label: str, answers: dict[int, Tensor], other: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """The answers of the network of that label, for every seed of `other` where no seed made it."""
        records = [record for record in self if record.label == label]
        alone = untouched(records) and len(answers) == 1
        return dict.fromkeys(other, *answers.values()) if alone else answers

    @cached_property
    def points(self) -> dict[tuple[str, str, str], Point]:
        """(label, rule, attack) -> what the trainings of that label have in common."""
        metrics_of: dict[tuple[str, str, str], list[Metric]] = {}
        for record in self:
            for rule, kept in record.kept.items():
                for attack, metric in kept.metrics.items():
                    metrics_of.setdefault((record.label, rule, attack), []).append(metric)
        return {key: Point.of(metrics) for key, metrics in metrics_of.items()}

    def having(self, names: Iterable[str]) -> Comparison:
        """The records to compare whose network met every one of these attacks."""
        wanted = set(names)
        return Comparison(record for record in self.compared if wanted <= record.metrics().keys())

    def chosen_by(self, rule: str) -> Comparison:
        """The trained networks as the rule keeps them, in place of their last epoch; the others as here."""
        records = []
        for record in self.compared:
            if rule in record.kept:
                records.append(replace(record, kept={"last": record.kept[rule]}))
            elif not record.run.recipe:
                records.append(record)
        return Comparison(records)

    @cached_property
    def seeds_of_each(self) -> dict[str, set[int]]:
        """Label of a trained network -> the seeds that it was trained with."""
        seeds: dict[str, set[int]] = {}
        for record in self.trained:
            seeds.setdefault(record.label, set()).add(record.run.seed)
        return seeds

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trained networks."""
        return sorted(set().union(*self.seeds_of_each.values()))

    @property
    def pruned(self) -> Comparison:
        """The compared networks that are pruned."""
        return Comparison(record for record in self.compared if record.pruned)


def stacked(pairs: Collection[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """bool (S, N) each: the two sides of S pairs on the images that all of them saw; (0, 0) of none."""
    if not pairs:
        return torch.empty(0, 0, dtype=torch.bool), torch.empty(0, 0, dtype=torch.bool)
    n = min(len(side) for pair in pairs for side in pair)
    a, b = (torch.stack([answers[:n] for answers in side]) for side in zip(*pairs, strict=True))
    return a, b


def untouched(records: Iterable[Record]) -> bool:
    """Whether these are the start as it was published, neither pruned nor trained: no seed made it."""
    return all(record.run.recipe is None and not record.pruned for record in records)


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
