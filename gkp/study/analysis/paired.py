"""Paired comparisons: tests on the same images, ranks under two protocols, what predicted labels add.

Differences are in points (percent of the images).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from gkp.attacks.outcome import unpack_bits
from gkp.study.analysis.comparison import attacks, distinct, points
from gkp.study.analysis.labels import BENIGN, CONTROL, CONTROLS, ordered
from gkp.study.runs.store import Record
from gkp.utils.stats import mcnemar, mcnemar_clustered, paired_difference

LEVEL = 0.05  # of a test, after Holm's correction


def bits(records: Iterable[Record], label: str, attack: str, rule: str = "last") -> dict[int, Tensor]:
    """Seed -> bool (N,), which images the network of that label classifies right under the attack."""
    found = {}
    for record in records:
        metric = record.get("checkpoints", {}).get(rule, {}).get("metrics", {}).get(attack)
        if record["label"] == label and metric:
            found[record["config"]["seed"]] = unpack_bits(metric["bits"], metric["n"])
    return found


def against(
    records: Sequence[Record], attack: str, control: str = CONTROL, rule: str = "last"
) -> pd.DataFrame:
    """method, control, difference (points, positive: the method is better), p, verdict.

    McNemar's exact test on the same images, p corrected by Holm for the number of rows. Several seeds are
    paired seed by seed, and an image that several networks saw is one observation (`mcnemar_clustered`);
    the test is about these networks on other images, not about other seeds. Twins have one row. The
    verdict is "better", "worse" or "not shown to differ".
    """
    reference = bits(records, control, attack, rule)
    if not reference:
        raise ValueError(f"no record of {control!r} under {attack}: run the suite to its end")
    rows = []
    for label in distinct(records, rule):
        own = bits(records, label, attack, rule)
        seeds = [seed for seed in own if seed in reference]
        if label == control or not seeds:
            continue
        a, b = alike(own, reference)
        gain = 100 * (a.double().mean() - b.double().mean()).item()
        p = mcnemar(a[0], b[0]) if len(seeds) == 1 else mcnemar_clustered(a, b)
        rows.append({"method": label, "control": control, "difference": gain, "p": p})
    frame = pd.DataFrame(rows, columns=["method", "control", "difference", "p"])
    frame["p"] = holm(frame["p"])
    frame["verdict"] = [
        "not shown to differ" if p >= LEVEL else "better" if gain > 0 else "worse"
        for gain, p in zip(frame["difference"], frame["p"], strict=True)
    ]
    return frame


def alike(own: Mapping[int, Tensor], other: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """What two methods have right, paired: two `bits` -> two bool (S, N) of their common seeds and images."""
    seeds = [seed for seed in own if seed in other]
    n = min(len(side[seed]) for side in (own, other) for seed in seeds)
    first, second = (torch.stack([side[seed][:n] for seed in seeds]) for side in (own, other))
    return first, second


def intervals(
    records: Sequence[Record], attack: str, control: str = CONTROL, rule: str = "last"
) -> pd.DataFrame:
    """`against` with low, high (points: the paired 95 % interval over images, uncorrected), n, seeds."""
    frame, reference = against(records, attack, control, rule), bits(records, control, attack, rule)
    rows = []
    for label in frame["method"]:
        a, b = alike(bits(records, label, attack, rule), reference)
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


def counts_text(frames: Mapping[str, pd.DataFrame], method: str = "sr-gkp") -> pd.DataFrame:
    """Frames of `against` by title: how many pruning methods are shown to lose, and how many to gain.

    Columns: attack, methods, less accurate, more, not shown, and the method with its difference in points.
    """
    rows = []
    for title, frame in frames.items():
        pruned = frame[~frame["method"].isin(CONTROLS)]
        worse, better = (int((pruned["verdict"] == word).sum()) for word in ("worse", "better"))
        row = {"attack": title, "methods": str(len(pruned)), "less accurate": str(worse), "more": str(better)}
        row["not shown"] = str(len(pruned) - worse - better)
        own = pruned[pruned["method"] == method]
        row[method] = f"{own['difference'].iloc[0]:+.2f}, {own['verdict'].iloc[0]}" if len(own) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def p_text(p: float) -> str:
    """ "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def ranks(records: Sequence[Record], names: Sequence[str], rule: str = "last") -> pd.DataFrame:
    """Rank of every pruned network under each attack, 1 the most accurate; index: label."""
    once = distinct(records, rule)
    pruned = [record for record in records if record.get("pruned") and record["label"] in once]
    frame = points(pruned, names, rule)
    return frame.pivot_table(index="label", columns="attack", values="mean")[list(names)].rank(
        ascending=False, method="min"
    )


def agreement(records: Sequence[Record], first: str, second: str, rule: str = "last") -> tuple[float, int]:
    """Spearman's rank correlation of the pruned networks under two attacks, and their number."""
    frame = ranks(records, list(dict.fromkeys((first, second))), rule).rank(method="average")
    return float(frame[first].corr(frame[second])), len(frame)


def label_effect(records: Sequence[Record], rule: str = "last") -> pd.DataFrame:
    """What predicted labels add to the accuracy under the same FGSM, in points, on the same images.

    label, attack (the one on predicted labels), benign error (percent), effect (points).
    """
    rows, found = [], attacks(records)
    predicted = [name for name, a in found.items() if a["labels"] == "predicted" and a["kind"] == "fgsm"]
    for name in predicted:
        true = name.replace("_predicted", "_true")
        for label in distinct(records, rule) if true in found else ():
            sides = [bits(records, label, each, rule) for each in (name, true, BENIGN)]
            seed = min(sides[0])
            n = min(len(side[seed]) for side in sides[:2])
            leak, honest = (100 * side[seed][:n].double().mean().item() for side in sides[:2])
            error = 100 - 100 * sides[2][seed].double().mean().item()
            rows.append({"label": label, "attack": name, "benign error": error, "effect": leak - honest})
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
