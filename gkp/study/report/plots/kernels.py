"""Figures of the method itself, drawn from the weights of one convolution."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from gkp.search import Selection, grouping
from gkp.search.smoothness import filter_smoothness, smoothness
from gkp.study.facts.anatomy import group_smoothness
from gkp.study.report.plots.style import CHOSEN, DOUBLE, INK, SINGLE, new_figure, styled

DEAD = 1e-12  # smoothness below which weight decay has removed a kernel
SIGNED = LinearSegmentedColormap.from_list("signed", ["#B35806", "#F7F7F7", "#225588"])  # weights around 0
SMOOTH = LinearSegmentedColormap.from_list("smooth", ["#F4F6FA", "#8FB4D9", "#123A66"])  # pale is smooth


@styled
def by_smoothness(weight: Tensor, count: int = 24) -> Figure:
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
