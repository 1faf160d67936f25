"""Figures of differences: every method minus the control, in points, on the very same images."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from gkp.study.analysis import paired, seeds
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import if_sound, paper_attacks
from gkp.study.analysis.labels import CONTROL, DATASETS, method_title, network_title
from gkp.study.analysis.paired import LEVEL
from gkp.study.report.plots.style import DOUBLE, FAINT, INK, SPOTLIGHT, new_figure, spotlit, styled
from gkp.study.runs.run import Run

ROW = 0.15  # inches of a method
# Methods this many times as far out as the median one, and this many points, are outside of a panel.
FAR, NEAR, MARGIN = 8.0, 8.0, 0.06
REACHES = ((1, 1), (2, 6), (1, 12), (3, 18), (5, 24))  # across and up: usual distances of a name
NARROW = 16  # letters in a line above one of many panels
WIDEST = 34  # letters in a line beside a row
BOLD: dict[str, Any] = {"fontsize": 8, "weight": "bold"}
ZERO: dict[str, Any] = {"color": INK, "linewidth": 0.8, "zorder": 1}
HOW = "bars: paired 95 % interval over images; filled: significant after Holm's correction"


@styled
def forest(records: Comparison, names: Sequence[str], control: str = CONTROL) -> Figure:
    """Every method's accuracy minus the control's: a row per method, a panel per attack.

    Sorted by the first attack. Bars are the paired 95 % interval over images; a marker is filled where
    McNemar's test, corrected by Holm for the rows of a panel, shows a difference. A method far from the
    others is a number at the panel's edge.
    """
    frames = {name: paired.intervals(records, name, control) for name in names}
    rows = [_name(label).count("\n") + 1 for label in frames[names[0]].method]
    figure = new_figure(DOUBLE, 1.15 + ROW * len(rows) * (1 + max(rows)) / 2)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    _row_of_panels(panels, frames, records.titles)
    figure.suptitle(f"{_network(records)}, {_header(records)}", x=0.01, ha="left", **BOLD)
    figure.supxlabel(f"accuracy minus that of {method_title(control)} (points); {HOW}", fontsize=7)
    return figure


@styled
def verdict(comparisons: Sequence[Comparison], trainings: Comparison | None = None) -> Figure:
    """The study in one figure: a row of panels per comparison, a panel for the paper's and a sound attack.

    As `forest`, against the unpruned network with the same training. trainings: records with several seeds;
    each training's difference is a small dot in the comparison of the same network.
    """
    drawn = [{n: paired.intervals(records, n) for n in headlines(records)} for records in comparisons]
    counts = [len(next(iter(frames.values()))) for frames in drawn]
    figure = new_figure(DOUBLE, 0.7 + sum(ROW * count + 0.75 for count in counts))
    heights = [ROW * count + 0.2 for count in counts]
    shape = len(drawn), max(map(len, drawn))
    rows = figure.subplots(*shape, sharey="row", squeeze=False, height_ratios=heights)
    for panels, records, frames in zip(rows, comparisons, drawn, strict=True):
        _row_of_panels(panels, frames, records.titles)
        for axes in panels:
            length = _length(records).replace(" of fine-tuning", "")
            axes.set_title(f"{_network(records)}, {length}\n{axes.get_title(loc='left')}")
        if trainings and _network(trainings) == _network(records):
            _small_dots(panels, frames, trainings)
    figure.suptitle(_data(comparisons[0]), x=0.01, ha="left", **BOLD)
    words = f"accuracy minus that of {CONTROL}, the same training without pruning (points); {HOW}"
    words += "; small dots: each of several trainings" if trainings else ""
    words += "; norm.: eps counts after normalisation; pred.: predicted labels; both as in the paper"
    figure.supxlabel(textwrap.fill(words, 125), fontsize=7)
    return figure


@styled
def trainings(records: Comparison, names: Sequence[str], control: str = CONTROL) -> Figure:
    """Every single training's difference to the control of the same seed: three seeds are three dots.

    Of networks with several trainings, by their mean under the first attack.
    """
    gains = {name: seeds.gains(records, name, control) for name in names}
    means = {label: fmean(points) for label, points in gains[names[0]].items() if len(points) > 1}
    order = sorted(means, key=means.__getitem__, reverse=True)
    titles = records.titles
    figure = new_figure(DOUBLE, 1.0 + ROW * len(order))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, (name, by_label) in zip(panels, gains.items(), strict=True):
        dots = pd.DataFrame(
            [(label, points) for label in order for points in by_label[label]], columns=["method", "points"]
        )
        sns.stripplot(
            dots, x="points", y="method", order=order, hue="method", jitter=False, size=4, alpha=0.75,
            palette={label: spotlit(label).colour for label in order}, legend=False, ax=axes,
        )  # fmt: skip
        axes.axvline(0, **ZERO)
        axes.set(xlabel="", ylabel="", title=textwrap.fill(titles[name], NARROW))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _no_rows(axes)
    _label_rows(panels[0], order)
    figure.suptitle(f"{_network(records)}, {_header(records)}", x=0.01, ha="left", **BOLD)
    words = f"accuracy minus that of {method_title(control)} of the same seed (points); a dot is a training"
    figure.supxlabel(words, fontsize=7)
    return figure


@styled
def scatter(records: Comparison, across: str, up: str) -> Figure:
    """The difference to the control under one attack against that under another, a marker per method.

    Bars (of those in colour): paired 95 % intervals over images. Names of grey dots that would run into
    others are left out. Dashed: least squares over the pruned networks.
    """
    first, second = (paired.intervals(records, name).set_index("method") for name in (across, up))
    points, titles = first.add_suffix("_x").join(second.add_suffix("_y"), how="inner"), records.titles
    figure = new_figure(DOUBLE * 0.75, 3.4)
    axes = figure.subplots()
    sns.regplot(
        points.drop(index=["unpruned"], errors="ignore"), x="difference_x", y="difference_y", ax=axes,
        ci=None, scatter=False, line_kws={"color": FAINT, "linewidth": 0.8, "linestyle": (0, (4, 3))},
    )  # fmt: skip
    for label, point in points.iterrows():
        x, y, style = point.difference_x, point.difference_y, spotlit(label)
        if style.marker != "o":
            wide, high = [[x - point.low_x], [point.high_x - x]], [[y - point.low_y], [point.high_y - y]]
            axes.errorbar(x, y, xerr=wide, yerr=high, color=style.colour, alpha=0.4, linewidth=0.8, zorder=2)
        axes.plot(x, y, linestyle="", zorder=4 if style.marker == "o" else 5, **style.line)
    axes.axvline(0, **ZERO)
    axes.axhline(0, **ZERO)
    axes.set_xlabel(f"difference to {CONTROL} under {titles[across]} (points)")
    axes.set_ylabel(f"difference to {CONTROL}\nunder {titles[up]} (points)")
    figure.suptitle(f"{_network(records)}, {_header(records)}", x=0.01, ha="left", **BOLD)
    figure.draw_without_rendering()
    _direct_labels(axes, points)
    return figure


# ---- parts ---------------------------------------------------------------------------------------


def headlines(records: Comparison) -> list[str]:
    """The paper's first attack and the sound one, as far as all networks met them."""
    return [*paper_attacks(records)[:1], *if_sound(records)]


