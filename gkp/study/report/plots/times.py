"""Figures of times: pruning, a forward pass, speedups, the search over sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from gkp.study.analysis.labels import method_title, network_title
from gkp.study.facts.timings import OTHER_METHODS
from gkp.study.report.plots.style import CHOSEN, DASHED, DOUBLE, INK, LOOKS, look, new_figure, spotlit, styled


@styled
def pruning_times(frame: pd.DataFrame) -> Figure:
    """Seconds of every method's pruning step on a log axis; hollow: of a run, with what it needs beforehand.

    frame: of `gkp.study.analysis.method.costs.steps`: method, seconds, warm, images.
    """
    frame = frame.sort_values("seconds", ignore_index=True)
    figure = new_figure(DOUBLE, 0.7 + 0.15 * len(frame))
    axes = figure.subplots()
    for row in frame.itertuples():
        style = spotlit(row.method)
        face = style.colour if row.warm else "white"
        line = style.line | {"markerfacecolor": face, "markeredgecolor": style.colour}
        axes.plot(row.seconds, row.Index, linestyle="", **line)
        if row.images:
            axes.annotate(
                f"looks at {row.images:,} images", (row.seconds, row.Index), xytext=(6, 0), va="center",
                textcoords="offset points", fontsize=7, color=style.colour,
            )  # fmt: skip
    axes.set(xscale="log", ylim=(len(frame) - 0.4, -0.6), xlim=(0.005, 20_000))
    axes.set_yticks(range(len(frame)), [method_title(label) for label in frame.method])
    for text, label in zip(axes.get_yticklabels(), frame.method, strict=True):
        text.set_color(spotlit(label).colour)
    axes.set_xlabel(
        "seconds of the pruning step (log axis); filled: weights alone, median of calls; hollow: one run"
    )
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def latency(facts: Mapping[str, Any]) -> Figure:
    """Time of a forward pass over that of the unpruned network: a panel per network, a marker per batch.

    facts: of `gkp.study.facts.timings.latency`. Bars are quartiles of the rounds; dashed: the
    unpruned network.
    """
    networks = facts["networks"]
    titles = [title for title in next(iter(next(iter(networks.values())).values())) if title != "unpruned"]
    figure = new_figure(DOUBLE, 1.0 + 0.3 * len(titles))
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (network, batches) in zip(panels, networks.items(), strict=True):
        for place, (batch, measured) in enumerate(batches.items()):
            dense = measured["unpruned"]["seconds"]
            for row, title in enumerate(titles):
                colour = look(OTHER_METHODS.get(title, "sr-gkp")).colour
                _bar(axes, measured[title], dense, row + 0.16 * (2 * place - 1), place, batch, colour)
        axes.axvline(1, **DASHED)
        axes.set_title(network_title(network))
        axes.set(yticks=range(len(titles)), yticklabels=titles, ylim=(len(titles) - 0.5, -0.5))
        axes.set_xlabel("time over that of the unpruned network; bars: quartiles")
        axes.grid(axis="y", visible=False)
    panels[0].set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    figure.legend(by_label.values(), by_label.keys(), ncols=len(by_label), loc="outside lower center")
    return figure


def _bar(
    axes: Axes, timing: Mapping[str, float], dense: float, row: float, place: int, batch: str, colour: str
) -> None:
    """One median with its quartiles; later batches are hollow."""
    middle = timing["seconds"] / dense
    spread = [[middle - timing["low"] / dense], [timing["high"] / dense - middle]]
    face = "white" if place else colour
    label = batch if colour == look("sr-gkp").colour else None
    axes.errorbar(
        middle,
        row,
        xerr=spread,
        fmt="os"[place % 2],
        ms=5,
        color=colour,
        mfc=face,
        elinewidth=0.7,
        label=label,
    )


@styled
def speedups(frame: pd.DataFrame) -> Figure:
    """How many times as fast each thing is as what it is measured against, on a log axis.

    frame: of `gkp.study.analysis.method.speed.ratios`. Bars are quartiles over the rounds, small strokes the
    goals; dashed: equally fast. Several methods' times on one network stand in one row, in their colours.
    """
    methods = [name for name in frame["ours"].unique() if name in LOOKS]
    methods = methods if len(methods) > 1 else []
    titles = [
        row.what if row.ours in methods else f"{row.what}: {row.ours} against {row.against}"
        for row in frame.itertuples()
    ]
    places = {title: place for place, title in enumerate(dict.fromkeys(titles))}
    figure = new_figure(DOUBLE, 0.9 + 0.17 * len(places))
    axes = figure.subplots()
    for title, row in zip(titles, frame.itertuples(), strict=True):
        met, place = pd.isna(row.goal) or row.ratio >= row.goal, places[title]
        bars = [[row.ratio - row.low], [row.high - row.ratio]]
        colour = look(row.ours).colour if row.ours in methods else CHOSEN
        face = colour if met else "white"
        axes.errorbar(row.ratio, place, xerr=bars, fmt="o", ms=4, color=colour, mfc=face, elinewidth=0.8)
        if not pd.isna(row.goal):
            axes.plot(row.goal, place, "|", color=INK, ms=8, mew=1)
    axes.axvline(1, **DASHED)
    axes.set(xscale="log", ylim=(len(places) - 0.4, -0.6))
    axes.set_yticks(range(len(places)), list(places))
    least, most = frame.low.min(), frame.high.max()
    near, step = most < 4, 2 if most < 16 else 4
    steps = (0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4) if near else [step**power for power in range(-2, 10)]
    ticks = [tick for tick in steps if least / 1.2 < tick < 1.2 * most]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    fast = "times as fast as dense" if methods else "times as fast"
    axes.set_xlabel(f"{fast} (log axis); strokes: goals, hollow: missed")
    for name in methods:
        axes.plot([], [], "o", ms=4, color=look(name).colour, label=method_title(name))
    if methods:
        axes.legend(loc="lower left")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def search_seconds(frame: pd.DataFrame) -> Figure:
    """Seconds of the search of one layer against its input channels, a line for each number of groups.

    frame: of `gkp.study.analysis.method.speed.by_size`. Both axes are logarithmic.
    """
    figure = new_figure(DOUBLE, 2.6)
    axes = figure.subplots()
    counts, widths = sorted(frame["groups"].unique()), sorted(frame["width"].unique())
    colours = sns.light_palette(CHOSEN, len(counts) + 1)[1:]
    for colour, count in zip(colours, counts, strict=True):
        part = frame[frame.groups == count].sort_values("width")
        axes.plot(part["width"], part["median"], "o-", color=colour, ms=3.5, linewidth=1.2, label=str(count))
    axes.set(xscale="log", yscale="log", ylabel="seconds (log axis)")
    axes.set_xlabel("input channels and filters of a 3x3 layer (log axis)")
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(width) for width in widths])
    axes.legend(title="groups", loc="upper left")
    return figure
