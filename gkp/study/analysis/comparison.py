"""What is taken from a comparison: the records of a suite, the attacks that tell most, one row per method.

Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pandas as pd
from torch import Tensor

from gkp.attacks import Attack
from gkp.attacks.outcome import STRENGTH
from gkp.study.analysis.compared import Comparison, Point
from gkp.study.analysis.labels import (
    ATTACKED,
    CONTROL,
    CONTROLS,
    DATASETS,
    FROM_SCRATCH,
    base,
    network_title,
    ordered,
)
from gkp.study.runs import protocols, suites
from gkp.study.runs.record import Record
from gkp.study.runs.store import Store

PROTOCOL = tuple(entry.attack.name for entry in protocols.paper()[1:])  # the paper's three attacks
ENOUGH = 500  # images, on which a difference of some points can be told


# ---- records -------------------------------------------------------------------------------------


def load(root: str | Path, suite: str) -> Comparison:
    """The records of a suite. ValueError for an unknown suite, FileNotFoundError when there is no record."""
    suites.get(suite)
    comparison = Comparison(Store(root).of_suite(suite))
    if not comparison.compared:
        raise FileNotFoundError(
            f"no results of the suite {suite!r}: run `python -m gkp run --suite {suite}`, or set compute=True"
        )
    return comparison


def setting(comparison: Comparison) -> str:
    """What was compared, in one sentence: network, data, share of MACs, training, seeds, images."""
    compared, trained = comparison.compared, comparison.trained
    data = next(record.provenance.data for record in compared if record.provenance.data)
    seeds = sorted({record.run.seed for record in trained})
    ratios = [f"{100 * ratio:.1f}" for ratio in sorted(r.cost.macs_ratio for r in compared if r.pruned)]
    left = " to ".join(dict.fromkeys((ratios[0], ratios[-1]))) if ratios else "100"
    pruned = {record.label for record in compared if record.pruned} - set(CONTROLS)
    methods = {base(label) for label in pruned}
    networks = f"{len(methods)} pruning methods"
    networks += f" in {len(pruned)} forms" if len(pruned) > len(methods) else ""
    whole = "all" if data.images == data.official_size else "of the publisher's"
    return (
        f"{network_title(trained[0].run.network)} on {DATASETS.get(data.dataset, data.dataset)}: "
        f"{networks} and the controls, with "
        f"{left} % of the prunable convolutions' multiply-adds left, {trained[0].run.epochs} "
        f"epochs of training each, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"tested on up to {data.images:,} images ({whole} {data.official_size:,})." + marks_text(compared)
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


def _alone_attacked(record: Record) -> bool:
    """Whether the network is trained on attacked images where the recipe of all is not."""
    recipe = record.run.recipe
    return record.run.method in ATTACKED and recipe is not None and recipe.adversarial is None


MARKS: dict[str, tuple[Callable[[Record], bool], str]] = {  # of rows that are no equals of the others
    "†": (lambda record: record.misses_target, "more than 1 % off the target of multiply-adds"),
    "‡": (lambda record: record.run.method in FROM_SCRATCH, "from scratch, not from the others' start"),
    "§": (_alone_attacked, "trained on attacked images, the others on clean ones"),
}


def marked(comparison: Comparison, label: str) -> str:
    """The label, with the MARKS that a network of it has."""
    records = [record for record in comparison if record.label == label]
    marks = "".join(mark for mark, (has, _) in MARKS.items() if any(map(has, records)))
    return f"{label} {marks}" if marks else label


def marks_text(records: Iterable[Record]) -> str:
    """What the marks say that these records have: " †: ..."; "" without any."""
    records = list(records)
    return "".join(f" {mark}: {text}." for mark, (has, text) in MARKS.items() if any(map(has, records)))


# ---- attacks -------------------------------------------------------------------------------------


def paper_attacks(comparison: Comparison) -> list[str]:
    """The attacks of the paper's protocol: eps after normalisation, FGSM on predicted labels."""
    return [name for name in comparison.attacks if name in PROTOCOL]


def in_pixels(attack: Attack) -> bool:
    """Whether this is an attack whose eps counts in pixels."""
    return attack.kind in STRENGTH and attack.space == "pixel"


def pixel_attacks(comparison: Comparison, kind: str | None = None) -> list[str]:
    """Attacks in pixels with true labels, by rising strength and then eps; of one kind if given."""
    attacks = [
        attack
        for attack in comparison.attacks.values()
        if in_pixels(attack) and attack.labels == "true" and attack.loss == "float32"
        if kind in (None, attack.kind)
    ]
    return [attack.name for attack in sorted(attacks, key=lambda a: (STRENGTH[a.kind], a.eps))]


def sound_attack(comparison: Comparison) -> str:
    """The strongest kind of attack in pixels that every network met, at its smallest eps.

    On ENOUGH images, if there is one of several steps on so many. ValueError when there is no attack in
    pixels: the records are then only those of the paper's protocol.
    """
    sound = if_sound(comparison)
    if not sound:
        raise ValueError("no attack in pixel units is common to these records: run the suite to its end")
    return sound[0]


def if_sound(comparison: Comparison) -> list[str]:
    """The `sound_attack` alone; [] when there is none."""
    names = pixel_attacks(comparison)
    many = [x for x in names if comparison.attacks[x].kind != "fgsm" and comparison.images(x) >= ENOUGH]
    chosen = many or names
    return [x for x in chosen if comparison.attacks[x].kind == comparison.attacks[chosen[-1]].kind][:1]


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
    extra = {label for label in seeds if len(seeds[label]) > usual}
    return Comparison(r for r in comparison if r.label not in extra or r.run.seed in common)


def extra_seeds_text(comparison: Comparison) -> str:
    """What `without_extra_seeds` leaves out, as a sentence after others; "" for nothing."""
    shown = without_extra_seeds(comparison)
    if len(shown) == len(comparison):
        return ""
    _, _, common = _seeds(comparison)
    which, more = ", ".join(map(str, sorted(common))), len(comparison) - len(shown)
    return (
        f" Shown is seed {which}, which most networks have; {more} trainings by others stand in results.csv, "
        "means over all in details.md and docs/results.md."
    )


def _seeds(comparison: Comparison) -> tuple[dict[str, set[int]], int, set[int]]:
    """Seeds of every trained network; how many most have; those that all with at least as many share."""
    seeds = comparison.seeds_of_each
    counts = list(map(len, seeds.values()))
    usual = max(counts, key=lambda n: (counts.count(n), n), default=0)
    common = set.intersection(*(one for one in seeds.values() if len(one) >= usual)) if seeds else set()
    return seeds, usual, common


def on_same_images(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """The compared networks that met all of `names`, with what they had right of the images that all saw.

    Every attack saw the first images of one list, some more of them than others; intervals follow.
    """
    networks = comparison.having(names)
    n = min((record.metrics()[name].n for record in networks for name in names), default=0)
    shortened = []
    for record in networks:
        metrics = {name: record.metrics()[name].first(n) for name in names}
        kept = {"last": replace(record.kept["last"], metrics=metrics)}
        shortened.append(replace(record, kept=kept))
    return Comparison(shortened)
