"""What choosing a checkpoint moves: one training, and the epochs that different rules show of it.

The paper evaluates every epoch on the test set and prints up to three of them. Here are networks whose
epochs were all attacked too (suite cifar10-resnet20-selection), so that the same choice can be made.
"""

from __future__ import annotations

import pandas as pd

from gkp.study.analysis.comparison import PROTOCOL, Comparison
from gkp.study.analysis.labels import BENIGN, ordered
from gkp.study.runs.record import Record

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
    found = {
        record.label: record
        for record in comparison.compared
        if record.epochs and all(row.attacked for row in record.epochs)
        if all(needed <= record.metrics(rule).keys() for rule in RULES)
    }
    return [found[label] for label in ordered(found)]


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
