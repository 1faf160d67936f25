"""Pictures of the method itself, drawn from the weights of one convolution."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from gkp.search import Selection, grouping, select
from gkp.search.smoothness import filter_smoothness, smoothness
from gkp.study.facts.anatomy import group_smoothness, share_smoother, smoothness_of_sets
from gkp.study.report.style import DOUBLE, FAINT, GRID, INK, LOOKS, SINGLE, new_figure, styled

DEAD = 1e-12  # smoothness below which weight decay has removed a kernel
CHOSEN = LOOKS["sr-gkp"][0]
SIGNED = LinearSegmentedColormap.from_list("signed", ["#B35806", "#F7F7F7", "#225588"])  # weights around 0
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
def set_smoothness(weight: Tensor, *, groups: int = 8, rate: float = 0.4375, group: int = 0) -> Figure:
    """Smoothness of every set that could be kept in one group, and where the released search's choice lies.

    Left: all sets of one group. Right: for every group, the share of sets that are smoother than the
    choice; a search for smooth kernels would be near 0 %, a random choice anywhere.
    """
    selection = select(weight, groups=groups, rate=rate)
    own, others = smoothness_of_sets(weight, selection, generator=torch.Generator().manual_seed(0))
    share = 100 * share_smoother(weight, selection, generator=torch.Generator().manual_seed(0))
    figure = new_figure(DOUBLE, 2.2)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    heights = left.hist(others[group].numpy(), bins=80, color="#9DB7D5")[0]
    left.set_ylim(top=1.3 * heights.max())  # room for the note
    left.axvline(float(own[group]), color=CHOSEN, linewidth=1.4)
    _note(left, float(own[group]), "kept: rougher than\n" + f"{share[group]:.1f} % of all sets")
    left.set(xlabel="smoothness of a set (sum of Eq. 1; smaller is smoother)", ylabel="number of sets")
    left.set_title(f"the {others.shape[1]:,} sets of {selection.kept.shape[1]} kernels, group {group}")
    right.barh(range(groups), share.numpy(), color=CHOSEN, height=0.72)
    for row, value in enumerate(share):
        inside = value > 20
        right.annotate(
            f"{value:.1f}", (float(value), row), xytext=(-3 if inside else 3, 0), textcoords="offset points",
            ha="right" if inside else "left", va="center", color="white" if inside else INK, fontsize=7,
        )  # fmt: skip
    right.set(xlim=(0, 100), yticks=range(groups), ylabel="group", ylim=(groups - 0.4, -0.6))
    right.set_xlabel("sets smoother than the kept one (%)")
    right.axvline(50, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    right.set_title("all groups; dashed: a typical set")
    right.grid(axis="y", visible=False)
    return figure


def _note(axes: Axes, x: float, text: str) -> None:
    """A label left of a vertical line, near the top."""
    axes.annotate(
        text,
        (x, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        color=CHOSEN,
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": GRID, "linewidth": 0.5, "pad": 1.5},
    )
