"""What choosing a checkpoint moves: one training, and the epochs that different rules show of it.

The paper evaluates every epoch on the test set and prints up to three of them. Here are networks whose
epochs were all attacked too (suite cifar10-resnet20-selection), so that the same choice can be made.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.study.analysis.comparison import PROTOCOL, compared
from gkp.study.analysis.labels import BENIGN, attack_titles, ordered
from gkp.study.runs.store import Record

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


def courses(records: Sequence[Record]) -> list[Record]:
    """The records to compare whose every epoch was attacked, and each choice by the whole protocol."""
    nothing: Record = {"metrics": {}}
    needed = {BENIGN, *PROTOCOL}
    return [
        record
        for record in compared(records)
        if record.get("history") and all(row.get("attacked") for row in record["history"]["epochs"])
        if all(needed <= record["checkpoints"].get(rule, nothing)["metrics"].keys() for rule in RULES)
    ]


def course(record: Record) -> pd.DataFrame:
    """After every epoch (the index): lr, and accuracy on the test images in percent (columns of SCORES)."""
    rows = [{**row, **row["attacked"]} for row in record["history"]["epochs"]]
    frame = pd.DataFrame(rows).set_index("epoch")[["lr", *SCORES]]
    return frame.assign(**{column: 100 * frame[column] for column in SCORES})


def rules_text(records: Sequence[Record]) -> pd.DataFrame:
    """Text table: per network and rule the epoch that it shows, and accuracies in percent."""
    titles, lines = attack_titles(records), []
    for record in in_order(records):
        for rule, title in RULES.items():
            kept = record["checkpoints"][rule]
            line = {"method": record["label"], "checkpoint": title, "epoch": str(kept["epoch"])}
            for attack in (BENIGN, *PROTOCOL):
                line[titles[attack]] = f"{100 * kept['metrics'][attack]['accuracy']:.2f}"
            lines.append(line)
    return pd.DataFrame(lines)


def moved_text(records: Sequence[Record]) -> pd.DataFrame:
    """Text table: points between the lowest and the highest accuracy, among all epochs, among those at the
    last learning rate, and among what the paper's three rules show."""
    titles, lines = attack_titles(records), []
    for record in in_order(records):
        frame = course(record)
        shown = [record["checkpoints"][rule]["epoch"] for rule in MARKS]
        parts = {
            f"all {len(frame)} epochs": frame,
            "epochs at the last learning rate": frame[frame.lr == frame.lr.iloc[-1]],
            "what the paper's rules show": frame.loc[shown],
        }
        for words, part in parts.items():
            line = {"method": record["label"], "among": words}
            for column, attack in SCORES.items():
                line[titles[attack]] = f"{part[column].max() - part[column].min():.2f}"
            lines.append(line)
    return pd.DataFrame(lines)


def in_order(records: Sequence[Record]) -> list[Record]:
    found = {record["label"]: record for record in courses(records)}
    return [found[label] for label in ordered(found)]
