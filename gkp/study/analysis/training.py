"""What the training moves: which of its epochs is shown, and how many it has.

The paper evaluates every epoch on the test set and prints up to three of them. Networks whose epochs were all
attacked too (suite cifar10-resnet20-selection) show what that choice is worth; networks that were trained in
a short and in a long recipe show what the length is worth, and whether it changes who is ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from gkp.study.analysis.audit import kendall, rank_agreement, spearman
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, gain
from gkp.study.analysis.labels import BENIGN, ordered
from gkp.study.analysis.paired import LEVEL, alike, chance, holm
from gkp.study.runs.record import Record
from gkp.utils.stats import paired_difference

# Rule of a record -> what tables call it; the paper's names in brackets.
RULES = {
    "last": "last epoch",
    "best-validation": "best on held-out training images",
    "best-test": "best on test images (Best Benign)",
    "best-fgsm-0.01": "best on test images under FGSM 0.01 (Best a)",
    "best-fgsm-0.1": "best on test images under FGSM 0.1 (Best b)",
}
# The paper's three rules, and how figures mark them.
MARKS = {"best-test": "B", "best-fgsm-0.01": "a", "best-fgsm-0.1": "b"}
# Column of `course` -> the attack that a record calls so.
SCORES = {"test": BENIGN, "fgsm-0.01": PROTOCOL[0], "fgsm-0.1": PROTOCOL[1]}


def courses(comparison: Comparison) -> list[Record]:
    """The records to compare, in the order of all figures, whose every epoch was attacked, and each choice by
    the whole protocol; one per label."""
    needed = {BENIGN, *PROTOCOL}
    by_label = {
        record.label: record
        for record in comparison.compared
        if record.epochs and all(row.attacked for row in record.epochs)
        if all(needed <= record.metrics(rule).keys() for rule in RULES)
    }
    return [by_label[label] for label in ordered(by_label)]


def course(record: Record) -> pd.DataFrame:
    """After every epoch (the index): lr, and accuracy on the test images in percent (columns of SCORES)."""
    rows = [{"epoch": row.epoch, "lr": row.lr, **row.scores} for row in record.epochs]
    frame = pd.DataFrame(rows).set_index("epoch")[["lr", *SCORES]]
    return frame.assign(**{column: 100 * frame[column] for column in SCORES})


def rules_text(comparison: Comparison) -> pd.DataFrame:
    """Text table: per network and rule the epoch that it shows, and accuracies in percent."""
    lines = []
    for record in courses(comparison):
        for rule, title in RULES.items():
            kept = record.kept[rule]
            line = {"method": record.label, "checkpoint": title, "epoch": str(kept.epoch)}
            for attack in (BENIGN, *PROTOCOL):
                line[comparison.titles[attack]] = f"{100 * kept.metrics[attack].accuracy:.2f}"
            lines.append(line)
    return pd.DataFrame(lines)


def moved_text(comparison: Comparison) -> pd.DataFrame:
    """Text table: points between the lowest and the highest accuracy, among all epochs, among those at the
    last learning rate, and among what the paper's three rules show."""
    lines = []
    for record in courses(comparison):
        frame = course(record)
        shown = [record.kept[rule].epoch for rule in MARKS]
        parts = {
            f"all {len(frame)} epochs": frame,
            "epochs at the last learning rate": frame[frame.lr == frame.lr.iloc[-1]],
            "what the paper's rules show": frame.loc[shown],
        }
        for words, part in parts.items():
            line = {"method": record.label, "among": words}
            for column, attack in SCORES.items():
                line[comparison.titles[attack]] = f"{part[column].max() - part[column].min():.2f}"
            lines.append(line)
    return pd.DataFrame(lines)


# ---- the length of the training ------------------------------------------------------------------


def by_epoch(comparison: Comparison) -> pd.DataFrame:
    """label, seed, epoch, lr, loss (of training), test, validation (percent) of every trained network."""
    rows = [
        (r.label, r.run.seed, e.epoch, e.lr, e.train_loss, 100 * e.test, 100 * e.validation)
        for r in comparison.trained
        for e in r.epochs
        if e.test is not None and e.validation is not None
    ]
    return pd.DataFrame(rows, columns=["label", "seed", "epoch", "lr", "loss", "test", "validation"])


def phases_text(comparison: Comparison) -> pd.DataFrame:
    """Text table: test accuracy (percent, mean over seeds) where each learning rate ends, a row per label."""
    frame = by_epoch(comparison)
    ends = frame[frame.lr != frame.groupby(["label", "seed"]).lr.shift(-1)]
    lines = []
    for label in ordered(ends.label):
        part = ends[ends.label == label].groupby(["epoch", "lr"])["test"].mean()
        cells = {f"epoch {epoch}, after lr {lr:g}": f"{value:.2f}" for (epoch, lr), value in part.items()}
        lines.append({"method": label} | cells)
    return pd.DataFrame(lines)


