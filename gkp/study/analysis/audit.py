"""What an evaluation protocol measures: one change at a time, on the very same networks and images.

Everything here works with those networks that have what is asked for. Accuracies are in percent, differences
in points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from gkp.attacks import Attack
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import points
from gkp.study.analysis.labels import BENIGN, attack_title, ordered
from gkp.study.analysis.paired import LEVEL, holm
from gkp.study.runs import protocols
from gkp.study.runs.suites import attacked
from gkp.utils.stats import mcnemar

FEW = 4  # networks that are worth a rank correlation
NORM, PIXEL = "norm_8/255_step2/255_true", "pixel_8/255_step2/255_true"


@dataclass(frozen=True)
class Change:
    """One change of the protocol: from the attack `before` to the attack `after`."""

    what: str
    before: str
    after: str


CHANGES = (
    Change("FGSM 0.01: true labels", "fgsm_norm_0.01_predicted", "fgsm_norm_0.01_true"),
    Change("FGSM 0.01: eps in pixels", "fgsm_norm_0.01_true", "fgsm_pixel_2.55/255_true"),
    Change("FGSM 0.1: true labels", "fgsm_norm_0.1_predicted", "fgsm_norm_0.1_true"),
    Change("FGSM 0.1: eps in pixels", "fgsm_norm_0.1_true", "fgsm_pixel_25.5/255_true"),
    Change("PGD 8/255: 10 steps instead of 3", f"pgd3_{NORM}", f"pgd10_{NORM}"),
    Change("PGD 8/255: 50 steps instead of 10", f"pgd10_{NORM}", f"pgd50_{NORM}"),
    Change("PGD-50 8/255: a random restart", f"pgd50_{NORM}", f"pgd50r1_{NORM}"),
    Change("PGD-3 8/255: eps in pixels", f"pgd3_{NORM}", f"pgd3_{PIXEL}"),
    Change("FGSM 0.5/255: loss in float64", "fgsm_pixel_0.5/255_true", "fgsm_pixel_0.5/255_true_loss64"),
    Change("FGSM 2/255: loss in float64", "fgsm_pixel_2/255_true", "fgsm_pixel_2/255_true_loss64"),
    Change("FGSM 8/255: loss in float64", "fgsm_pixel_8/255_true", "fgsm_pixel_8/255_true_loss64"),
)


def unit_changes(ratio: float = attacked.PIXEL_RATIO) -> list[Change]:
    """The paper's attacks with eps and step times `ratio`, as the suite cifar10-resnet56-unit has them."""
    before = protocols.paper()[1:]
    return [
        Change(f"{attack_title(old.attack)}: eps x {ratio:g}", old.attack.name, new.attack.name)
        for old, new in zip(before, protocols.rescaled(before, ratio), strict=True)
    ]


# ---- one change at a time ------------------------------------------------------------------------


def effect(comparison: Comparison, change: Change) -> pd.DataFrame:
    """label, seed, n, before, after (percent), difference (points), p: one row per network with both.

    On the images that both attacks saw; p by McNemar's exact test, Holm-corrected for these networks.
    """
    rows = []
    for label in comparison.having((change.before, change.after)).labels:
        for seed, sides in comparison.pairs((label, change.before), (label, change.after)).items():
            before, after = (100 * side.double().mean().item() for side in sides)
            row = {"label": label, "seed": seed, "n": len(sides[0]), "before": before, "after": after}
            rows.append(row | {"difference": after - before, "p": mcnemar(*sides)})
    frame = pd.DataFrame(rows, columns=["label", "seed", "n", "before", "after", "difference", "p"])
    return frame.assign(p=holm(frame["p"]))


def effects(comparison: Comparison, changes: Sequence[Change] = CHANGES) -> pd.DataFrame:
    """Text table: one row per change, what it does to the accuracy of the networks that met both attacks."""
    rows = []
    for change in changes:
        frame = effect(comparison, change)
        if frame.empty:
            continue
        low, high = frame.difference.min(), frame.difference.max()
        rows.append(
            {
                "change": change.what,
                "networks": str(len(frame)),
                "images": f"{frame.n.min():,}",
                "before": f"{frame.before.mean():.1f}",
                "after": f"{frame.after.mean():.1f}",
                "points, mean": f"{frame.difference.mean():+.1f}",
                "lowest to highest": f"{low:+.1f} to {high:+.1f}",
                "beyond chance": f"{(frame.p < LEVEL).sum()} of {len(frame)}",
            }
        )
    return pd.DataFrame(rows)


# ---- what could be seen at all -------------------------------------------------------------------


def significant(n: int, discordant: float) -> float:
    """Smallest difference of two accuracies, in points, that n common images call significant at LEVEL.

    discordant: share of the images on which exactly one of the two networks is right; McNemar's test has no
    other. Normal approximation. A true difference is found with a power of 80 % if it is 1.4 times as large.
    """
    if n < 1 or not 0 < discordant <= 1:
        raise ValueError(f"n={n}, discordant={discordant}: give at least one image and a share in (0, 1]")
    return min(100.0, 100 * NormalDist().inv_cdf(1 - LEVEL / 2) * (discordant / n) ** 0.5)


