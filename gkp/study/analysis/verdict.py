"""What the records say for and against the statements of the paper's abstract: numbers, no sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gkp.attacks import Attack
from gkp.study.analysis import paired
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROL, CONTROLS, family
from gkp.study.analysis.seeds import counted
from gkp.study.runs.protocols import SMALL
from gkp.study.runs.store import Store

METHOD, GROUPED = "sr-gkp", "grouped kernels"  # a family of `gkp.study.analysis.labels`
SMOOTHEST = "sr-gkp (strategy-smoothest)"
PAPER = PROTOCOL[0]  # FGSM 0.01, the paper's headline
AUTOATTACK, STRONGEST = "cifar10-resnet20-autoattack", Attack("autoattack", eps=SMALL[0] / 255).name
ABLATIONS, COST = ("cifar10-resnet20-ablations", "search-ablations"), ("cost", "latency")
TIMES = ("cost", "pruning-time")
Tests = Mapping[str, pd.DataFrame]  # attack -> rows of `paired.against`


@dataclass(frozen=True)
class Price:
    """What the pruning step of SR-GKP takes (seconds, images) beside its fine-tuning (seconds, epochs).

    training_seconds is None where the training ran on another kind of device than the pruning step.
    slower: (network, batch) -> time of the grouped network over that of the unpruned one, measured on
    `device`; empty without a record.
    """

    seconds: float
    images: int
    training_seconds: float | None
    epochs: int
    slower: Mapping[tuple[str, str], float]
    device: str | None


@dataclass(frozen=True)
class Smoothness:
    """Of `groups` groups of so many published networks, `same` or more keep the same set whatever alpha is.

    rougher: percent of all sets that kept ones are rougher than, in the network where they are least rough.
    smoothest: attack -> the test of keeping the smoothest kernels instead, after training; {} untrained.
    """

    groups: int
    networks: int
    same: int
    rougher: float
    smoothest: Mapping[str, pd.Series]


@dataclass(frozen=True)
class Findings:
    """Numbers for and against every statement of the abstract; tests are of pruning methods, no controls.

    clean: without attack, against the control. fragile: control -> tests against it. filters: tests of what
    removes filters or channels against SR-GKP, AutoAttack last where it ran. gains: (control, attack) -> the
    test of SR-GKP. images: attack -> how many every trained network met; seeds ("1 to 3 seeds"), epochs: of
    their training.
    """

    titles: Mapping[str, str]
    sound: str
    clean: pd.DataFrame
    fragile: Mapping[str, Tests]
    filters: Tests
    gains: Mapping[tuple[str, str], pd.Series]
    price: Price
    smooth: Smoothness | None
    images: Mapping[str, int]
    seeds: str
    epochs: int


def findings(root: str | Path, comparison: Comparison) -> Findings:
    """All of them; `comparison` of one suite, facts and AutoAttack from the whole store."""
    sound, hard = sound_attack(comparison), strong(root, comparison)
    attacks, trained = (*PROTOCOL, sound), comparison.trained
    images = {name: metric.n for name, metric in trained[0].metrics().items()}
    if hard:
        images[STRONGEST] = min(record.metrics()[STRONGEST].n for record in hard)
    return Findings(
        titles=Comparison([*comparison, *hard]).titles,
        sound=sound,
        clean=methods(paired.against(comparison, BENIGN)).sort_values("difference"),
        fragile={
            control: {attack: methods(paired.against(comparison, attack, control)) for attack in attacks}
            for control in (CONTROL, "unpruned")
        },
        filters=filters(comparison, attacks) | (filters(hard, (STRONGEST,)) if hard else {}),
        gains={
            (control, attack): difference(comparison, attack, control)
            for control in ("unpruned", CONTROL)
            for attack in attacks
        },
        price=price(root, comparison),
        smooth=smoothness(root),
        images=images,
        seeds=counted(comparison),
        epochs=trained[0].run.epochs,
    )


def strong(root: str | Path, comparison: Comparison) -> Comparison:
    """Networks that met AutoAttack at its smaller eps: these, or the same ones in a suite of their own.

    Without records before SR-GKP and another have.
    """
    known = {(record.label, record.run.network) for record in comparison}
    apart = (r for r in Store(root).of_suite(AUTOATTACK) if (r.label, r.run.network) in known)
    for networks in (comparison.having([STRONGEST]), Comparison(apart).having([STRONGEST])):
        pruned = {record.label for record in networks.pruned}
        if METHOD in pruned and len(pruned) > 1:
            return networks
    return Comparison(())


def filters(comparison: Comparison, attacks: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Attack -> tests against SR-GKP of what removes whole filters or channels by a criterion."""
    tests = {attack: methods(paired.against(comparison, attack, METHOD)) for attack in attacks}
    return {attack: frame[frame.method.map(family) != GROUPED] for attack, frame in tests.items()}


def price(root: str | Path, comparison: Comparison) -> Price:
    record = next(record for record in comparison.compared if record.label == METHOD)
    step, fact, timed = record.pruning, Store(root).fact(*COST), Store(root).fact(*TIMES)
    measured = timed.facts["networks"].get(record.run.network) if timed else None
    networks = fact.facts["networks"] if fact else {}
    device = (record.provenance.device or "").partition(":")[0]
    timed_on = ((timed.provenance.device if timed else None) or "").partition(":")[0]
    alike = not measured or not device or device == timed_on
    return Price(
        measured["seconds"] if measured else step.seconds,
        step.data_images,
        record.training_seconds if alike else None,
        record.run.epochs,
        {
            (network, batch): executions["pruned, grouped"]["ratio"]
            for network, batches in networks.items()
            for batch, executions in batches.items()
        },
        fact.provenance.device if fact else None,
    )


def smoothness(root: str | Path) -> Smoothness | None:
    """None where the searches have no record."""
    fact = Store(root).fact(*ABLATIONS)
    if fact is None:
        return None
    searches = {
        title: entry["networks"]["all networks"]
        for title, entry in fact.facts["searches"].items()
        if title.startswith("alpha")
    }
    return Smoothness(
        groups=searches["alpha 0"]["groups"],
        networks=len(fact.facts["smoother"]),
        same=min(numbers["same_groups"] for numbers in searches.values()),
        rougher=min(numbers["mean_percent"] for numbers in fact.facts["smoother"].values()),
        smoothest=smoothest(root),
    )


def smoothest(root: str | Path) -> dict[str, pd.Series]:
    """Attack -> the test of keeping the smoothest kernels against SR-GKP, after training; {} untrained."""
    comparison, attacks = Comparison(Store(root).of_suite(ABLATIONS[0])), (PROTOCOL[-1], BENIGN)
    if not {METHOD, SMOOTHEST} <= {record.label for record in comparison.having(attacks)}:
        return {}
    trained = Comparison(comparison.compared)
    return {attack: difference(trained, attack, METHOD, SMOOTHEST) for attack in attacks}


def difference(comparison: Comparison, attack: str, control: str, label: str = METHOD) -> pd.Series:
    """`label` minus `control` under an attack: the row of `paired.against`."""
    return paired.against(comparison, attack, control).set_index("method").loc[label]


def methods(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `paired.against` that are pruning methods and no controls."""
    return frame[~frame.method.isin(CONTROLS)]
