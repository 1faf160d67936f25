"""How figures look: one colour and one marker per method everywhere, sizes for a printed column.

Hue says what kind of criterion a method has, the marker what it removes and when: round and triangular
markers are filters removed at once, stars and polygons filters removed in training, squares and diamonds
grouped kernels, crosses the controls. No two methods share both, so that a figure also reads without
colour. Variants of a method keep its hue and have hollow or tinted markers of their own. The hues are those
of Paul Tol's schemes for colour-blind readers.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gkp.study.analysis.labels import base, method_title, ordered
from gkp.utils.files import atomic_write_bytes

SINGLE, DOUBLE = 3.3, 6.8  # widths of one and of two printed columns, in inches
INK, FAINT, GRID = "#222222", "#888888", "#dddddd"

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same letters on every machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, which journals ask for
    "svg.hashsalt": "gkp",
}

LOOKS: dict[str, tuple[str, str]] = {  # label -> (colour, marker)
    # controls
    "unpruned": ("#000000", "*"),
    "unpruned + fine-tune": ("#555555", "X"),
    "random": ("#009988", "P"),
    "baseline": ("#000000", "+"),
    # grouped kernels
    "sr-gkp": ("#CC3311", "s"),
    "sr-gkp-b": ("#992211", "s"),
    "tmi-gkp": ("#EE7733", "D"),
    "gkp-greedy": ("#CC8866", "d"),
    "gkp-reconstruction": ("#CC8866", "s"),
    # size of weights
    "l1": ("#33AADD", "o"),
    "l1-a": ("#33AADD", "^"),
    "l1-b": ("#0077BB", "v"),
    "l2": ("#332288", "o"),
    "group-norm": ("#332288", "<"),
    "sfp": ("#0077BB", "h"),
    "rap-admm": ("#332288", "H"),
    # geometry of filters
    "fpgm": ("#117733", "o"),
    "lrf": ("#44AA99", ">"),
    "fpgm-training": ("#117733", "p"),
    # feature maps
    "hrank": ("#BB8800", "o"),
    "chip": ("#BB8800", "^"),
    "thinet": ("#DDBB44", "v"),
    # gradients and scales
    "taylor": ("#AA3377", "o"),
    "bn-gamma": ("#DD77AA", "^"),
    "slimming": ("#AA3377", "H"),
    "group-fisher": ("#AA3377", "^"),
    # products of smaller convolutions, groups driven to zero
    "cc": ("#44AA99", "o"),
    "group-sl": ("#332288", "h"),
    "hesso": ("#999933", "h"),
    "otov2-dhspg": ("#999933", "H"),
    # searched or learned
    "nppm": ("#7755BB", "o"),
    "gal": ("#7755BB", "s"),
    "dhp": ("#7755BB", "H"),
}
CHOSEN = LOOKS["sr-gkp"][0]  # what the paper's method keeps
DASHED: dict[str, Any] = {"color": FAINT, "linestyle": (0, (4, 3)), "linewidth": 0.7, "zorder": 0.5}
# variant -> (marker, tint): the choices of the ablations in their method's hue. A tint is the share of white.
VARIANTS: dict[str, tuple[str, float]] = {
    "strategy-smoothest": ("v", 1),
    "strategy-roughest": ("^", 1),
    "strategy-random": ("P", 1),
    "strategy-greedy": (">", 1),
    "grouping-random": ("X", 1),
    "beta-exact": ("D", 1),
    "alpha-0.0": ("o", 1),
    "alpha-0.5": ("o", 0.5),
    "alpha-1.0": ("o", 0),
    "groups-2": ("p", 0),
    "groups-4": ("p", 1),
    "groups-16": ("h", 0.5),
    "share-0.05": ("h", 0),
    "variant-absolute": ("<", 1),
    "beam_width-1": ("d", 0.5),
}
LINE = 80  # letters of a legend's line
OTHER_COLOUR, OTHER_MARKERS = "#7A5230", ("8", "1", "2", "3", "4", "|")
OPEN_MARKERS = "+1234|"  # have no face: their edge carries the colour
SIZES = {"*": 9.0, "X": 6.5, "P": 6.5, "D": 4.8, "s": 5.2, "+": 7.0}  # in points; the others look like 5.5
SPOTLIGHT = ("unpruned", "unpruned + fine-tune", "random", "sr-gkp", "l1-b")  # in colour where many are shown
REST = "#808080"  # the others


@dataclass(frozen=True)
class Look:
    """How one label is drawn; variants of a method ("sr-gkp (beta-exact)") have its hue, mixed with white.

    tint: share of white in the face, None for a method itself. 1 is a hollow marker.
    """

    colour: str
    marker: str
    tint: float | None = None

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments for Matplotlib's plot and errorbar."""
        outlined = self.tint is not None or self.marker in OPEN_MARKERS
        rgb = to_rgb(self.colour)
        face = tuple(c + (self.tint or 0) * (1 - c) for c in rgb)
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": SIZES.get(self.marker, 5.5),
            "markerfacecolor": face,
            "markeredgecolor": self.colour if outlined else "white",
            "markeredgewidth": 0.9 if outlined else 0.4,
        }


