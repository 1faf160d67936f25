"""Figures of results, drawn from records: one function each, a Matplotlib Figure back.

Accuracies are in percent. Error bars are 95 % Wilson intervals where there is one seed, else the standard
deviation over seeds; every figure that has some says which.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from gkp.study.analysis.comparison import (
    Comparison,
    evenly,
    on_same_images,
    paper_attacks,
    pixel_attacks,
    points,
    sound_attack,
)
from gkp.study.analysis.labels import BENIGN, CONTROL, base, ordered
from gkp.study.report.style import DOUBLE, FAINT, in_front, legend, look, new_figure, save, styled
from gkp.study.runs.record import Record
from gkp.utils.stats import FEWEST, paired_difference, student

TITLE_LETTERS = 12  # in a line, so that five panels fit beside one another
METHOD = "sr-gkp"  # the one whose difference to the control has bars


def save_all(suite: str, records: Comparison, folder: str | Path) -> list[Path]:
    """Write every figure that the suite's records allow as PDF and PNG into `folder`; returns the paths.

    Networks that were trained with fewer seeds than most, and seeds that others lack, are left out.
    """
    figures: dict[str, Figure] = {}
    if records := evenly(records):
        names = headline_attacks(records)
        figures["tradeoff"] = tradeoff(records, names)
        figures["methods"] = methods(records, [BENIGN, *names])
        if pixel_attacks(records, "fgsm"):
            figures["epsilon"] = epsilon_curve(records)
        if any(len(record.epochs) > 1 for record in trained(records)):
            figures["history"] = history(records)
    return [path for name, figure in figures.items() for path in save(figure, Path(folder) / name)]


def headline_attacks(records: Comparison) -> list[str]:
    """The paper's first attack and the sound one, as far as all networks met them."""
    return paper_attacks(records)[:1] + ([sound_attack(records)] if pixel_attacks(records) else [])


# ---- accuracy and robustness ---------------------------------------------------------------------


@styled
def tradeoff(records: Comparison, names: Sequence[str]) -> Figure:
    """Clean accuracy against accuracy under attack, one panel per attack; dashed lines: the control.

    A network that collapsed (COLLAPSE points below the median) is named above the panels and not drawn,
    because it would squeeze all others into a corner. Twins are drawn once.
    """
    frame, titles = points(records, [BENIGN, *names]), records.titles
    frame = frame[frame.label.isin(records.labels)]
    figure = new_figure(DOUBLE, 3.0 + 0.14 * math.ceil(len(set(frame.label)) / 6))
    benign = frame[frame.attack == BENIGN].set_index("label")
    benign, outside = _without_collapsed(benign)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        under = frame[frame.attack == name].set_index("label")
        for label in reversed(ordered(benign.index.intersection(under.index))):
            _cross(axes, benign.loc[label], under.loc[label], label)
        _guide(axes, CONTROL, benign, under)
        axes.set(xlabel="accuracy without attack (%)", ylabel=f"under {titles[name]} (%)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    legend(figure, benign.index)
    figure.suptitle(_note(frame) + outside, fontsize=7, color=FAINT, x=0.01, ha="left")
    return figure


@styled
def methods(records: Comparison, names: Sequence[str]) -> Figure:
    """One row per method, one panel per attack: accuracy with its error bar; dashed line: the control."""
    frame, titles = points(records, names), records.titles
    labels = ordered(frame.label)
    figure = new_figure(DOUBLE, 1.0 + 0.17 * len(labels))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        part = frame[frame.attack == name].set_index("label")
        for row, label in enumerate(labels):
            if label in part.index:
                point = part.loc[label]
                axes.errorbar(point["mean"], row, xerr=_half(point), **look(label).line, **_BARS)
        if CONTROL in part.index:
            axes.axvline(part.loc[CONTROL, "mean"], color=look(CONTROL).colour, **_GUIDE)
        axes.set_title(textwrap.fill(titles[name], TITLE_LETTERS))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
    panels[0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))
    figure.supxlabel(f"accuracy (%); {_note(frame)}", fontsize=7)
    return figure


