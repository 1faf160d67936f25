"""Pictures of the method itself, drawn from the weights of one convolution, and of what its choices give."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from torch import Tensor

from gkp.search import Selection, grouping
from gkp.search.smoothness import filter_smoothness, smoothness
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import base, method_title
from gkp.study.analysis.method import factors
from gkp.study.facts.anatomy import group_smoothness
from gkp.study.report.style import DOUBLE, FAINT, INK, LOOKS, SINGLE, SPOTLIGHT, new_figure, spotlit, styled
from gkp.study.runs.suites import stages

DEAD = 1e-12  # smoothness below which weight decay has removed a kernel
CHOSEN = LOOKS["sr-gkp"][0]
SIGNED = LinearSegmentedColormap.from_list("signed", ["#B35806", "#F7F7F7", "#225588"])  # weights around 0
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
SMOOTH = LinearSegmentedColormap.from_list("smooth", ["#F4F6FA", "#8FB4D9", "#123A66"])  # pale is smooth


@styled
def kernels(weight: Tensor, count: int = 24) -> Figure:
    """Kernels of a layer (O, I, k, k) from the smoothest to the roughest, at equal steps of rank.

    Above on one colour scale for all, below each on its own: Eq. 1 orders kernels mostly by size.
    """
    flat = weight.detach().double().cpu().flatten(0, 1)
    measured = smoothness(flat)
    order = measured.argsort()
    picked = order[torch.linspace(0, len(order) - 1, count).round().long()]
    largest = flat[picked].abs().max()
    figure = new_figure(DOUBLE, 1.25)
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, hspace=0.05, wspace=0.15)
    axes = figure.subplots(2, count)
    for column, kernel in enumerate(picked):
        for row, scale in enumerate((largest, flat[kernel].abs().max())):
            limit = float(scale) or 1.0
            axes[row, column].imshow(flat[kernel].numpy(), cmap=SIGNED, vmin=-limit, vmax=limit)
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
        value = float(measured[kernel])
        axes[0, column].set_title(
            f"<{DEAD:g}" if value < DEAD else f"{value:.2g}", fontsize=7, loc="center", rotation=60
        )
    axes[0, 0].set_ylabel("one\nscale", rotation=0, ha="right", va="center")
    axes[1, 0].set_ylabel("own\nscale", rotation=0, ha="right", va="center")
    figure.supxlabel(
        "kernels from the smoothest to the roughest; above each its smoothness (Eq. 1)", fontsize=7.5
    )
    return figure


@styled
def grouped(weight: Tensor, selection: Selection) -> Figure:
    """One layer four times: dense, masked, its filters in groups, and what is stored and drawn at last.

    A row is a filter, a column an input channel, a cell a kernel: the darker the larger.
    weight: (O, I, kh, kw).
    """
    size = weight.detach().double().cpu().square().sum((2, 3)).sqrt()
    groups, keep = selection.kept.shape
    order, members = selection.filter_order, len(weight) // groups
    held = torch.zeros(len(weight), weight.shape[1], dtype=torch.bool)
    held[order] = torch.zeros(groups, weight.shape[1], dtype=torch.bool).scatter(
        1, selection.kept, torch.ones_like(selection.kept, dtype=torch.bool)
    ).repeat_interleave(members, 0)  # fmt: skip
    small = size[order].gather(1, selection.kept.repeat_interleave(members, 0))
    panels = {
        f"1. dense: {size.numel()} kernels": (size, None, range(len(size))),
        f"2. masked: {held.sum()} stay": (size, ~held, range(len(size))),
        "3. filters in groups": (size[order], ~held[order], order.tolist()),
        f"4. stored: {groups} x {members} x {keep}": (small, None, order.tolist()),
    }
    figure = new_figure(DOUBLE, 2.25)
    widths = [weight.shape[1]] * 3 + [keep + 3]
    for axes, (title, (cells, empty, names)) in zip(
        figure.subplots(1, 4, width_ratios=widths), panels.items(), strict=True
    ):
        sns.heatmap(
            cells.numpy(), mask=None if empty is None else empty.numpy(), cmap=SMOOTH, vmin=0,
            vmax=float(size.max()), linewidths=0.4, linecolor="white", cbar=False, ax=axes,
            xticklabels=False, yticklabels=list(names),
        )  # fmt: skip
        axes.tick_params(axis="y", length=0, rotation=0, labelsize=7)
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("input channel")
        if title[0] in "34":
            for border in range(members, len(weight), members):
                axes.axhline(border, color=CHOSEN, linewidth=0.8)
    figure.axes[0].set_ylabel("filter")
    figure.axes[3].set_xlabel("kept, packed")
    return figure


@styled
def snaking(weight: Tensor, groups: int = 8, *, seed: int = 0) -> Figure:
    """Total smoothness of every group when filters are dealt by snaking, at random, or as they stand.

    A bar is a group, its pieces are filters, pale ones smooth. weight: (O, I, kh, kw).
    """
    scores = filter_smoothness(weight.detach().double().cpu())
    rank = scores.argsort().argsort().double() / max(len(scores) - 1, 1)
    generator = torch.Generator().manual_seed(seed)
    ways = {
        "snaking": grouping.snaking(weight, groups),
        "random": grouping.random(weight, groups, generator=generator),
        "as they stand": grouping.contiguous(weight, groups),
    }
    figure = new_figure(DOUBLE, 2.1)
    panels = figure.subplots(1, len(ways), sharey=True)
    for axes, (title, order) in zip(panels, ways.items(), strict=True):
        bottom = np.zeros(groups)
        for place in range(order.shape[1]):
            members = order[torch.arange(groups), scores[order].argsort(1)[:, place]]
            axes.bar(
                range(groups), scores[members].numpy(), bottom=bottom, color=SMOOTH(rank[members].numpy()),
                edgecolor="white", linewidth=0.4, width=0.8,
            )  # fmt: skip
            bottom += scores[members].numpy()
        total = scores[order].sum(1)
        axes.axhline(float(total.mean()), color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        axes.set_title(f"{title}: max / min = {total.max() / total.min():.2f}")
        axes.set(xlabel="group", xticks=range(groups))
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("smoothness of the group's\nfilters (sum of Eq. 1)")
    return figure


@styled
def kept_map(weight: Tensor, selection: Selection) -> Figure:
    """Which input channels every group keeps (dots), over how smooth its grouped kernels are.

    Colours: rank of a grouped kernel's smoothness in its group, pale is smooth.
    """
    order = selection.filter_order.view(selection.groups, -1)
    ranks = group_smoothness(weight, order).argsort(1).argsort(1)
    channels = ranks.shape[1]
    wide = channels > 16
    figure = new_figure(DOUBLE if wide else SINGLE, 0.75 + (DOUBLE if wide else SINGLE) * 0.95 * 8 / channels)
    axes = figure.subplots()
    image = axes.imshow(ranks.numpy(), cmap=SMOOTH, aspect="auto", vmin=0, vmax=channels - 1)
    rows = torch.arange(selection.groups).repeat_interleave(selection.kept.shape[1])
    size = 26 if not wide else 10
    axes.scatter(
        selection.kept.flatten().numpy(),
        rows.numpy(),
        s=size,
        color=CHOSEN,
        edgecolor="white",
        linewidth=0.6,
        zorder=3,
    )
    axes.set(xlabel="input channel", ylabel="group", yticks=range(selection.groups))
    axes.set_xticks(range(0, channels, 4 if wide else 2))
    axes.set_title(f"dots: the {selection.kept.shape[1]} of {channels} kernels that are kept")
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, ticks=[0, channels - 1])
    bar.ax.set_yticklabels(["smoothest", "roughest"])
    bar.outline.set_visible(False)
    return figure


@styled
def front(records: Comparison, clean: str, robust: str) -> Figure:
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