def longer(short: Comparison, long: Comparison, attack: str) -> pd.DataFrame:
    """What more epochs bring: label, seeds, n, short, long (percent), difference, low, high (points), p.

    The same networks under the same attack after two recipes, in common seeds, on the same images; low and
    high are the paired 95 % interval over images, p is McNemar's, corrected by Holm for the rows.
    """
    rows = []
    for label in (label for label in long.labels if any(record.run.recipe for record in _of(long, label))):
        after, before = alike(long, (label, attack), (label, attack), short)
        if len(after):
            low, high = paired_difference(after, before)
            levels = [100 * side.double().mean().item() for side in (before, after)]
            ends = [gain(after, before), 100 * low, 100 * high, chance(after, before)]
            rows.append((label, len(after), after.shape[1], *levels, *ends))
    columns = ["label", "seeds", "n", "short", "long", "difference", "low", "high", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(p=holm(frame["p"]))


def longer_text(short: Comparison, long: Comparison, attacks: Sequence[str]) -> pd.DataFrame:
    """Text table: "66.02 to 68.57, +2.56 significant" for each label and attack."""
    columns = {}
    for attack in attacks:
        frame = longer(short, long, attack)
        cells = [
            f"{row.short:.2f} to {row.long:.2f}: {row.difference:+.2f}"
            + (" significant" if row.p < LEVEL else "")
            for row in frame.itertuples()
        ]
        columns[long.titles[attack]] = pd.Series(cells, index=list(frame.label), dtype=object)
    table = pd.DataFrame(columns)
    return table.loc[ordered(table.index)].fillna("–").rename_axis("method").reset_index()


def ranks(short: Comparison, long: Comparison, attack: str) -> dict[str, dict[str, float]]:
    """Whether the pruned networks rank alike after both recipes: `audit.rank_agreement` by both measures.

    Trainings count that both recipes have.
    """
    short, long = _as_often(short, long)
    measures = {"spearman": spearman, "kendall": kendall}
    return {
        name: rank_agreement(short, attack, attack, others=long, measure=measure)
        for name, measure in measures.items()
    }


def order_kept(short: Comparison, long: Comparison, attack: str) -> dict[str, int]:
    """Of all pairs of trained networks: how many the long recipe tells apart, and what the short one says.

    "pairs"; "significant": told apart after the long recipe (McNemar, Holm-corrected for all pairs); of these
    "same": so after the short one, the same way round, "open": not told apart there, "other": the other way
    round. "only": told apart after the short recipe alone. Trainings count that both recipes have.
    """
    short, long = _as_often(short, long)
    labels = [label for label in long.labels if _of(long, label)[0].run.recipe]
    signs = [_signs(recipe, labels, attack) for recipe in (short, long)]
    pairs = list(zip(*signs, strict=True))
    return {
        "pairs": len(pairs),
        "significant": sum(after != 0 for _, after in pairs),
        "same": sum(before == after != 0 for before, after in pairs),
        "open": sum(before == 0 != after for before, after in pairs),
        "other": sum(before * after < 0 for before, after in pairs),
        "only": sum(before != 0 == after for before, after in pairs),
    }


def ranks_kept_text(short: Comparison, long: Comparison, attacks: Sequence[str]) -> pd.DataFrame:
    """Text table: rank correlations of the two recipes, how many significant differences stay, by attack."""
    lines = []
    for attack in attacks:
        correlations, order = ranks(short, long, attack), order_kept(short, long, attack)
        cells = {
            name.title(): f"{r['correlation']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f})"
            for name, r in correlations.items()
        }
        counts = {"significant": f"{order['significant']} of {order['pairs']}"}
        counts |= {"so already": str(order["same"]), "open then": str(order["open"])}
        counts |= {"other way then": str(order["other"]), "significant then alone": str(order["only"])}
        lines.append({"attack": long.titles[attack]} | cells | counts)
    return pd.DataFrame(lines)


def _signs(comparison: Comparison, labels: Sequence[str], attack: str) -> list[int]:
    """Per pair of labels 1 where the first is significantly ahead, -1 the second, 0 neither."""
    pairs = [alike(comparison, (a, attack), (b, attack)) for a, b in combinations(labels, 2)]
    corrected = holm(pd.Series([chance(a, b) for a, b in pairs], dtype=float))
    return [
        0 if p >= LEVEL else 1 if gain(a, b) > 0 else -1 for p, (a, b) in zip(corrected, pairs, strict=True)
    ]


def _of(comparison: Comparison, label: str) -> list[Record]:
    return [record for record in comparison.compared if record.label == label]


def _as_often(*recipes: Comparison) -> list[Comparison]:
    """The networks that all have, by label and seed."""
    common = set.intersection(*({(r.label, r.run.seed) for r in recipe.compared} for recipe in recipes))
    return [Comparison(r for r in recipe.compared if (r.label, r.run.seed) in common) for recipe in recipes]