@styled
def epsilon_curve(records: Comparison, kind: str = "fgsm", names: Sequence[str] = ()) -> Figure:
    """Accuracy over eps in 1/255 (left) and its difference to the control (right), one line per method.

    names: the attacks of the curve, by default all of that kind in pixels. eps = 0 is without attack. All
    points are about the same images, the first that every attack saw. Differences are taken seed by seed.
    Bars: the 95 % interval of SR-GKP's, over seeds where there are three, else over images. The control is
    the unpruned network, fine-tuned like the others. Twins are drawn once.
    """
    found = records.attacks
    names = [BENIGN, *(names or pixel_attacks(records, kind))]
    alike = on_same_images(records, names)
    frame = points(alike, names)
    frame = frame[frame.label.isin(alike.labels)]
    frame["eps"] = [255 * found[name].eps if name != BENIGN else 0.0 for name in frame.attack]
    wide = frame.pivot_table(index="eps", columns="label", values="mean")
    figure = new_figure(DOUBLE, 2.8 + 0.14 * math.ceil(len(wide.columns) / 6))
    left, right = figure.subplots(1, 2)
    for label in reversed(ordered(wide.columns)):
        style = _line(label)
        left.plot(wide.index, wide[label], **style)
        if CONTROL in wide.columns:
            gains = [fmean(_gains(alike, label, name) or [math.nan]) for name in names]
            right.plot(sorted(wide.index), gains, **style)
    note = f"{frame.n.max():,} images"
    if {METHOD, CONTROL} <= set(wide.columns):
        ends = pd.DataFrame([_difference(alike, name) for name in names], sorted(set(frame.eps)))
        seeds = len(_gains(alike, METHOD, BENIGN))
        right.vlines(ends.index, ends[0], ends[1], color=look(METHOD).colour, linewidth=0.8, zorder=4)
        what = f"over {seeds} trainings" if seeds >= FEWEST else "over images"
        note += f"; control: {CONTROL}; bars: 95 % interval of {METHOD}'s paired difference, {what}"
    figure.suptitle(note, fontsize=7, color=FAINT, x=0.01, ha="left")
    left.set(ylabel="accuracy (%)", ylim=(0, None))
    right.set(ylabel="difference to the control (points)")
    for axes in (left, right):
        axes.set_xscale("symlog", base=2, linthresh=wide.index[1], linscale=0.8)
        axes.xaxis.set_major_locator(FixedLocator(wide.index))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{eps:g}" for eps in wide.index])
        axes.set_xlim(-0.2 * wide.index[1], 1.2 * wide.index[-1])
        axes.set_xlabel(f"eps of {kind.upper()}, pixels (1/255)")
    legend(figure, wide.columns)
    return figure


# ---- training ------------------------------------------------------------------------------------


def trained(records: Comparison) -> list[Record]:
    """The compared networks of the lowest seed that have a training history."""
    found = [record for record in records.compared if record.epochs]
    first = min((record.run.seed for record in found), default=0)
    return [record for record in found if record.run.seed == first]


@styled
def history(records: Comparison) -> Figure:
    """Fine-tuning: training loss and held-out accuracy after each epoch (none held out: loss alone)."""
    chosen = trained(records)
    courses = {record.label: pd.DataFrame(record.epochs) for record in chosen}
    held_out = [
        part for part in ("validation", "test") if any(c[part].notna().any() for c in courses.values())
    ]
    figure = new_figure(DOUBLE, 2.4 + 0.14 * math.ceil(len(courses) / 6))
    panels = figure.subplots(1, 1 + bool(held_out), squeeze=False)[0]
    for label in reversed(ordered(courses)):
        course = courses[label]
        style = _line(label) | {"markevery": math.ceil(len(course) / 10)}
        panels[0].plot(course.epoch, course.train_loss, **style)
        if held_out:
            panels[1].plot(course.epoch, 100 * course[held_out[0]].astype(float), **style)
    panels[0].set(ylabel="training loss", ylim=(0, None))
    if held_out:
        panels[1].set(ylabel=f"{held_out[0]} accuracy (%)")
    for axes in panels:
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(figure, courses)
    seeds = {record.run.seed for record in records.compared}
    if len(seeds) > 1:
        note = f"seed {chosen[0].run.seed} of {len(seeds)}"
        figure.suptitle(note, fontsize=7, color=FAINT, x=0.01, ha="left")
    return figure


