"""Paired comparisons: tests on the same images, ranks under two protocols, what predicted labels add.

Differences are in points (percent of the images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from gkp.study.analysis.comparison import Comparison, gain, points
from gkp.study.analysis.labels import BENIGN, CONTROL, CONTROLS, ordered
from gkp.utils.stats import mcnemar, mcnemar_clustered

LEVEL = 0.05  # of a test, after Holm's correction


def against(comparison: Comparison, attack: str, control: str = CONTROL) -> pd.DataFrame:
    """method, control, difference (points, positive: the method is better), p, verdict.

    McNemar's exact test on the same images, p corrected by Holm for the number of rows. Several seeds are
    paired seed by seed, and an image that several networks saw is one observation (`mcnemar_clustered`);
    the test is about these networks on other images, not about other seeds. Twins have one row. The
    verdict is "better", "worse" or "not shown to differ".
    """
    if not comparison.right(control, attack):
        raise ValueError(f"no record of {control!r} under {attack}: run the suite to its end")
    rows = []
    for label in comparison.labels:
        pairs = comparison.pairs((label, attack), (control, attack)).values()
        if label == control or not pairs:
            continue
        n = min(len(own) for own, _ in pairs)
        a, b = (torch.stack([answers[:n] for answers in side]) for side in zip(*pairs, strict=True))
        p = mcnemar(a[0], b[0]) if len(pairs) == 1 else mcnemar_clustered(a, b)
        rows.append({"method": label, "control": control, "difference": gain(a, b), "p": p})
    frame = pd.DataFrame(rows, columns=["method", "control", "difference", "p"])
    frame["p"] = holm(frame["p"])
    frame["verdict"] = [
        "not shown to differ" if p >= LEVEL else "better" if points > 0 else "worse"
        for points, p in zip(frame["difference"], frame["p"], strict=True)
    ]
    return frame


def holm(p: pd.Series) -> list[float]:
    """Holm's (1979) step-down correction: p-values that can be compared with one level together."""
    corrected, highest = dict.fromkeys(p.index, 1.0), 0.0
    for place, index in enumerate(p.sort_values(kind="stable").index):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = highest
    return [corrected[index] for index in p.index]


def against_text(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of `against` by title, side by side: "-2.20 worse (p < 0.001)", no word if nothing is shown."""
    columns = {}
    for title, frame in frames.items():
        words = frame["verdict"].map({"better": " better", "worse": " worse"}).fillna("")
        cells = zip(frame["difference"], words, frame["p"], strict=True)
        texts = [f"{gain:+.2f}{word} ({p_text(p)})" for gain, word, p in cells]
        columns[title] = pd.Series(texts, index=list(frame["method"]), dtype=object)
    table = pd.DataFrame(columns)
    table = table.loc[ordered(table.index)].fillna("–")
    return table.rename_axis("method").reset_index()


def who_beats(frame: pd.DataFrame) -> str:
    """The pruning methods of an `against` that are shown to be better than its control, as a sentence."""
    pruned = frame[~frame.method.isin(CONTROLS)]
    better = list(pruned[pruned.verdict == "better"].method)
    worse = sum(pruned.verdict == "worse")
    control = frame.control.iloc[0]
    return (
        f"of {len(pruned)} methods, {len(better)} shown to be better than {control}"
        f"{' (' + ', '.join(better) + ')' if better else ''}, {worse} shown to be worse"
    )


def p_text(p: float) -> str:
    """ "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def ranks(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """Rank of every pruned network under each attack, 1 the most accurate; index: label."""
    frame = points(comparison.pruned, names)
    frame = frame[frame.label.isin(comparison.labels)]
    return frame.pivot_table(index="label", columns="attack", values="mean")[list(names)].rank(
        ascending=False, method="min"
    )


def agreement(comparison: Comparison, first: str, second: str) -> tuple[float, int]:
    """Spearman's rank correlation of the pruned networks under two attacks, and their number."""
    frame = ranks(comparison, list(dict.fromkeys((first, second)))).rank(method="average")
    return float(frame[first].corr(frame[second])), len(frame)


def label_effect(comparison: Comparison) -> pd.DataFrame:
    """What predicted labels add to the accuracy under the same FGSM, in points, on the same images.

    label, attack (the one on predicted labels), benign error (percent), effect (points).
    """
    rows = []
    for name, attack in comparison.attacks.items():
        true = replace(attack, labels="true").name
        if attack.kind != "fgsm" or name == true or true not in comparison.attacks:
            continue
        for label in comparison.labels:
            seed, sides = min(comparison.pairs((label, name), (label, true)).items())
            error = 100 - 100 * comparison.right(label, BENIGN)[seed].double().mean().item()
            rows.append({"label": label, "attack": name, "benign error": error, "effect": gain(*sides)})
    return pd.DataFrame(rows, columns=["label", "attack", "benign error", "effect"])


def label_effect_text(frame: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """One row per attack: what predicted labels add, and how that goes with the clean error."""
    rows = []
    for attack, part in frame.groupby("attack", sort=False):
        low, high = part["effect"].min(), part["effect"].max()
        varies = part["effect"].nunique() > 1 and part["benign error"].nunique() > 1
        correlation = part["effect"].rank().corr(part["benign error"].rank()) if varies else 0.0
        row = {
            "attack": titles[attack],
            "networks": len(part),
            "mean (points)": f"{part['effect'].mean():+.2f}",
        }
        row["lowest to highest"] = f"{low:+.2f} to {high:+.2f}"
        rows.append(row | {"rank correlation with clean error": f"{correlation:.2f}" if varies else "–"})
    return pd.DataFrame(rows)