def _row_of_panels(
    panels: Sequence[Axes], frames: Mapping[str, pd.DataFrame], titles: Mapping[str, str]
) -> None:
    order = _order(frames)
    for axes, (name, frame) in zip(panels, frames.items(), strict=False):
        shown = frame[frame.method.isin(order)]
        apart = (shown.difference - shown.difference.median()).abs()
        near = apart <= max(FAR * apart.median(), NEAR)
        low, high = min([0.0, *shown.low[near]]), max([0.0, *shown.high[near]])
        if low < high:
            axes.set_xlim(low - MARGIN * (high - low), high + MARGIN * (high - low))
        for draw, points in ((_point, shown[near]), (_beyond, shown[~near])):
            for point in points.itertuples():
                draw(axes, point, order.index(point.method))
        axes.axvline(0, **ZERO)
        images = f"{frame.n.max():,} images"
        wrapped = textwrap.fill(titles[name], NARROW) if len(frames) > 2 else titles[name]
        axes.set_title(f"{wrapped}\n{images}")
        axes.xaxis.set_major_locator(MaxNLocator(5 if len(frames) <= 3 else 4))
        _no_rows(axes)
    panels[0].set(ylim=(len(order) - 0.4, -0.6))
    _label_rows(panels[0], order)


def _order(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """The methods, the most accurate under the first attack first."""
    first = next(iter(frames.values()))
    return list(first.sort_values("difference", ascending=False)["method"])


def _beyond(axes: Axes, point: Any, row: int) -> None:
    """The difference of a method that lies outside of the panel, as a number at its edge."""
    right, size = point.difference > 0, f"{abs(point.difference):.0f}"
    text = f"+{size} \N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
    if not right:
        text = f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} \N{MINUS SIGN}{size}"
    colour = spotlit(point.method).colour
    edge = axes.get_xlim()[right]
    axes.text(edge, row, text, ha="right" if right else "left", va="center", fontsize=7, color=colour)


