"""Figures of the audit: what is left of an accuracy, one change of the protocol after another."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gkp.study.analysis.audit import NORM, PIXEL
from gkp.study.analysis.choice import MARKS, SCORES, course, courses
from gkp.study.analysis.comparison import Comparison, points
from gkp.study.analysis.labels import BENIGN, ordered
from gkp.study.report.style import DOUBLE, in_front, legend, look, new_figure, styled

# title -> {words below the axis: attack}, from the paper's evaluation to a sound one; each builds on the one
# before, but for ASIDE, which changes the paper's own
LADDERS: dict[str, dict[str, str]] = {
    "FGSM 0.01": {
        "no attack": BENIGN,
        "as in the paper": "fgsm_norm_0.01_predicted",
        "true labels": "fgsm_norm_0.01_true",
        "eps in pixels": "fgsm_pixel_2.55/255_true",
    },
    "PGD 8/255, step 2/255": {
        "as in the paper\n(3 steps)": f"pgd3_{NORM}",
        "10 steps": f"pgd10_{NORM}",
        "50 steps,\na restart": f"pgd50r1_{NORM}",
        "3 steps,\neps in pixels": f"pgd3_{PIXEL}",
    },
}
ASIDE = f"pgd3_{PIXEL}"


def climbed(records: Comparison) -> dict[str, Comparison]:
    """Title -> the networks that met every attack of that ladder; ladders without one are left out."""
    found = {title: records.having(rungs.values()) for title, rungs in LADDERS.items()}
    return {title: networks for title, networks in found.items() if networks}


@styled
def ladder(records: Comparison) -> Figure:
    """Accuracy (percent) from the paper's evaluation to a sound one: a line per network, a panel per attack.

    Below each attack: its first n images. No line leads to ASIDE.
    ValueError when no network met all attacks of a panel.
    """
    panels = climbed(records)
    if not panels:
        raise ValueError("no network met every attack of a ladder: run the suite cifar10-resnet20-audit")
    shown = ordered(record.label for networks in panels.values() for record in networks)
    figure = new_figure(DOUBLE, 2.6 + 0.14 * math.ceil(len(shown) / 6))
    for axes, (title, networks) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        rungs = LADDERS[title]
        found = points(networks, list(rungs.values()))
        frame = found.pivot_table(index="attack", columns="label", values="mean")
        images = found.groupby("attack")["n"].min()
        steps = sum(name != ASIDE for name in rungs.values())
        places = [*range(steps), math.nan, *range(steps, len(rungs))]
        for label in reversed(ordered(frame.columns)):
            front = {"linewidth": 1.3 if in_front(label) else 0.8, "zorder": 3 if in_front(label) else 2}
            heights = list(frame[label][list(rungs.values())])
            heights.insert(steps, math.nan)  # a gap in the line
            axes.plot(places, heights, **look(label).line | front)
        axes.set(title=title, ylabel="accuracy (%)", ylim=(0, None))
        axes.set_xticks(
            range(len(rungs)), [f"{words}\nn = {images[name]:,}" for words, name in rungs.items()]
        )
    legend(figure, shown)
    return figure


@styled
def choices(records: Comparison) -> Figure:
    """Accuracy on the test images after every epoch: a panel per column of SCORES, a line per network.

    B, a and b mark what the paper's rules show; dotted lines: where the learning rate drops. ValueError
    where no network's epochs were attacked.
    """
    titles, networks = records.titles, courses(records)
    if not networks:
        raise ValueError("no network's epochs were attacked: run the suite cifar10-resnet20-selection")
    figure = new_figure(DOUBLE, 2.7)
    for axes, (column, attack) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for record in networks:
            frame, height = course(record), 5 if record is networks[0] else -13
            axes.plot(frame.index, frame[column], **look(record.label).line)
            marks: dict[int, str] = {}
            for rule, letter in MARKS.items():
                epoch = record.kept[rule].epoch
                marks[epoch] = f"{marks[epoch]}, {letter}" if epoch in marks else letter
            for epoch, letters in marks.items():
                place, colour = (epoch, frame[column][epoch]), look(record.label).colour
                where = {"xytext": (0, height), "textcoords": "offset points", "ha": "center"}
                axes.annotate(letters, place, **where, color=colour)
        for epoch in frame.index[frame.lr.diff() < 0]:
            axes.axvline(epoch - 0.5, color="0.7", linestyle=":", linewidth=0.8)
        axes.set(title=titles[attack], xlabel="epoch", ylabel="accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(y=0.15)
    legend(figure, [record.label for record in networks])
    return figure
