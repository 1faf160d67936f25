"""The paper's CIFAR-10 tables (expected/paper_cifar10.csv) beside what the records say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from gkp.study.analysis.audit import significant
from gkp.study.analysis.claims import CLAIMS, Claim
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, points
from gkp.study.analysis.labels import BENIGN, CONTROL, network_title
from gkp.study.runs.run import RATE

TABLES = Path("expected") / "paper_cifar10.csv"
MAIN_TABLES = ("9", "10", "11", "12")
RULES = ("single", "Best Benign")  # the row of a method with one model, else its best-benign row
# The methods of the paper's tables, and ours.
NAMES = {
    "Unpruned": "unpruned",
    "SR-GKP": "sr-gkp",
    "TMI-GKP": "tmi-gkp",
    "L1Norm": "l1-a",  # VGG-16 has one profile
    "L1Norm-A": "l1-a",
    "L1Norm-B": "l1-b",
    "FPGM": "fpgm-training",
    "SFP": "sfp",
    "HRank": "hrank",
    "LRF": "lrf",
    "CC": "cc",
    "DHP": "dhp",
    "GAL": "gal",
    "NPPM": "nppm",
    "RAP-ADMM": "rap-admm",
}
COLUMNS = dict(zip(("benign", "fgsm_0.01", "fgsm_0.1", "pgd3_8/255"), (BENIGN, *PROTOCOL), strict=True))
ATTACKS = list(COLUMNS.values())
MOVES = "; the epoch alone moves FGSM 0.01 by 5.8 points"
WORDS = {"fgsm_0.01": "FGSM 0.01", "fgsm_0.1": "FGSM 0.1", "pgd3_8/255": "PGD-3 8/255"}


def rows(path: str | Path, network: str | None = None) -> pd.DataFrame:
    """network, method, label (ours), checkpoint_rule and percent per attack: a row per method and network.

    Tables 9 to 12, at the pruning rate of the paper's main results; `network` as in `gkp.nets.models`.
    """
    printed = pd.read_csv(path, dtype=str).fillna("")
    printed["network"] = printed.network.str.lower().str.replace("-", "")
    chosen = printed.table.isin(MAIN_TABLES) & (printed.pruning_rate_percent == f"{100 * RATE:g}")
    chosen &= printed.checkpoint_rule.str.startswith(RULES)
    if network is not None:
        chosen &= printed.network == network
    printed = printed[chosen].drop_duplicates(["network", "method"])
    columns = ["network", "method", "checkpoint_rule"]
    frame = printed[columns].assign(label=[NAMES[name] for name in printed.method])
    for column, attack in COLUMNS.items():
        frame[attack] = pd.to_numeric(printed[column], errors="coerce")
    return frame.reset_index(drop=True)


def claims(path: str | Path, misses: Mapping[str, str] | None = None) -> list[Claim]:
    """A claim for every number of the paper that a suite of ours can reach, by network, method and attack.

    misses: id -> explanation of the known misses. ValueError for an id that no claim has.
    """
    stated, misses = [], dict(misses or {})
    for _, row in rows(path).iterrows():
        for column, attack in COLUMNS.items():
            printed = float(row[attack])
            if math.isnan(printed):
                continue
            rule = "last" if row.checkpoint_rule == "single" else "best-test"
            words = f"{network_title(row.network)}, {row.method}, {WORDS.get(column, column)}"
            name = f"P-{row.network}-{row.label}-{column}"
            explanation = misses.pop(name, "")
            stated.append(
                Claim(
                    id=name,
                    statement=f"the paper's {words}",
                    expect=printed,
                    tolerance=1.0 if attack == BENIGN else 4.0,
                    unit="%",
                    why="one seed and another baseline there" + MOVES * (rule == "best-test"),
                    ours={
                        "suite": f"cifar10-{row.network}",
                        "label": row.label,
                        "rule": rule,
                        "attack": attack,
                    },
                    verdict="miss" if explanation else "ok",
                    explanation=explanation,
                )
            )
    if misses:
        raise ValueError(
            f"{CLAIMS}: explained misses of no number in the paper's tables: {', '.join(misses)}"
        )
    return stated


def beside_ours(comparison: Comparison, path: str | Path) -> pd.DataFrame:
    """Text table "paper | ours" of every method with rows in both; empty where the network is another."""
    ours, lines = comparison.points, []
    for network in sorted({record.run.network for record in comparison.compared}):
        for _, row in rows(path, network).iterrows():
            line = {"method": row.method}
            for attack in ATTACKS:
                point = ours.get((row.label, "last", attack))
                mine = f"{point.mean:.2f}" if point else "–"
                line[comparison.titles.get(attack, attack)] = f"{row[attack]:.2f} / {mine}"
            lines.append(line)
    return pd.DataFrame(lines)


def gain_over_unpruned(comparison: Comparison, path: str | Path, method: str = "sr-gkp") -> pd.DataFrame:
    """Points that pruning adds to the unpruned network, in the paper's tables and in the records.

    The paper compares with the network before fine-tuning. Ours is shown against that and against the
    network that was fine-tuned in the same way.
    """
    lines = []
    for network, group in rows(path).groupby("network", sort=False):
        by_label = group.set_index("label")
        if {method, "unpruned"} <= set(by_label.index):
            gain = {attack: by_label[attack][method] - by_label[attack]["unpruned"] for attack in ATTACKS}
            lines.append({"network": network_title(network), "compared with": "unpruned (paper)"} | gain)
    for network in sorted({record.run.network for record in comparison.compared}):
        same = Comparison(record for record in comparison if record.run.network == network)
        ours = points(same, ATTACKS).pivot_table(index="label", columns="attack", values="mean")
        for control in ("unpruned", CONTROL):
            if {method, control} <= set(ours.index):
                gain = (ours.loc[method] - ours.loc[control]).to_dict()
                lines.append({"network": network_title(network), "compared with": f"{control} (ours)"} | gain)
    frame = pd.DataFrame(lines)
    text = frame[["network", "compared with"]].copy()
    for attack in ATTACKS:
        text[comparison.titles.get(attack, attack)] = [f"{value:+.2f}" for value in frame[attack]]
    return text


# ---- what the printed numbers can tell -----------------------------------------------------------


def printed(path: str | Path) -> pd.DataFrame:
    """Tables 9 to 12 of the paper: network, method, checkpoint_rule and one column (percent) per attack.

    Where the larger eps leaves more right, the two FGSM columns were printed in each other's place (one row
    of Table 10); they are put back.
    """
    frame = pd.read_csv(path, dtype=str)
    frame = frame[frame.table.isin(MAIN_TABLES)].rename(columns=COLUMNS)
    for attack in COLUMNS.values():
        frame[attack] = pd.to_numeric(frame[attack], errors="coerce")
    small, large = COLUMNS["fgsm_0.01"], COLUMNS["fgsm_0.1"]
    swapped = frame[large] > frame[small]
    frame.loc[swapped, [small, large]] = frame.loc[swapped, [large, small]].to_numpy()
    return frame[["network", "method", "checkpoint_rule", *COLUMNS.values()]]


def selection(path: str | Path, method: str = "SR-GKP") -> pd.DataFrame:
    """Within and between methods in the paper's tables, in points: one row per network and attack.

    within: median over methods with several printed checkpoints of their highest minus lowest value;
    own: the same of `method`; lead: best value of `method` minus the best of any other pruned network,
    which is the comparison that bold face makes.
    """
    rows = []
    for network, part in printed(path).groupby("network", sort=False):
        pruned = part[part.method != "Unpruned"].groupby("method")
        several = pruned.size()[lambda count: count > 1].index
        for attack in ATTACKS:
            best, spread = pruned[attack].max(), pruned[attack].max() - pruned[attack].min()
            rows.append(
                {
                    "network": network,
                    "attack": attack,
                    "within": spread[several].median(),
                    "own": spread[method],
                    "lead": best[method] - best.drop(method).max(),
                    "ahead": best.drop(method).idxmax(),
                }
            )
    return pd.DataFrame(rows)


def selection_text(path: str | Path, titles: Mapping[str, str]) -> pd.DataFrame:
    """`selection` as a text table; its column "ahead" is called "next" there."""
    frame = selection(path).rename(columns={"ahead": "next"})
    frame["attack"] = frame["attack"].map(titles).fillna(frame["attack"])
    return frame.assign(**{c: frame[c].map("{:+.2f}".format) for c in ("within", "own", "lead")})


def lead_text(path: str | Path) -> str:
    """In how many columns of `selection` SR-GKP leads, and in how many beyond what selection moves."""
    frame = selection(path)
    return (
        f"SR-GKP leads in {(frame.lead > 0).sum()} of {len(frame)} columns, "
        f"and in {(frame.lead > frame.within).sum()} by more than what selection moves."
    )


def visible(
    path: str | Path, shares: dict[str, float], n: int = 10000, method: str = "SR-GKP"
) -> pd.DataFrame:
    """Which of the paper's differences to `method` n images would call significant: one row per attack.

    shares: attack -> assumed share of discordant images, e.g. `discordance` of our own networks, because the
    paper gives no outcomes per image. pairs: networks times other methods, by their best-benign rows.
    """
    lines = []
    table = rows(path)
    for attack, share in shares.items():
        of_method = table[table.method == method].set_index("network")[attack]
        others = table[~table.method.isin((method, "Unpruned"))]
        gaps = of_method[others.network].to_numpy() - others[attack].to_numpy()
        gaps = gaps[~np.isnan(gaps)]
        least = significant(n, share)
        counts = {
            "pairs": len(gaps),
            "better": int((gaps >= least).sum()),
            "worse": int((gaps <= -least).sum()),
        }
        lines.append({"attack": attack, "discordant": share, "least": least} | counts)
    return pd.DataFrame(lines)


def visible_text(frame: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """`visible` as a text table."""
    return pd.DataFrame(
        {
            "attack": titles[row.attack],
            "images two networks disagree on": f"{100 * row.discordant:.1f} %",
            "visible from (points)": f"{row.least:.2f}",
            "SR-GKP visibly better": f"{row.better} of {row.pairs}",
            "visibly worse": f"{row.worse} of {row.pairs}",
        }
        for row in frame.itertuples()
    )