def _no_rows(axes: Axes) -> None:
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _point(axes: Axes, point: Any, row: int) -> None:
    """A difference and its interval, hollow where it is not significant."""
    style = spotlit(point.method)
    line = style.line | {"markersize": style.line["markersize"] * 0.85}
    if point.p >= LEVEL:
        line |= {"markerfacecolor": "white", "markeredgecolor": style.colour, "markeredgewidth": 0.9}
    bars = [[point.difference - point.low], [point.high - point.difference]]
    axes.errorbar(point.difference, row, xerr=bars, linestyle="", elinewidth=0.9, capsize=0, zorder=3, **line)


def _small_dots(panels: Sequence[Axes], frames: Mapping[str, pd.DataFrame], records: Comparison) -> None:
    order = _order(frames)
    for axes, name in zip(panels, frames, strict=False):
        for row in seeds.against(records, name, CONTROL).itertuples():
            if row.method in order:
                places = [order.index(row.method) + 0.32] * len(row.differences)
                axes.plot(row.differences, places, ".", color=spotlit(row.method).colour, ms=2.6, zorder=2)


def _label_rows(axes: Axes, order: Sequence[str]) -> None:
    """Names of the methods in their colours beside the rows."""
    axes.set_yticks(range(len(order)), [_name(label) for label in order])
    for text, label in zip(axes.get_yticklabels(), order, strict=True):
        colour = spotlit(label).colour
        text.set(color=colour, weight="bold" if label in SPOTLIGHT else "normal")


def _name(label: str) -> str:
    """The title in as many lines as it needs."""
    return textwrap.fill(method_title(label), WIDEST)


def _direct_labels(axes: Axes, points: pd.DataFrame) -> None:
    """Names beside the markers, those in colour first; a grey one that finds no room is left out.

    Those in colour look further away, too, and are joined to their marker from there.
    """
    canvas = FigureCanvasAgg(axes.figure.figure)
    places = {label: (point.difference_x, point.difference_y) for label, point in points.iterrows()}
    pixels = {label: axes.transData.transform(place) for label, place in places.items()}
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels.values()]
    sides = [
        ((dx, dy), "left" if dx > 0 else "right", va)
        for dy, va in ((2, "bottom"), (-2, "top"))
        for dx in (5, -5)
    ]
    for label in sorted(places, key=lambda label: label not in SPOTLIGHT):
        front, colour = label in SPOTLIGHT, spotlit(label).colour
        for (wide, high), ((dx, dy), ha, va) in itertools.product(REACHES if front else REACHES[:1], sides):
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6}
            text = axes.annotate(
                method_title(label), places[label], xytext=(wide * dx, high * dy),
                textcoords="offset points", ha=ha, va=va, fontsize=7, color=colour,
                weight="bold" if front else "normal", arrowprops=line if high > 1 else None,
            )  # fmt: skip
            text.update_positions(canvas.get_renderer())
            box = Text.get_window_extent(text, canvas.get_renderer())  # without the line to the marker
            free = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if free and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def _header(records: Comparison) -> str:
    """Data, training and seeds, for the top of a figure."""
    return f"{_data(records)}: {_length(records)} of each network"


def _data(records: Comparison) -> str:
    first = _trained(records)[0]
    return DATASETS.get(first.dataset, first.dataset)


def _length(records: Comparison) -> str:
    """ "57 epochs of fine-tuning, 1 training"."""
    return f"{_trained(records)[0].epochs} epochs of fine-tuning, {seeds.counted(records, 'training')}"


def _network(records: Comparison) -> str:
    return network_title(_trained(records)[0].network)


def _trained(records: Comparison) -> list[Run]:
    return [record.run for record in records.trained]