def discordance(comparison: Comparison, name: str) -> float:
    """Median share of images on which one of two pruned networks of one seed is right and the other wrong."""
    pruned = comparison.having([name]).pruned
    shares = [
        (a != b).double().mean().item()
        for first, second in combinations(pruned.labels, 2)
        for a, b in pruned.pairs((first, name), (second, name)).values()
    ]
    if not shares:
        raise ValueError(f"no two pruned networks met {name}: run the suite to its end")
    return float(np.median(shares))


# ---- high-pass filtered images -------------------------------------------------------------------


def table1(comparison: Comparison, path: str | Path) -> pd.DataFrame:
    """Text table: accuracy on the high-pass filtered test set, the paper's ResNet-56 rows above ours.

    One column per theta; theta = 0 is the test set as it is.
    """
    paper = pd.read_csv(path, index_col="theta")
    names = {theta: Attack("highpass", theta=theta).name if theta else BENIGN for theta in paper.index}
    lines = [{"network": f"{method} (paper, ResNet-56)"} | dict(paper[method]) for method in paper]
    frame = points(comparison.having(names.values()), list(names.values()))
    ours = frame.pivot_table(index="label", columns="attack", values="mean")
    for label in ordered(ours.index):
        lines.append({"network": label} | {theta: ours[name][label] for theta, name in names.items()})
    texts = pd.DataFrame(lines)
    for theta in names:
        texts[theta] = [f"{value:.2f}" for value in texts[theta]]
    return texts.rename(columns={theta: f"theta {theta:g}" for theta in names})


# ---- ranks ----------------------------------------------------------------------------------------


def rank_agreement(
    comparison: Comparison,
    first: str,
    second: str,
    draws: int = 500,
    *,
    others: Comparison | None = None,
    measure: Callable[[pd.DataFrame, pd.DataFrame], pd.Series] | None = None,
) -> dict[str, float]:
    """Rank correlation of the pruned networks under two attacks, with a bootstrap interval.

    others: where the networks of the same labels under the second attack are, if not here; measure:
    `spearman`, which is the default, or `kendall`. Of several seeds the mean counts. The images are drawn
    again, the same for all networks, and for both attacks where they saw as many. Every draw adds to the
    noise that the ranks have already, so that drawn correlations sit low; low and high hold 95 % of them
    when their mean is moved to the measured one (at most 1). A wide interval says that these images do not
    settle the ranking. Keys: correlation, low, high, networks, images.
    """
    correlate = measure or spearman
    sides = [comparison.having([first]).pruned, (others or comparison).having([second]).pruned]
    labels = [label for label in sides[0].labels if label in sides[1].labels]
    measured, drawn, n = [], [], 0
    for side, name in zip(sides, (first, second), strict=True):
        right = _counts(side, labels, name)
        n = len(right)
        measured.append(pd.DataFrame([right.mean(0)]))
        drawn.append(pd.DataFrame(_draws(n, draws) @ right.astype(np.float32)))
    correlation, again = float(correlate(*measured)[0]), correlate(*drawn)
    low, high = np.nanquantile(again, (0.025, 0.975)) + correlation - np.nanmean(again)
    return {
        "correlation": correlation,
        "low": max(-1.0, float(low)),
        "high": min(1.0, float(high)),
        "networks": len(labels),
        "images": n,
    }


@lru_cache(maxsize=2)  # a page asks for the same ones dozens of times, and one takes half a second
def _draws(n: int, draws: int) -> np.ndarray:
    """float32 (draws, n): how often each image is drawn."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32)


def _counts(comparison: Comparison, labels: Sequence[str], name: str) -> np.ndarray:
    """int (N, labels): how many of each label's trainings have an image right, of the seeds all have.

    Counts, since shares of a third are rounded and then rank what is equal.
    """
    outcomes = [comparison.right(label, name) for label in labels]
    common = set.intersection(*(set(by_seed) for by_seed in outcomes)) if outcomes else set()
    n = min((len(by_seed[seed]) for by_seed in outcomes for seed in common), default=0)
    counts = [np.sum([by_seed[seed][:n].numpy() for seed in sorted(common)], axis=0) for by_seed in outcomes]
    return np.stack(counts, axis=1)


def ranks_text(sources: Sequence[Comparison], first: str, others: Sequence[str]) -> pd.DataFrame:
    """Text table: rank correlation of every attack with `first`, where FEW pruned networks or more met both.

    sources: of several suites; the first whose networks met an attack is taken for it.
    """
    lines = []
    for other in others:
        for comparison in sources:
            if len(comparison.having((first, other)).pruned) >= FEW:
                r = rank_agreement(comparison, first, other)
                lines.append(
                    {
                        "attack": comparison.titles[other],
                        "rank correlation": f"{r['correlation']:+.2f}",
                        "interval": f"{r['low']:+.2f} to {r['high']:+.2f}",
                        "networks": str(r["networks"]),
                        "images": f"{r['images']:,}",
                    }
                )
                break
    return pd.DataFrame(lines)


def spearman(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Spearman's rank correlation of each row of a with the same row of b."""
    return a.rank(axis=1).corrwith(b.rank(axis=1), axis=1)


def kendall(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Kendall's tau-b of each row of a with the same row of b: pairs in the same order less the others."""
    first, second = np.triu_indices(a.shape[1], k=1)
    signs = [np.sign(side.to_numpy()[:, first] - side.to_numpy()[:, second]) for side in (a, b)]
    untied = np.sqrt(np.prod([(sign != 0).sum(1) for sign in signs], axis=0))
    return pd.Series((signs[0] * signs[1]).sum(1) / untied)
