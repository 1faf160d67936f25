"""Figures of attacks: accuracy over eps, one change of the protocol after another, what eps looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from gkp.study.analysis import seeds
from gkp.study.analysis.audit import NORM, PIXEL
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import on_same_images, pixel_attacks, points
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title, ordered
from gkp.study.analysis.paired import alike
from gkp.study.facts.attacked import unpacked
from gkp.study.report.plots.style import (
    DOUBLE,
    FAINT,
    INK,
    REST,
    SPOTLIGHT,
    legend,
    look,
    names_beside,
    new_figure,
    spotlit,
    styled,
)
from gkp.study.runs import protocols
from gkp.utils.stats import paired_difference

CURVE = tuple(attack.name for attack in protocols.curve())  # PGD-50 over eps
METHOD = "sr-gkp"  # the one whose difference to the control has bars

# title -> {words below the axis: attack}, from the paper's evaluation to a sound one; each builds on the one
# before, but for ASIDE, which changes the paper's own
LADDERS: dict[str, dict[str, str]] = {
    "FGSM 0.01": {
        "no attack": BENIGN,
        "as in\nthe paper": "fgsm_norm_0.01_predicted",
        "true\nlabels": "fgsm_norm_0.01_true",
        "eps in\npixels": "fgsm_pixel_2.55/255_true",
    },
    "PGD 8/255, step 2/255": {
        "no attack": BENIGN,
        "as in\nthe paper": f"pgd3_{NORM}",
        "10 steps": f"pgd10_{NORM}",
        "50 steps,\na restart": f"pgd50r1_{NORM}",
        "3 steps, eps\nin pixels": f"pgd3_{PIXEL}",
    },
}
ASIDE = f"pgd3_{PIXEL}"


# ---- over eps ------------------------------------------------------------------------------------


@styled
def epsilon_curve(records: Comparison, kind: str = "fgsm", names: Sequence[str] = ()) -> Figure:
    """Difference to the control over eps in 1/255, the control's own accuracy below the axis.

    names: the attacks of the curve, by default all of that kind in pixels. eps = 0 is without attack. All
    points are about the same images, the first that every attack saw. Differences are taken seed by seed.
    Bars: the paired 95 % interval of SR-GKP's over images. Twins are drawn once.
    """
    names = [BENIGN, *(names or pixel_attacks(records, kind))]
    same = on_same_images(records, names)
    frame = points(same, names)
    control = frame[frame.label == CONTROL].set_index("attack")["mean"]
    titles = records.titles
    radii = [0.0 if name == BENIGN else 255 * records.met[name].eps for name in names]
    figure = new_figure(DOUBLE * 0.75, 3.0)
    axes = figure.subplots()
    labels = [label for label in same.labels if label != CONTROL]
    by_attack = [seeds.gains(same, name, CONTROL) for name in names]
    gains = {label: [fmean(by_label[label]) for by_label in by_attack] for label in labels}
    for label in sorted(labels, key=lambda label: label in SPOTLIGHT):
        front = label in SPOTLIGHT
        line = spotlit(label).line | {"markersize": 4} if front else {"color": REST, "alpha": 0.45}
        axes.plot(radii, gains[label], **line, linewidth=1.3 if front else 0.7, zorder=3 if front else 2)
    in_colour = {label: curve for label, curve in gains.items() if label in SPOTLIGHT}
    heights = [gain for curve in in_colour.values() for gain in curve]
    if METHOD in labels:
        ends = pd.DataFrame([_interval(same, name) for name in names], radii)
        axes.vlines(ends.index, ends[0], ends[1], color=look(METHOD).colour, linewidth=0.8, zorder=4)
        heights += [*ends[0], *ends[1]]
    outside = _cut(axes, gains, heights)
    names_beside(axes, radii[-1], {label: curve[-1] for label, curve in in_colour.items()})
    _over_eps(
        axes, radii, [f"{eps:g}\n{control[name]:.0f} %" for eps, name in zip(radii, names, strict=True)]
    )
    axes.set_xlabel(
        f"eps of {titles[names[-1]].split()[0]} (1/255); below it: accuracy that {CONTROL} has left"
    )
    axes.set_ylabel(f"difference to\n{CONTROL} (points)")
    note = (
        f"{frame.n.max():,} images; grey: the other methods; bars: paired 95 % interval of SR-GKP over images"
    )
    note += f"\nin part beyond the panel: {'; '.join(outside)}" if outside else ""
    defended = any(r.run.recipe and r.run.recipe.adversarial for r in records.trained)
    if kind == "fgsm" and not defended:
        note += "\nat large eps a single step overshoots: what it leaves there is no robustness"
    figure.suptitle(note, fontsize=7, color=FAINT, x=0.01, ha="left")
    return figure


def _cut(axes: Axes, gains: Mapping[str, Sequence[float]], heights: Sequence[float]) -> list[str]:
    """Limits the panel to `heights` and half as much again; titles of the methods that leave it."""
    low, high = min([0.0, *heights]), max([0.0, *heights])
    low, high = low - (high - low) / 2, high + (high - low) / 2
    outside = [label for label, curve in gains.items() if min(curve) < low or max(curve) > high]
    if outside:
        axes.set_ylim(low, high)
    return [method_title(label) for label in outside]


def _over_eps(axes: Axes, radii: Sequence[float], words: Sequence[str]) -> None:
    axes.set_xscale("symlog", base=2, linthresh=radii[1], linscale=0.8)
    axes.xaxis.set_major_locator(FixedLocator(radii))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(words)
    axes.set_xlim(-0.2 * radii[1], 2.6 * radii[-1])
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)


def _interval(records: Comparison, name: str) -> list[float]:
    """Ends of the interval of SR-GKP's accuracy minus the control's, in points."""
    a, b = alike(records, (METHOD, name), (CONTROL, name))
    return [100 * end for end in paired_difference(a, b)]


# ---- one change after another --------------------------------------------------------------------


def climbed(records: Comparison) -> dict[str, Comparison]:
    """Title -> the networks that met every attack of that ladder, on the images that all of them saw.

    Ladders that no network met are left out.
    """
    return {
        title: on_same_images(networks, list(rungs.values()))
        for title, rungs in LADDERS.items()
        if len(networks := records.having(rungs.values()))
    }


@styled
def ladder(records: Comparison) -> Figure:
    """Accuracy (percent) from the paper's evaluation to a sound one: a dot per network, a panel per attack.

    Every panel is about one set of images. The line joins the medians; none leads to ASIDE.
    ValueError when no network met all attacks of a panel.
    """
    panels = climbed(records)
    if not panels:
        raise ValueError("no network met every attack of a ladder: run the suite cifar10-resnet20-audit")
    figure = new_figure(DOUBLE, 2.7)
    shown: set[str] = set()
    widths = [len(LADDERS[title]) for title in panels]
    for axes, (title, networks) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0],
        panels.items(),
        strict=True,
    ):
        words = {name: text for text, name in LADDERS[title].items()}
        frame = points(networks, list(words)).assign(rung=lambda frame, words=words: frame.attack.map(words))
        frame = frame[frame.label.isin(networks.labels)]
        shown |= set(frame.label)
        order = list(words.values())
        _rungs(axes, frame, order)
        middle = frame.groupby("rung")["mean"].median()[order]
        steps = [place for place, name in enumerate(words) if name != ASIDE]
        axes.plot(steps, middle.iloc[steps], color=FAINT, linewidth=0.8, zorder=1)
        for place, value in enumerate(middle):
            axes.annotate(f"{value:.0f} %", (place, value), xytext=(14, 4), textcoords="offset points")
        axes.set_title(f"{title}: the same {frame.n.max():,} images")
        axes.set(
            xlabel="",
            ylabel="" if axes.get_subplotspec().colspan.start else "accuracy (%), line: median",
            ylim=(-3, 100),
            xlim=(-0.5, len(order) - 0.1),
        )
        axes.grid(axis="x", visible=False)
    legend(figure, [label for label in shown if label in SPOTLIGHT])
    return figure


def _rungs(axes: Axes, frame: pd.DataFrame, order: Sequence[str]) -> None:
    """Networks as dots beside one another on every rung, those in the spotlight over the others."""
    labels = ordered(frame.label)
    for front in (False, True):
        side_by_side = [label for label in labels if (label in SPOTLIGHT) == front]
        for number, label in enumerate(side_by_side):
            mean = frame[frame.label == label].set_index("rung")["mean"]
            aside = 0.56 * (number / max(len(side_by_side) - 1, 1) - 0.5)
            line = spotlit(label).line | {"markersize": 4.5 if front else 2.5, "alpha": 1 if front else 0.5}
            axes.plot([place + aside for place in range(len(order))], mean[list(order)], linestyle="", **line)
    axes.set_xticks(range(len(order)), order)


# ---- what eps looks like -------------------------------------------------------------------------


@styled
def digit(facts: Mapping[str, Any], times: int = 50) -> Figure:
    """One image, clean and attacked, with the difference `times` as large, for every eps in both units.

    facts: of `gkp.study.facts.attacked.attacked_digit`. Grey in a difference is no change.
    """
    clean = unpacked(facts["clean"]["image"])
    attacked = sorted(facts["attacked"], key=lambda entry: entry["furthest"])
    figure = new_figure(DOUBLE, 3.1)
    cells = figure.subplots(2, 1 + len(attacked))
    cells[0, 0].axis("off")
    _picture(cells[1, 0], clean, f"clean\n{_says(facts['clean'])}")
    for column, entry in enumerate(attacked, start=1):
        change = unpacked(entry["difference"])
        unit = "after normalisation" if entry["space"] == "normalized" else "in pixels"
        _picture(cells[0, column], 127.5 + times * change, "")
        cells[0, column].set_title(
            f"eps {entry['eps']:g} {unit}\n= {entry['furthest']:.3g}/255", loc="center", fontsize=7
        )
        _picture(cells[1, column], clean + change, _says(entry))
    cells[0, 1].set_ylabel(f"difference x {times}", labelpad=6)
    cells[1, 1].set_ylabel("attacked", labelpad=6)
    return figure


def _says(answer: Mapping[str, Any]) -> str:
    return f"network: {answer['predicted']} ({100 * answer['confidence']:.0f} %)"


def _picture(axes: Axes, levels: Any, words: str) -> None:
    axes.imshow(levels.clamp(0, 255).permute(1, 2, 0).numpy() / 255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(words, fontsize=7)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
