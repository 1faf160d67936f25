"""What somebody looks up about a suite: figures/<suite>/details.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from gkp.study.analysis import audit, paired, seeds, training
from gkp.study.analysis import paper as published
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, if_sound, paper_attacks, pixel_attacks
from gkp.study.analysis.labels import BENIGN, CONTROL
from gkp.study.analysis.method import ablation_tables, costs
from gkp.study.report.tables import to_markdown
from gkp.study.runs import protocols, suites
from gkp.study.runs.store import Store

Tables = Iterable[tuple[str, pd.DataFrame]]
CONTROLS = (CONTROL, "unpruned", "sr-gkp")
SHORTER = "cifar10-resnet56-seeds"  # the networks of many epochs after few
IN_BFLOAT16 = "cifar10-resnet20-seeds"  # the networks that were trained in float32 too


def details_of(suite: str, store: Store) -> str:
    """The page of a suite, as Markdown; "" where there is nothing to put on it."""
    comparison = Comparison(store.of_suite(suite))
    tables = [*paired_tests(comparison), *SPECIAL.get(suite, lambda store, comparison: ())(store, comparison)]
    parts = [f"## {title}\n\n{to_markdown(frame)}" for title, frame in tables if len(frame)]
    title, there = (suites.get(suite).title if suite in suites.SUITES else suite), ""
    if suite in suites.SUITES and (left := missing(suite, store)):
        there = f" Of the suite's {len(store.suite(suite).ordered())} runs {left} have none yet."
    above = f"# {title}\n\nMade from the records by `python -m gkp report`.{there}\n\n"
    return above + "\n".join(parts) if parts else ""


def missing(suite: str, store: Store) -> int:
    """How many runs of the suite have no record."""
    return sum(store.find(run) is None for run in store.suite(suite).ordered())


def paired_tests(comparison: Comparison) -> Tables:
    """Every network against the controls, under the paper's attacks and a sound one."""
    names, titles = [BENIGN, *paper_attacks(comparison), *if_sound(comparison)], comparison.titles
    labels = comparison.labels
    if BENIGN not in titles or len(labels) < 3:
        return
    spread = seeds.spread_text(comparison, names)
    if len(spread):
        yield "Several trainings: mean ± standard deviation (highest minus lowest), percent", spread
    for control in (control for control in CONTROLS if control in labels):
        several = seeds.against_text(comparison, names, control)
        if len(several):
            title = f"Points against {control}, paired by seed; Student's 95 % intervals, not corrected"
            yield title, several
        frames = {titles[name]: paired.against(comparison, name, control) for name in names}
        test = "exact test" if len(comparison.seeds) == 1 else "test, exact where both have one training,"
        title = f"Points against {control}; McNemar's {test} on the same images, Holm-corrected"
        yield title, paired.against_text(frames)
    yield "What training had driven to zero before the cut", vanished_text(comparison)


def vanished_text(comparison: Comparison) -> pd.DataFrame:
    """Text table: how many groups or masks there were, and how many were zero; methods that count them.

    Where these are few the cut takes others, and the row is that of a training that was too short for it.
    """
    rows = []
    for record in comparison.trained:
        pruning = record.pruning
        for kind, zero, count in (
            ("groups", pruning.zero_groups, pruning.groups),
            ("masks", pruning.zero_masks, pruning.masks),
        ):
            if zero is not None and count is not None:
                rows.append({"label": record.label, "of": kind, "zero": str(zero), "all": str(count)})
    return pd.DataFrame(rows)


def _ablations(store: Store, comparison: Comparison) -> Tables:
    expected, suite = store.root / "expected", "cifar10-resnet20-ablations"
    if fact := store.fact(suite, "search-ablations"):
        yield (
            "Which kernels each search keeps, against the released setting",
            ablation_tables.search_text(fact.facts),
        )
        yield (
            "Sets that are smoother than the kept one, percent",
            ablation_tables.smoother_text(fact.facts),
        )
    attacks = [*PROTOCOL[::2], *pixel_attacks(comparison, "pgd")]
    yield "Before and after fine-tuning", ablation_tables.networks_text(suite, store.root, attacks)
    yield "The paper's Tables 4 and 5", ablation_tables.paper_selection(expected / "paper_selection.csv")
    yield "The paper's Tables 14 to 16, alpha", ablation_tables.paper_alpha(expected / "paper_cifar10.csv")


def _deeper(store: Store, comparison: Comparison) -> Tables:
    printed = store.root / "expected" / "paper_cifar10.csv"
    yield "The paper's Table 10 beside ours (paper / ours)", published.beside_ours(comparison, printed)
    unit = audit.effects(Comparison(store.of_suite("cifar10-resnet56-unit")), audit.unit_changes())
    yield "The unit of eps: by CIFAR-10's deviations instead of ImageNet's", unit


