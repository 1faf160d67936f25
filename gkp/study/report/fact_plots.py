"""Figures of recorded facts: what each choice of the search changes, how fast pruned networks run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from gkp.study.analysis.labels import network_title
from gkp.study.facts import ablations
from gkp.study.facts.ablations import ALL, REFERENCE
from gkp.study.facts.timings import FILTERS
from gkp.study.report.style import DOUBLE, FAINT, look, new_figure, styled
from gkp.study.runs.run import RATE

DASHED: dict[str, Any] = {"color": FAINT, "linestyle": (0, (4, 3)), "linewidth": 0.7, "zorder": 0.5}


@styled
def search_changes(found: Mapping[str, Any]) -> Figure:
    """Share of the reference's kernels that each search keeps too; rings are networks, squares all of them.

    found: the fact of `gkp.study.facts.ablations.search_facts`. Dashed: what a random choice has in common.
    """
    titles = [title for title in ablations.titles(found) if title != REFERENCE]
    figure = new_figure(DOUBLE, 0.6 + 0.155 * len(titles))
    axes, colour = figure.subplots(), look("sr-gkp").colour
    for row, title in enumerate(titles):
        networks = found["searches"][title]["networks"]
        each = [numbers["shared_percent"] for name, numbers in networks.items() if name != ALL]
        axes.plot(each, [row] * len(each), "o", ms=4, mfc="none", mec=colour, alpha=0.6, mew=0.7, zorder=3)
        axes.plot(networks[ALL]["shared_percent"], row, "s", ms=4.5, color=colour, mec="white", mew=0.4)
    axes.axvline(100 * (1 - RATE), **DASHED)
    axes.set(yticks=range(len(titles)), yticklabels=titles, ylim=(len(titles) - 0.4, -0.6), xlim=(0, 102))
    axes.set_xlabel(
        "kernels kept that the reference keeps too (%); dashed: by chance; rings: networks, squares: all"
    )
    return figure


@styled
def latency(found: Mapping[str, Any]) -> Figure:
    """Time of a forward pass over that of the unpruned network: a panel per network, a marker per batch.

    found: the fact of `gkp.study.facts.timings.latency`. Bars are quartiles of the rounds; dashed: the
    unpruned network.
    """
    networks = found["networks"]
    titles = [title for title in next(iter(next(iter(networks.values())).values())) if title != "unpruned"]
    figure = new_figure(DOUBLE, 1.0 + 0.3 * len(titles))
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (network, batches) in zip(panels, networks.items(), strict=True):
        for place, (batch, measured) in enumerate(batches.items()):
            dense = measured["unpruned"]["seconds"]
            for row, title in enumerate(titles):
                colour = look("l1" if title == FILTERS else "sr-gkp").colour
                _bar(axes, measured[title], dense, row + 0.16 * (2 * place - 1), place, batch, colour)
        axes.axvline(1, **DASHED)
        axes.set_title(network_title(network))
        axes.set(yticks=range(len(titles)), yticklabels=titles, ylim=(len(titles) - 0.5, -0.5))
        axes.set_xlabel("time over that of the unpruned network; bars: quartiles")
    panels[0].set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    chosen = dict(zip(labels, handles, strict=True))
    figure.legend(chosen.values(), chosen.keys(), ncols=len(chosen), loc="outside lower center")
    return figure


def _bar(
    axes: Any, own: Mapping[str, float], dense: float, row: float, place: int, batch: str, colour: str
) -> None:
    """One median with its quartiles; later batches are hollow."""
    middle = own["seconds"] / dense
    spread = [[middle - own["low"] / dense], [own["high"] / dense - middle]]
    face = "white" if place else colour
    axes.errorbar(
        middle,
        row,
        xerr=spread,
        fmt="os"[place % 2],
        ms=5,
        color=colour,
        mfc=face,
        elinewidth=0.7,
        label=batch if colour == look("sr-gkp").colour else None,
    )
