"""Figures of accuracy with against without attack, and of the front of those that nothing beats in both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import base, method_title
from gkp.study.analysis.method import factors
from gkp.study.report.plots.style import (
    DOUBLE,
    FAINT,
    GRID,
    INK,
    SPOTLIGHT,
    legend,
    look,
    new_figure,
    spotlit,
    styled,
)
from gkp.study.runs.suites import stages

PROFILES = {  # "flat" is SR-GKP's own, and in its colour
    "6:3:1": "#332288",
    "1:1:0": "#AA3377",
    "1:3:6": "#BB8800",
    "sensitivity": "#117733",
    "flat": "#CC3311",
}
SELECTIONS = {"beam": "s", "random": "P", "greedy": ">", "reconstruction": "D"}
ASIDE = ((5, "left"), (-5, "right"), (0, "center"))  # points, and the side of a name that is there
UPWARDS = ((0, "center"), (5, "bottom"), (-5, "top"), (13, "bottom"), (-13, "top"))


@styled
def networks(records: Comparison, clean: str, robust: str) -> Figure:
    """Clean against robust accuracy: a marker per network, and the front of those that nothing beats in both.

    Colour: which stage loses how much. Marker: how kernels are chosen; hollow where only the first
    convolution of a block loses any. Dots: controls and filters, with their names where these find room.
    Crosses: from the lowest to the highest training, where there are several.
    """
    frame = factors.front(records, clean, robust)
    figure = new_figure(DOUBLE * 0.85, 3.8)
    axes = figure.subplots()
    best = frame[frame.best].sort_values("clean")
    axes.step(
        best.clean, best.robust, where="pre", color=FAINT, linewidth=0.9, linestyle=(0, (2, 1.5)), zorder=1
    )
    crossed = frame[frame.selection != "–"]
    colours = {profile: PROFILES[profile] for profile in stages.PROFILES if profile in set(crossed.profile)}
    for row in frame.itertuples():
        filters = row.selection == "–"
        colour = spotlit(row.label).colour if filters else colours[row.profile]
        axes.hlines(row.robust, row.clean_low, row.clean_high, color=colour, linewidth=0.6, zorder=2)
        axes.vlines(row.clean, row.robust_low, row.robust_high, color=colour, linewidth=0.6, zorder=2)
        if filters:
            axes.plot(row.clean, row.robust, ".", color=colour, zorder=2)
        else:
            face = colour if row.which == "all" else "white"
            marker = SELECTIONS.get(row.selection, "o")
            axes.plot(row.clean, row.robust, marker, color=colour, markerfacecolor=face, ms=5.5, zorder=3)
    titles = records.titles
    axes.set(xlabel=f"{titles[clean]} accuracy (%)", ylabel=f"accuracy under {titles[robust]} (%)")
    handles = [Line2D([], [], color=c, marker="o", linestyle="", label=p) for p, c in colours.items()]
    known = [name for name in SELECTIONS if name in set(crossed.selection)]
    handles += [Line2D([], [], color=INK, marker=SELECTIONS[n], linestyle="", label=n) for n in known]
    title = "colour: stages\nmarker: kernels"
    if "first" in set(crossed.which):
        title += "\nhollow: which layers"
        handles.append(
            Line2D(
                [], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="first of a block"
            )
        )
    if handles:
        figure.legend(handles=handles, loc="outside right upper", title=title)
    _name_dots(axes, frame)
    return figure


@styled
def finetunings(ways: Mapping[str, Comparison], clean: str, robust: str) -> Figure:
    """Clean against robust accuracy of the same networks, a panel for each fine-tuning, axes alike.

    Pale: where the first fine-tuning leaves them. ways: name -> records, of `finetunings.ways`.
    """
    points = {
        way: {
            record.label: (100 * metrics[clean].accuracy, 100 * metrics[robust].accuracy)
            for record in comparison
            if {clean, robust} <= (metrics := record.metrics()).keys()
        }
        for way, comparison in ways.items()
    }
    titles = next(iter(ways.values())).titles
    figure = new_figure(DOUBLE, 2.6)
    panels = figure.subplots(1, len(ways), sharex=True, sharey=True, squeeze=False)[0]
    first = next(iter(points.values()))
    for axes, (way, by_label) in zip(panels, points.items(), strict=True):
        for x, y in first.values() if by_label is not first else ():
            axes.plot(x, y, ".", color=GRID, zorder=1)
        for label, (x, y) in by_label.items():
            axes.plot(x, y, **look(label).line | {"linestyle": ""}, zorder=3)
        axes.set(title=way, xlabel=f"{titles[clean]} accuracy (%)")
    panels[0].set_ylabel(f"accuracy under {titles[robust]} (%)")
    legend(figure, list(first))
    return figure


def _name_dots(axes: Axes, frame: pd.DataFrame) -> None:
    """Names of what is no grouped kernel, on the first side on which they meet no marker, line or name."""
    figure = axes.figure.figure
    axes.margins(x=0.2, y=0.08)
    figure.draw_without_rendering()
    renderer, to_pixels = FigureCanvasAgg(figure).get_renderer(), axes.transData.transform
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in to_pixels(frame[["clean", "robust"]])]
    corners = to_pixels(frame[frame.best].sort_values("clean")[["clean", "robust"]])
    for (x, y), (after, below) in itertools.pairwise(corners):  # the front goes down, then right
        taken += [Bbox([(x - 1, below), (x + 1, y)]), Bbox([(x, below - 1), (after, below + 1)])]
    low, high = (to_pixels(frame[[f"clean_{end}", f"robust_{end}"]]) for end in ("low", "high"))
    for (x, y), (left, lowest), (right, highest) in zip(
        to_pixels(frame[["clean", "robust"]]), low, high, strict=True
    ):
        taken += [Bbox([(left, y - 1), (right, y + 1)]), Bbox([(x - 1, lowest), (x + 1, highest)])]
    dots = frame[frame.selection == "–"].sort_values("label", key=lambda labels: ~labels.isin(SPOTLIGHT))
    for row in dots.itertuples():
        name = method_title(base(row.label)) + (f", {row.profile}" if row.profile != "–" else "")
        name = name.replace(" + ", "\n+ ")  # narrow enough for the edge at which the unpruned ones lie
        for (y, va), (x, ha) in itertools.product(UPWARDS, ASIDE):
            text = axes.annotate(
                name, (row.clean, row.robust), (x, y), textcoords="offset points",
                ha=ha, va=va, fontsize=7, color=spotlit(row.label).colour,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            free = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if free and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()
