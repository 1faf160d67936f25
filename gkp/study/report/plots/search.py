"""Figures of the search for kernels: a step of its beam, the sets it chooses from; what changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from gkp.search import select
from gkp.study.facts import ablations, anatomy
from gkp.study.facts.ablations import ALL, REFERENCE
from gkp.study.report.plots.style import CHOSEN, DASHED, DOUBLE, GRID, INK, new_figure, styled
from gkp.study.runs.run import RATE

PALE = {False: "#C9D7E6", True: "#6A93BF"}  # two parts of a histogram
UNCHANGED = 0.005  # percent: where a log axis shows "none"


@styled
def beam_step(step: pd.DataFrame, channels: int) -> Figure:
    """The branches of one start kernel when the beam is cut, the best first; in colour those that survive.

    step: of `gkp.study.facts.anatomy.beam_step`. Left: which kernels a branch keeps so far; right: what it
    is ranked by, both smaller is better.
    """
    figure = new_figure(DOUBLE, 0.85 + 0.17 * len(step))
    left, middle, right = figure.subplots(1, 3, width_ratios=[3, 1, 1], sharey=True)
    colours = [CHOSEN if survives else "#9DB7D5" for survives in step["survives"]]
    for row, (kept, colour) in enumerate(zip(step["kept"], colours, strict=True)):
        left.scatter(range(channels), [row] * channels, s=14, color="white", edgecolor=GRID, linewidth=0.6)
        left.scatter(kept, [row] * len(kept), s=22, color=colour)
    left.set(xlabel="input channel", xticks=range(0, channels, 2), yticks=[], ylabel="branches")
    left.set_title(f"kept so far: the start and {len(step['kept'].iloc[0]) - 1} more")
    for axes, column in ((middle, "cost"), (right, "smoothness")):
        lowest = step[column].min()
        axes.barh(range(len(step)), step[column] - lowest, color=colours, height=0.7)
        axes.set(xlabel="above the least", ylim=(len(step) - 0.4, -0.6))
        axes.set_title(column)
    for axes in figure.axes:
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


@styled
def set_smoothness(weight: Tensor, *, groups: int = 8, rate: float = RATE, group: int = 0) -> Figure:
    """Smoothness of every set that could be kept in one group, and where the released search's choice lies.

    Left: all sets of one group, dark those that hold its roughest kernel. Right: for every group, the share
    of sets that are smoother than the choice; a search for smooth kernels would be near 0 %, a random
    choice anywhere.
    """
    selection = select(weight, groups=groups, rate=rate)
    chosen, others = anatomy.smoothness_of_sets(weight, selection, generator=torch.Generator().manual_seed(0))
    share = 100 * anatomy.share_smoother(weight, selection, generator=torch.Generator().manual_seed(0))
    rough = anatomy.holds_roughest(weight, selection, group)
    figure = new_figure(DOUBLE, 2.3)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    sns.histplot(
        x=others[group].numpy(), hue=rough.numpy(), bins=80, multiple="stack", palette=PALE, ax=left,
        edgecolor="none", alpha=1, legend=False,
    )  # fmt: skip
    top = left.get_ylim()[1]
    left.set_ylim(top=1.35 * top)  # room for the notes
    for holds, words in ((False, "without the group's\nroughest kernel"), (True, "with it")):
        middle = float(others[group][rough == holds].median())
        left.annotate(words, (middle, 1.04 * top), ha="center", va="bottom", fontsize=7, color=INK)
    left.axvline(float(chosen[group]), color=CHOSEN, linewidth=1.4)
    _note(left, float(chosen[group]), f"kept: rougher\nthan {share[group]:.1f} %")
    left.set(xlabel="smoothness of a set (sum of Eq. 1; smaller is smoother)", ylabel="number of sets")
    left.set_title(f"the {others.shape[1]:,} sets of {selection.kept.shape[1]} kernels, group {group}")
    _shares(right, share.numpy())
    return figure


def _shares(axes: Axes, share: np.ndarray) -> None:
    axes.barh(range(len(share)), share, color=CHOSEN, height=0.72)
    for row, value in enumerate(share):
        inside = value > 20
        axes.annotate(
            f"{value:.1f}", (float(value), row), xytext=(-3 if inside else 3, 0), textcoords="offset points",
            ha="right" if inside else "left", va="center", color="white" if inside else INK, fontsize=7,
        )  # fmt: skip
    axes.set(xlim=(0, 100), yticks=range(len(share)), ylabel="group", ylim=(len(share) - 0.4, -0.6))
    axes.set_xlabel("sets smoother than the kept one (%)")
    axes.axvline(50, **DASHED | {"zorder": 3})
    axes.set_title("all groups; dashed: a typical set")
    axes.grid(axis="y", visible=False)


def _note(axes: Axes, x: float, text: str) -> None:
    """A label left of a vertical line, near the top."""
    axes.annotate(
        text, (x, 0.97), xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points",
        ha="right", va="top", color=CHOSEN, fontsize=7,
    )  # fmt: skip


@styled
def search_changes(facts: Mapping[str, Any]) -> Figure:
    """Share of the kernels that each search keeps and the reference does not, on a log axis.

    facts: of `gkp.study.facts.ablations.search_facts`. Dots are networks, bars all of them.
    Dashed: what a random choice changes.
    """
    rows = [
        {"search": title, "network": network, "changed": max(100 - numbers["shared_percent"], UNCHANGED)}
        for title in ablations.titles(facts)
        if title != REFERENCE
        for network, numbers in facts["searches"][title]["networks"].items()
    ]
    frame = pd.DataFrame(rows)
    whole = frame[frame.network == ALL].sort_values("changed")
    order = list(whole["search"])
    figure = new_figure(DOUBLE, 0.75 + 0.155 * len(order))
    axes = figure.subplots()
    axes.hlines(range(len(order)), UNCHANGED, whole["changed"], color=CHOSEN, linewidth=4, alpha=0.3)
    sns.stripplot(
        frame[frame.network != ALL], x="changed", y="search", order=order, color=CHOSEN, alpha=0.8,
        size=3.5, jitter=False, ax=axes,
    )  # fmt: skip
    axes.set_xscale("log")
    ticks = [UNCHANGED, 0.1, 1, 10, 100 * RATE, 100]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["none", "0.1", "1", "10", f"{100 * RATE:.0f}", "100"])
    axes.axvline(100 * RATE, **DASHED)
    axes.set(ylabel="", ylim=(len(order) - 0.4, -0.6))
    axes.set_xlabel(
        "kernels changed against the reference (%, log axis); dots: networks, bars: all, dashed: by chance"
    )
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure
