"""What the paper's abstract says, and what the records say for and against it: one table of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gkp.attacks import Attack
from gkp.study.analysis import paired
from gkp.study.analysis.audit import having
from gkp.study.analysis.comparison import PROTOCOL, compared, sound_attack
from gkp.study.analysis.costs import seconds_text
from gkp.study.analysis.labels import BENIGN, CONTROL, CONTROLS, attack_titles, family
from gkp.study.runs.protocols import SMALL
from gkp.study.runs.store import Record, Store

METHOD, GROUPED = "sr-gkp", "grouped kernels"  # a family of `gkp.study.report.style`
SMOOTHEST = "sr-gkp (strategy-smoothest)"
PAPER = PROTOCOL[0]  # FGSM 0.01, the paper's headline
COLUMNS = ("the paper says", "for", "against", "how sure", "notebook")
AUTOATTACK, STRONGEST = "cifar10-resnet20-autoattack", Attack("autoattack", eps=SMALL[0] / 255).name
ABLATIONS, COST = ("cifar10-resnet20-ablations", "search-ablations"), ("cost", "latency")
TIMES = ("cost", "pruning-time")


def abstract(root: str | Path, records: Sequence[Record]) -> pd.DataFrame:
    """One row per statement of the abstract; `records` of one comparison, facts from the whole store."""
    rows = [clean(records), fragile(records), milder(records, strong(root)), kept(records)]
    rows += [free(root, records), smooth(root)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def clean(records: Sequence[Record]) -> tuple[str, ...]:
    frame = methods(paired.against(records, BENIGN)).sort_values("difference")
    worse, best = frame[frame.verdict == "worse"], frame.iloc[-1]
    return (
        "structured pruning methods keep clean accuracy",
        f"{len(frame) - len(worse)} of {len(frame)} methods come without a shown loss; nearest to {CONTROL}: "
        f"{best.method}, {best.difference:+.1f} points",
        f"{len(worse)} of {len(frame)} are shown to lose"
        + (
            f", {-worse.difference.iloc[-1]:.1f} to {-worse.difference.iloc[0]:.1f} points"
            if len(worse)
            else ""
        ),
        sure(records, BENIGN),
        "02_fragility",
    )


def fragile(records: Sequence[Record]) -> tuple[str, ...]:
    lost: list[str] = []
    gained: list[str] = []
    titles = attack_titles(records)
    for attack in (*PROTOCOL, sound_attack(records)):
        for control, sentences in ((CONTROL, lost), ("unpruned", gained)):
            frame = methods(paired.against(records, attack, control))
            worse, better = (len(frame[frame.verdict == word]) for word in ("worse", "better"))
            sentences.append(f"{titles[attack]}: {worse} of {len(frame)} less robust, {better} more")
    return (
        "but lose robustness",
        f"than {CONTROL}: {'; '.join(lost)}",
        f"than the unpruned network as it was, with which the paper compares: {'; '.join(gained)}",
        sure(records, PAPER, sound_attack(records)),
        "02_fragility",
    )


def strong(root: str | Path) -> list[Record]:
    """Records of the networks that met AutoAttack at its smaller eps; [] before SR-GKP and another have."""
    found = having(Store(root).of_suite(AUTOATTACK), [STRONGEST])
    pruned = {record["label"] for record in found if record.get("pruned")}
    return found if METHOD in pruned and len(pruned) > 1 else []


def milder(records: Sequence[Record], attacked: Sequence[Record] = ()) -> tuple[str, ...]:
    """SR-GKP against what removes whole filters or channels by a criterion.

    `attacked`: records of the same networks with AutoAttack, where there are any.
    """
    won: list[str] = []
    lost: list[str] = []
    titles = attack_titles([*records, *attacked])
    sources = [(records, attack) for attack in (*PROTOCOL, sound_attack(records))]
    for source, attack in [*sources, *([(attacked, STRONGEST)] if attacked else [])]:
        frame = paired.against(source, attack, METHOD)
        frame = methods(frame)
        frame = frame[frame.method.map(family) != GROUPED]
        for word, sentences in (("worse", won), ("better", lost)):
            names = list(frame[frame.verdict == word].method)
            listed = f" ({', '.join(names)})" if names else ""
            sentences.append(f"{titles[attack]}: {len(names)} of {len(frame)}{listed}")
    return (
        "SR-GKP loses less than filter pruning",
        f"of the methods that remove filters or channels, less robust than SR-GKP: {'; '.join(won)}",
        f"more robust: {'; '.join(lost)}",
        sure(records, PAPER, sound_attack(records)) + autoattacked(attacked),
        "02_fragility",
    )


def autoattacked(records: Sequence[Record]) -> str:
    """On how many images AutoAttack ran, as the end of a sentence; "" without records."""
    if not records:
        return ""
    n = min(record["checkpoints"]["last"]["metrics"][STRONGEST]["n"] for record in records)
    return f"; AutoAttack: {n:,} images"


def kept(records: Sequence[Record]) -> tuple[str, ...]:
    """Shown gains against shown losses; what is not shown to differ stands with the losses, as no gain."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], "not shown": []}
    titles = attack_titles(records)
    for control in ("unpruned", CONTROL):
        for attack in (*PROTOCOL, sound_attack(records)):
            row = difference(records, attack, control)
            side = row.verdict if row.verdict in sides else "not shown"
            sides[side].append(f"{points_text(row.difference)} {titles[attack]} over {control}")
    gained, lost, open_ = ("; ".join(texts) or "none" for texts in sides.values())
    return (
        "SR-GKP gains robustness over the unpruned network",
        f"points shown: {gained}",
        f"points shown: {lost}; not shown either way: {open_}",
        sure(records, PAPER, sound_attack(records)),
        "02_fragility",
    )