def look(label: str) -> Look:
    """The one look of a label. A method of the reader's own gets a marker that its name decides.

    A variant that `VARIANTS` does not know is the hollow marker of its method.
    """
    name = base(label)
    if name in LOOKS:
        colour, marker = LOOKS[name]
    else:
        colour, marker = OTHER_COLOUR, OTHER_MARKERS[zlib.crc32(name.encode()) % len(OTHER_MARKERS)]
    if label == name:
        return Look(colour, marker)
    marker, tint = VARIANTS.get(label.removeprefix(f"{name} (").removesuffix(")"), (marker, 1))
    return Look(colour, marker, tint)


def in_front(label: str) -> bool:
    """Whether this label is in colour where many are shown."""
    return base(label) in SPOTLIGHT


def spotlit(label: str) -> Look:
    """The look of a label among many: its own, or a dot, of its method's colour or grey."""
    if label in SPOTLIGHT:
        return look(label)
    return Look(look(label).colour if in_front(label) else REST, "o")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of figure functions: draws with the settings above, whatever the reader's own are."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(_settings()):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made when first drawn, with the settings of then
            figure.set_layout_engine("none")  # a second layout would differ a little, and so would files
        return figure

    return wrapper


def _settings() -> Any:  # Matplotlib's stubs want a dictionary of literals
    defaults: Any = {key: mpl.rcParamsDefault[key] for key in mpl.rcParamsDefault if key != "backend"}
    return {**defaults, **RC}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches that no pyplot state knows about."""
    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def legend(figure: Figure, labels: Iterable[str], columns: int = 6) -> None:
    """One legend below all panels, in the order of all figures."""
    handles = [
        Line2D([], [], linestyle="", label=method_title(label), **{**look(label).line, "alpha": 1})
        for label in ordered(labels)
    ]
    lengths = sorted(len(str(handle.get_label())) for handle in handles)
    columns = min(columns if sum(lengths[-columns:]) <= LINE else 4, len(handles))
    figure.legend(
        handles=handles, ncols=columns, loc="outside lower center", handletextpad=0.2, columnspacing=1.2
    )


def names_beside(axes: Axes, x: float, last: Mapping[str, float]) -> None:
    """Names right of the ends of lines, label -> height, moved up where two would meet."""
    room = 0.055 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    lowest = -float("inf")
    for label, end in sorted(last.items(), key=lambda item: item[1]):
        lowest = max(end, lowest + room)
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line at zero
        axes.annotate(method_title(label), (x, lowest), **place, color=spotlit(label).colour)


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write STEM.pdf and STEM.png without dates and versions, so that equal figures are equal files."""
    stem, written = Path(stem), []
    about = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    for kind, metadata in about.items():
        data, path = io.BytesIO(), stem.with_name(f"{stem.name}.{kind}")
        with mpl.rc_context(_settings()):
            figure.savefig(data, format=kind, metadata=metadata, dpi=300)
        atomic_write_bytes(path, data.getvalue())
        written.append(path)
    return written
