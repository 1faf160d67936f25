"""Paired comparisons: tests and intervals on the same images, what predicted labels add.

Differences are in points (percent of the images).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from torch import Tensor

from gkp.study.analysis.compared import Answers, Comparison, stacked
from gkp.study.analysis.comparison import gain
from gkp.study.analysis.labels import BENIGN, CONTROL, CONTROLS, ordered
from gkp.utils.stats import mcnemar, mcnemar_clustered, paired_difference

LEVEL = 0.05  # of a test, after Holm's correction


def against(comparison: Comparison, attack: str, control: str = CONTROL) -> pd.DataFrame:
    """method, control, difference (points, positive: the method is better), p, verdict.

    McNemar's exact test on the same images, p corrected by Holm for the number of rows. Several seeds are
    paired seed by seed, and an image that several networks saw is one observation (`mcnemar_clustered`);
    the test is about these networks on other images, not about other seeds. Twins have one row. The
    verdict is "better", "worse" or "not significant".
    """
    if not comparison.right(control, attack):
        raise ValueError(f"no record of {control!r} under {attack}: run the suite to its end")
    rows = []
    for label in comparison.labels:
        a, b = alike(comparison, (label, attack), (control, attack))
        if label == control or not len(a):
            continue
        rows.append({"method": label, "control": control, "difference": gain(a, b), "p": chance(a, b)})
    return judged(pd.DataFrame(rows, columns=["method", "control", "difference", "p"]))


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with p by Holm over all of them, and the verdict: "better", "worse" or "not significant"."""
    frame = frame.assign(p=holm(frame["p"]))
    verdicts = [
        "not significant" if p >= LEVEL else "better" if points > 0 else "worse"
        for points, p in zip(frame["difference"], frame["p"], strict=True)
    ]
    return frame.assign(verdict=verdicts)


def chance(a: Tensor, b: Tensor) -> float:
    """p of McNemar's test for bool (S, N) each: exact for one seed, with images as clusters for several."""
    return mcnemar(a[0], b[0]) if len(a) == 1 else mcnemar_clustered(a, b)


def alike(
    comparison: Comparison, first: Answers, second: Answers, others: Comparison | None = None
) -> tuple[Tensor, Tensor]:
    """bool (S, N) each: the answers of the two, (label, attack), in common seeds, on common images.

    others: where the second is, if not in the same comparison.
    """
    return stacked(comparison.pairs(first, second, others).values())


def intervals(comparison: Comparison, attack: str, control: str = CONTROL) -> pd.DataFrame:
    """`against` with low, high (points: the paired 95 % interval over images, uncorrected), n, seeds."""
    frame, rows = against(comparison, attack, control), []
    for label in frame["method"]:
        a, b = alike(comparison, (label, attack), (control, attack))
        low, high = paired_difference(a, b)
        rows.append((100 * low, 100 * high, a.shape[1], len(a)))
    ends = pd.DataFrame(rows, columns=["low", "high", "n", "seeds"], index=frame.index)
    return frame.join(ends)


def holm(p: pd.Series) -> list[float]:
    """Holm's (1979) step-down correction: p-values that can be compared with one level together."""
    corrected, highest = dict.fromkeys(p.index, 1.0), 0.0
    for place, index in enumerate(p.sort_values(kind="stable").index):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = highest
    return [corrected[index] for index in p.index]


def against_text(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of `against` by title, side by side: "-2.20 worse (p < 0.001)", a word if significant."""
    columns = {}
    for title, frame in frames.items():
        words = frame["verdict"].map({"better": " better", "worse": " worse"}).fillna("")
        cells = zip(frame["difference"], words, frame["p"], strict=True)
        texts = [f"{gain:+.2f}{word} ({p_text(p)})" for gain, word, p in cells]
        columns[title] = pd.Series(texts, index=list(frame["method"]), dtype=object)
    table = pd.DataFrame(columns)
    table = table.loc[ordered(table.index)].fillna("–")
    return table.rename_axis("method").reset_index()


def counts_text(frames: Mapping[str, pd.DataFrame], method: str = "sr-gkp") -> pd.DataFrame:
    """Frames of `against` by title: how many pruning methods lose significantly, and how many gain.

    Columns: attack, methods, less accurate, more, not significant, and the method with its difference.
    """
    rows = []
    for title, frame in frames.items():
        pruned = frame[~frame["method"].isin(CONTROLS)]
        worse, better = (int((pruned["verdict"] == word).sum()) for word in ("worse", "better"))
        row = {"attack": title, "methods": str(len(pruned)), "less accurate": str(worse), "more": str(better)}
        row["not significant"] = str(len(pruned) - worse - better)
        test = pruned[pruned["method"] == method]
        row[method] = f"{test['difference'].iloc[0]:+.2f}, {test['verdict'].iloc[0]}" if len(test) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def p_text(p: float) -> str:
    """ "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


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
