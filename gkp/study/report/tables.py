"""Tables of results, as data frames and as text: one row per method, every number from a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from gkp.study.analysis import ablation_tables, audit, choice, claims, costs, paired, seeds
from gkp.study.analysis import paper as published
from gkp.study.analysis.comparison import PROTOCOL, distinct, paper_attacks, pixel_attacks, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROL, attack_titles, marked
from gkp.study.runs import suites
from gkp.study.runs.store import Record, Store, misses_target, table

Tables = Iterable[tuple[str, pd.DataFrame]]
CONTROLS = (CONTROL, "unpruned", "sr-gkp")

COUNT = re.compile(r"\d+(?= of \d+ images)")  # in a sentence of a self-check


def summary(records: Sequence[Record], attacks: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per method and checkpoint rule: costs, then accuracy in percent, by default under every attack.

    One seed: ± half the 95 % Wilson interval. Several seeds: mean ± standard deviation over seeds.
    """
    long = table(records)
    if long.empty:
        return long
    titles = attack_titles(records)
    if attacks is not None:
        chosen = set(attacks)
        titles = {name: title for name, title in titles.items() if name in chosen}
    order = {label: place for place, label in enumerate(_label_order(long))}
    rows = []
    for (label, rule), group in sorted(
        long.groupby(["label", "rule"], sort=False), key=lambda item: (order[item[0][0]], item[0][1])
    ):
        row: dict[str, Any] = {"method": marked(label, long), "checkpoint": rule}
        row["MACs (M)"] = f"{group.macs.mean() / 1e6:.2f}"
        row["params (M)"] = f"{group.params.mean() / 1e6:.3f}"
        for attack, title in titles.items():
            row[title] = _cell(group[group.attack == attack])
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.drop(columns="checkpoint") if set(frame["checkpoint"]) == {"last"} else frame


def _cell(group: pd.DataFrame) -> str:
    """ "91.98 ± 0.53": half the Wilson interval of one seed, or the spread over several."""
    if group.empty:
        return "–"
    values = 100 * group.accuracy
    half = values.std() if len(values) > 1 else 50 * (group.high - group.low).iloc[0]
    return f"{values.mean():.2f} ± {half:.2f}"


def _label_order(long: pd.DataFrame) -> list[str]:
    """Baseline and controls first, then methods by their clean accuracy, the best first."""
    first = ("baseline", "unpruned", "unpruned + fine-tune", "random")
    clean = long[long.attack == "benign"].groupby("label").accuracy.mean()
    place = {name: (0, position, name) for position, name in enumerate(first)}
    return sorted(set(long.label), key=lambda name: place.get(name, (1, -clean.get(name, 0.0), name)))


def claims_table(judged: Sequence[claims.Verdict]) -> pd.DataFrame:
    """The verdicts as a table: what is claimed, expected, ours, tolerance with its reason."""
    return pd.DataFrame(
        {
            "": verdict.status,
            "id": verdict.claim.id,
            "claim": verdict.claim.statement,
            "expected": f"{verdict.claim.wanted} {verdict.claim.unit}",
            "tolerance": f"± {verdict.claim.tolerance:g}" if verdict.claim.tolerance else "none",
            "ours": verdict.ours_text,
            "because": verdict.claim.explanation or verdict.claim.why,
        }
        for verdict in judged
    )


def claims_text(judged: Sequence[claims.Verdict]) -> str:
    """A sentence: how many claims hold, miss and are open, and how many of the latter were expected."""
    count = {status: sum(v.status == status for v in judged) for status in ("OK", "MISS", "OPEN", "MISSING")}
    known = sum(v.status in ("MISS", "OPEN") and v.as_expected for v in judged)
    return (
        f"**{count['OK']} of {len(judged)} claims hold, {count['MISS']} miss, {count['OPEN']} are open** "
        f"({known} of these known and explained), {count['MISSING']} without a record."
    )


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; text stays text."""
    return frame.to_markdown(index=False, disable_numparse=True, stralign="left") + "\n"


# ---- what columns and numbers mean ---------------------------------------------------------------


def footnote(records: Sequence[Record], attacks: Iterable[str] | None = None) -> str:
    """What the table's numbers are counted on, and what its words mean."""
    titles = attack_titles(records)
    if not titles:
        return "No records yet."
    chosen = set(titles if attacks is None else attacks)
    sizes: dict[int, set[str]] = {}
    for name, n in table(records).groupby("attack")["n"].max().items():
        if name in chosen:
            sizes.setdefault(n, set()).add(name)
    ordered = [
        (n, [title for name, title in titles.items() if name in names])
        for n, names in sorted(sizes.items(), reverse=True)
    ]
    counted = "; ".join(f"{n:,} images: {', '.join(names)}" for n, names in ordered)
    facts = next(r["provenance"]["data"] for r in records if "data" in r["provenance"])
    official = facts["official_size"]
    whole = "" if facts["images"] == official else f" of the publisher's {official:,}"
    seeds = sorted({record["config"]["seed"] for record in records if "seed" in record["config"]})
    spread = (
        "half the 95 % Wilson interval"
        if len(seeds) == 1
        else "standard deviation over seeds (one seed: half the interval)"
    )
    return (
        f"Accuracy in % ± {spread}. Test set: {facts['images']:,}{whole} images. {counted}. "
        f'"norm.": eps counts after normalisation, the paper\'s unit ({normalised_unit(records)}); '
        '"pred.": the attack uses predicted labels, as the released code does. '
        "MACs and parameters in the usual convention."
        + (" † More than 1 % off the target of MACs." if any(map(misses_target, records)) else "")
    )