# ---- parts ---------------------------------------------------------------------------------------

_BARS: dict[str, Any] = {"linestyle": "", "elinewidth": 0.7, "capsize": 0}
COLLAPSE = 15  # points of clean accuracy
_GUIDE: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.7, "zorder": 0.5}


def _gains(records: Comparison, label: str, name: str) -> list[float]:
    """Accuracy of `label` minus the control's under an attack, in points, one per common seed."""
    own, other = (records.right(one, name) for one in (label, CONTROL))
    common = sorted(own.keys() & other.keys())
    return [100 * (own[s].double().mean() - other[s].double().mean()).item() for s in common]


def _difference(records: Comparison, name: str) -> list[float]:
    """Ends of the interval of SR-GKP's accuracy minus the control's, in points."""
    gains = _gains(records, METHOD, name)
    if len(gains) >= FEWEST:
        return list(student(gains))
    own, other = (records.right(label, name) for label in (METHOD, CONTROL))
    a, b = (torch.stack([side[seed] for seed in sorted(own.keys() & other.keys())]) for side in (own, other))
    return [100 * end for end in paired_difference(a, b)]


def _half(point: pd.Series) -> list[list[float]]:
    """Lengths of an error bar below and above."""
    return [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]


def _without_collapsed(benign: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Networks that still classify, and a note on those that do not ("" for none)."""
    alive = benign["mean"] >= benign["mean"].median() - COLLAPSE
    names = ", ".join(f"{label} at {mean:.0f} %" for label, mean in benign["mean"][~alive].items())
    return benign[alive], f"; not drawn: {names} without attack" if names else ""


def _line(label: str) -> dict[str, Any]:
    """How a course is drawn: controls and grouped kernels over the rest, their variants thin."""
    front = in_front(label) and label == base(label)
    return look(label).line | {
        "linewidth": 1.3 if front else 0.8,
        "alpha": 1.0 if front else 0.75,
        "zorder": 3 if front else 2,
    }


def _cross(axes: Axes, across: pd.Series, up: pd.Series, label: str) -> None:
    """A marker with faint error bars both ways."""
    line, height = look(label).line, 3 if in_front(label) else 2
    bars = axes.errorbar(
        across["mean"], up["mean"], xerr=_half(across), yerr=_half(up), zorder=height, **line, **_BARS
    )
    for bar in bars[2]:
        bar.set(alpha=0.4, zorder=1)


def _guide(axes: Axes, label: str, across: pd.DataFrame, up: pd.DataFrame) -> None:
    """Dashed lines through one label: what is right of and above them beats it in both."""
    if label in across.index and label in up.index:
        axes.axvline(across.loc[label, "mean"], color=look(label).colour, **_GUIDE)
        axes.axhline(up.loc[label, "mean"], color=look(label).colour, **_GUIDE)


def _note(frame: pd.DataFrame) -> str:
    """What the error bars and the dashed lines are, in words."""
    most, least = frame.seeds.max(), frame.seeds.min()
    bars = "95 % Wilson interval"
    if most > 1:
        alone = " (Wilson interval for one seed)" if least == 1 else ""
        bars = f"standard deviation over {most} seeds{alone}"
    return f"bars: {bars}" + (f"; dashed: {CONTROL}" if CONTROL in set(frame.label) else "")