def _longer(store: Store, comparison: Comparison) -> Tables:
    """The networks of many epochs: course, the same ones after few, the paper's choice and its Table 10."""
    short = Comparison(store.of_suite(SHORTER))
    names = [BENIGN, *paper_attacks(comparison), *pixel_attacks(comparison, "pgd")]
    yield (
        "Test accuracy where each learning rate ends, percent, in bfloat16",
        training.phases_text(comparison),
    )
    if short.trained:
        epochs = f"{short.trained[0].run.epochs} and {comparison.trained[0].run.epochs} epochs"
        title = f"Percent after {epochs}, the same networks; significant: McNemar, Holm-corrected"
        yield title, training.longer_text(short, comparison, names)
        title = (
            f"Whether the methods rank alike after {epochs}: correlations of the pruned networks (bootstrap "
            "over images, moved to the measured value: approximate), and pairs of all trained networks that "
            "are told apart"
        )
        yield title, training.ranks_kept_text(short, comparison, names)
    strong = [entry.attack.name for entry in protocols.strong()]
    strong = [n for n in strong if all(comparison.right(label, n) for label in (CONTROL, "sr-gkp"))]
    for control in (CONTROL, "sr-gkp") if strong else ():
        frames = {comparison.titles[name]: paired.against(comparison, name, control) for name in strong}
        title = f"Under the strongest attacks: points against {control}; McNemar, Holm-corrected"
        yield title, paired.against_text(frames)
    best = comparison.chosen_by("best-test")
    for control in (CONTROL, "sr-gkp"):
        frames = {best.titles[n]: paired.against(best, n, control) for n in (BENIGN, *paper_attacks(best))}
        title = f"At the epoch that is best on test images: points against {control}; McNemar, Holm-corrected"
        yield title, paired.against_text(frames)
    printed = store.root / "expected" / "paper_cifar10.csv"
    title = "The paper's Table 10 beside ours at the epoch that is best on test images (paper / ours)"
    yield title, published.beside_ours(best, printed)
    if fact := store.fact("cifar10-resnet56-57", "repeated"):
        yield repeated_title(fact.facts), repeated_text(fact.facts, comparison.titles)


def repeated_title(facts: Mapping[str, Any]) -> str:
    """What was attacked again, in a sentence."""
    count, recorded = facts["answers"] // facts["images"], " and ".join(facts["recorded_on"])
    return (
        f"The paper's attacks again on a CPU, the first {facts['images']:,} images of {count} checkpoints "
        f"that were recorded on {recorded}; files with another SHA-256 than recorded: {facts['damaged']}, "
        f"self-checks that differ: {facts['self_checks_differ']}"
    )


def repeated_text(facts: Mapping[str, Any], titles: Mapping[str, str]) -> pd.DataFrame:
    """Text table: per attack how many answers differ from the records."""
    return pd.DataFrame(
        {"attack": titles[name], "answers": f"{facts['answers']:,}", "differ": str(count)}
        for name, count in facts["differ"].items()
    )


def _audit(store: Store, comparison: Comparison) -> Tables:
    expected, titles = store.root / "expected", comparison.titles
    yield "One change of the protocol at a time", audit.effects(comparison)
    effect = paired.label_effect(comparison)
    yield "What predicted labels add", paired.label_effect_text(effect, titles)
    yield (
        "High-pass filtered images, the paper's Table 1",
        audit.table1(comparison, expected / "paper_table1.csv"),
    )
    printed = published.selection_text(expected / "paper_cifar10.csv", titles)
    yield "What the choice of a checkpoint moves in the paper's tables", printed


def _selection(store: Store, comparison: Comparison) -> Tables:
    if training.courses(comparison):
        yield "What each rule shows", training.rules_text(comparison)
        yield "How far apart epochs are, points", training.moved_text(comparison)


def _precision(store: Store, comparison: Comparison) -> Tables:
    names = [BENIGN, *paper_attacks(comparison), *pixel_attacks(comparison, "pgd")]
    title = "Percent after training in bfloat16 and in float32, the same networks; significant: McNemar, Holm"
    yield title, training.longer_text(Comparison(store.of_suite(IN_BFLOAT16)), comparison, names)


def _method(store: Store, comparison: Comparison) -> Tables:
    if fact := store.fact("method", "cost-table"):
        yield "Multiply-adds and parameters, printed and counted", costs.counts_text(fact.facts)


def _cost(store: Store, comparison: Comparison) -> Tables:
    if fact := store.fact("cost", "latency"):
        yield f"Time of a forward pass, {costs.measured_on(fact)}", costs.latency_text(fact.facts)


SPECIAL: dict[str, Callable[[Store, Comparison], Tables]] = {
    "cifar10-resnet20-ablations": _ablations,
    "cifar10-resnet56-short": _deeper,
    "cifar10-resnet56-57": _longer,
    "cifar10-resnet20-audit": _audit,
    "cifar10-resnet20-selection": _selection,
    "cifar10-resnet20-precision": _precision,
    "method": _method,
    "cost": _cost,
}
