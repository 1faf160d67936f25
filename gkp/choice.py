"""What choosing a checkpoint moves: one training, and the epochs that different rules show of it.

The paper evaluates every epoch on the test set and prints up to three of them. Here are networks whose
epochs were all attacked too (suite cifar10-resnet20-selection), so that the same choice can be made.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gkp.compare import PROTOCOL, compared
from gkp.labels import BENIGN, attack_titles, ordered
from gkp.records import Record
from gkp.style import DOUBLE, legend, look, new_figure, styled

# Rule of a record -> what tables call it; the paper's names in brackets.
RULES = {
    "last": "last epoch",
    "best-validation": "best on validation images",
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
    for record in _in_order(records):
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
    for record in _in_order(records):
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


@styled
def drawn(records: Sequence[Record]) -> Figure:
    """Accuracy on the test images after every epoch: a panel per column of SCORES, a line per network.

    B, a and b mark what the paper's rules show; dotted lines: where the learning rate drops. ValueError
    where no network's epochs were attacked.
    """
    titles, networks = attack_titles(records), _in_order(records)
    if not networks:
        raise ValueError("no network's epochs were attacked: run the suite cifar10-resnet20-selection")
    figure = new_figure(DOUBLE, 2.7)
    for axes, (column, attack) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for record in networks:
            frame, height = course(record), 5 if record is networks[0] else -13
            axes.plot(frame.index, frame[column], **look(record["label"]).line)
            marks: dict[int, str] = {}
            for rule, letter in MARKS.items():
                epoch = record["checkpoints"][rule]["epoch"]
                marks[epoch] = f"{marks[epoch]}, {letter}" if epoch in marks else letter
            for epoch, letters in marks.items():
                place, colour = (epoch, frame[column][epoch]), look(record["label"]).colour
                where = {"xytext": (0, height), "textcoords": "offset points", "ha": "center"}
                axes.annotate(letters, place, **where, color=colour)
        for epoch in frame.index[frame.lr.diff() < 0]:
            axes.axvline(epoch - 0.5, color="0.7", linestyle=":", linewidth=0.8)
        axes.set(title=titles[attack], xlabel="epoch", ylabel="accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(y=0.15)
    legend(figure, [record["label"] for record in networks])
    return figure


def _in_order(records: Sequence[Record]) -> list[Record]:
    found = {record["label"]: record for record in courses(records)}
    return [found[label] for label in ordered(found)]