def free(root: str | Path, records: Sequence[Record]) -> tuple[str, ...]:
    record = next(r for r in compared(records) if r["label"] == METHOD)
    training = sum(epoch["seconds"] for epoch in record["history"]["epochs"])
    step, fact, timed = record["pruning"], Store(root).fact(*COST), Store(root).fact(*TIMES)
    measured = timed["facts"]["networks"].get(record["config"]["network"]) if timed else None
    seconds = measured["seconds"] if measured else step["seconds"]
    share = 100 * seconds / training
    slower = "its latency has no record yet"
    if fact:
        times = ", ".join(
            f"{found['pruned, grouped']['ratio']:.1f} times at {batch} ({network})"
            for network, batches in fact["facts"]["networks"].items()
            for batch, found in batches.items()
        )
        device = fact["provenance"]["device"]
        slower = f"as grouped convolutions it takes {times} the unpruned network's time on {device}"
    return (
        "for free: in one shot, from the weights alone",
        f"{seconds_text(seconds)} and {step['data_images']} images, {share:.1f} % of a "
        f"fine-tuning of {len(record['history']['epochs'])} epochs",
        slower,
        "one machine",
        "04_cost",
    )


def smooth(root: str | Path) -> tuple[str, ...]:
    fact = Store(root).fact(*ABLATIONS)
    statement = "because it keeps smooth kernels"
    if fact is None:
        return (statement, "no record yet", "no record yet", "–", "03_ablations")
    everything = {
        title: entry["networks"]["all networks"] for title, entry in fact["facts"]["searches"].items()
    }
    groups = everything["alpha 0"]["groups"]
    same = min(everything[title]["same_groups"] for title in everything if title.startswith("alpha"))
    rough = min(entry["mean_percent"] for entry in fact["facts"]["smoother"].values())
    return (
        statement,
        "it deals filters to groups by their smoothness" + smoothest(root),
        f"whatever the weight of smoothness in the search, {same} of {groups} groups or more keep the same "
        f"set; kept sets are on average rougher than {rough:.1f} % of all sets",
        f"{groups} groups of {len(fact['facts']['smoother'])} published networks, no training",
        "03_ablations",
    )


def smoothest(root: str | Path) -> str:
    """What keeping the smoothest kernels does after fine-tuning, as the end of a sentence; "" untrained."""
    records, attacks = Store(root).of_suite(ABLATIONS[0]), (PROTOCOL[-1], BENIGN)
    if not {METHOD, SMOOTHEST} <= {record["label"] for record in having(records, attacks)}:
        return ""
    texts, titles = [], attack_titles(records)
    for attack in attacks:
        row = difference(compared(records), attack, METHOD, SMOOTHEST)
        shown = "shown" if row.verdict in ("better", "worse") else "not shown"
        texts.append(f"{points_text(row.difference)} points {titles[attack]} ({shown})")
    return f"; keeping the smoothest kernels instead of its own brings {', '.join(texts)}"


def difference(records: Sequence[Record], attack: str, control: str, label: str = METHOD) -> pd.Series:
    """`label` minus `control` under an attack: the row of `paired.against`."""
    return paired.against(records, attack, control).set_index("method").loc[label]


def points_text(points: float) -> str:
    """ "+1.2"; what rounds to zero has no sign."""
    return f"{points:+.1f}" if round(points, 1) else "0.0"


def methods(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `paired.against` that are pruning methods and no controls."""
    return frame[~frame.method.isin(CONTROLS)]


def sure(records: Sequence[Record], *attacks: str) -> str:
    """ "9,979 images, 1 seed, 4 epochs; McNemar's test, Holm-corrected"."""
    trained = [record for record in compared(records) if record["config"]["recipe"]]
    sizes = {trained[0]["checkpoints"]["last"]["metrics"][attack]["n"] for attack in attacks}
    images = " and ".join(f"{n:,}" for n in sorted(sizes, reverse=True))
    seeds = len({record["config"]["seed"] for record in trained})
    epochs = trained[0]["config"]["recipe"]["epochs"]
    plural = "s" * (seeds > 1)
    return f"{images} images, {seeds} seed{plural}, {epochs} epochs; McNemar's test, Holm-corrected"