def normalised_unit(records: Sequence[Record]) -> str:
    """How large eps 0.01 is in pixels: it counts in the standard deviations that a network normalises by."""
    if {record["config"].get("weights") for record in records} == {"akamaster"}:
        return "0.01 is about 0.6/255 for these networks, which normalise by ImageNet's standard deviations"
    return "0.01 is about 0.5/255"


def self_checks(records: Sequence[Record]) -> str:
    """What the evaluations found wrong with themselves, one line for all networks alike; "" when nothing.

    Sentences that differ in their count of images alone are one line, with the least and the most.
    """
    found: dict[str, tuple[list[int], list[str]]] = {}
    networks = 0
    for record in records:
        for rule, kept in record.get("checkpoints", {}).items():
            networks += 1
            for sentence in kept["self_check"]:
                who = f"{record['label']}, seed {record['config']['seed']}, {rule}"
                counts, whose = found.setdefault(COUNT.sub("{}", sentence), ([], []))
                counts += map(int, COUNT.findall(sentence))
                whose.append(who)
    lines = []
    for sentence, (counts, whose) in found.items():
        span = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts))))) if counts else ""
        who = f"all {networks} networks" if len(whose) == networks else "; ".join(whose)
        lines.append(f"- {sentence.replace('{}', span)} ({who})\n")
    return f"\nThe evaluations about themselves:\n\n{''.join(lines)}" if lines else ""


# ---- what somebody looks up: figures/<suite>/details.md -------------------------------------------


def details_of(suite: str, store: Store) -> str:
    """The page of a suite, as Markdown; "" where there is nothing to put on it."""
    records = store.of_suite(suite)
    tables = [*paired_tests(records), *SPECIAL.get(suite, lambda store, records: ())(store, records)]
    parts = [f"## {title}\n\n{to_markdown(frame)}" for title, frame in tables if len(frame)]
    title = suites.get(suite).title if suite in suites.SUITES else suite
    above = f"# {title}\n\nMade from the records by `python -m gkp report`.\n\n"
    return above + "\n".join(parts) if parts else ""


def paired_tests(records: Sequence[Record]) -> Tables:
    """Every network against the controls, under the paper's attacks and a sound one."""
    sound = [sound_attack(records)] if pixel_attacks(records) else []
    names, titles = [BENIGN, *paper_attacks(records), *sound], attack_titles(records)
    labels = distinct(records)
    if BENIGN not in titles or len(labels) < 3:
        return
    spread = seeds.spread_text(records, names)
    if len(spread):
        yield "Several trainings: mean ± standard deviation (highest minus lowest), percent", spread
    for control in (control for control in CONTROLS if control in labels):
        several = seeds.against_text(records, names, control)
        if len(several):
            title = f"Points against {control}, paired by seed; Student's 95 % intervals, not corrected"
            yield title, several
            continue
        frames = {titles[name]: paired.against(records, name, control) for name in names}
        title = f"Points against {control}; McNemar's exact test on the same images, Holm-corrected"
        yield title, paired.against_text(frames)


def _ablations(store: Store, records: Sequence[Record]) -> Tables:
    expected, suite = store.root / "expected", "cifar10-resnet20-ablations"
    if fact := store.fact(suite, "search-ablations"):
        yield (
            "Which kernels each search keeps, against the released setting",
            ablation_tables.search_text(fact["facts"]),
        )
        yield (
            "Sets that are smoother than the kept one, percent",
            ablation_tables.smoother_text(fact["facts"]),
        )
    attacks = [*PROTOCOL[::2], *pixel_attacks(records, "pgd")]
    yield "Before and after fine-tuning", ablation_tables.networks_text(suite, store.root, attacks)
    yield "The paper's Tables 4 and 5", ablation_tables.paper_selection(expected / "paper_selection.csv")
    yield "The paper's Tables 14 to 16, alpha", ablation_tables.paper_alpha(expected / "paper_cifar10.csv")


def _deeper(store: Store, records: Sequence[Record]) -> Tables:
    printed = store.root / "expected" / "paper_cifar10.csv"
    yield "The paper's Table 10 beside ours (paper / ours)", published.beside_ours(records, printed)
    unit = audit.effects(store.of_suite("cifar10-resnet56-unit"), audit.unit_changes())
    yield "The unit of eps: by CIFAR-10's deviations instead of ImageNet's", unit


def _audit(store: Store, records: Sequence[Record]) -> Tables:
    expected, titles = store.root / "expected", attack_titles(records)
    yield "One change of the protocol at a time", audit.effects(records)
    effect = paired.label_effect(records)
    yield "What predicted labels add", paired.label_effect_text(effect, titles)
    yield (
        "High-pass filtered images, the paper's Table 1",
        audit.table1(records, expected / "paper_table1.csv"),
    )
    printed = published.selection_text(expected / "paper_cifar10.csv", titles)
    yield "What the choice of a checkpoint moves in the paper's tables", printed


def _selection(store: Store, records: Sequence[Record]) -> Tables:
    if choice.courses(records):
        yield "What each rule shows", choice.rules_text(records)
        yield "How far apart epochs are, points", choice.moved_text(records)


def _method(store: Store, records: Sequence[Record]) -> Tables:
    if fact := store.fact("method", "cost-table"):
        yield "Multiply-adds and parameters, printed and counted", costs.counts_text(fact["facts"])


def _cost(store: Store, records: Sequence[Record]) -> Tables:
    if fact := store.fact("cost", "latency"):
        yield f"Time of a forward pass, {costs.measured_on(fact)}", costs.latency_text(fact["facts"])


SPECIAL: dict[str, Callable[[Store, Sequence[Record]], Tables]] = {
    "cifar10-resnet20-ablations": _ablations,
    "cifar10-resnet56-short": _deeper,
    "cifar10-resnet20-audit": _audit,
    "cifar10-resnet20-selection": _selection,
    "method": _method,
    "cost": _cost,
}
