"""Figures of trainings: their course, the epochs that rules choose, and what a longer one moves."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gkp.study.analysis import training
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import network_title, ordered
from gkp.study.analysis.seeds import counted
from gkp.study.analysis.training import MARKS, SCORES
from gkp.study.report.plots.style import DOUBLE, FAINT, INK, legend, look, new_figure, styled

PANELS = {"loss": "training loss", "test": "accuracy on test images (%), low values cut off"}


@styled
def over_epochs(records: Comparison) -> Figure:
    """Training loss and test accuracy after every epoch: a line per method, of several seeds their mean.

    Dotted: where the learning rate drops. The accuracy's axis shows what follows the first drop; before it,
    lines may leave the panel. ValueError where no network has a course.
    """
    frame = training.by_epoch(records)
    if frame.empty:
        raise ValueError("no network of these records was trained: run the suite to its end")
    figure = new_figure(DOUBLE, 2.9)
    mean = frame.groupby(["label", "epoch"])[list(PANELS)].mean()
    rates = frame.groupby("epoch").lr.max()
    for axes, (column, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for label in reversed(ordered(frame.label)):
            line, style = mean.loc[label][column], look(label).line
            axes.plot(line.index, line, linewidth=1, markevery=[len(line) - 1], **style)
        for epoch in rates.index[rates.diff() < 0]:
            axes.axvline(epoch - 0.5, color=FAINT, linestyle=":", linewidth=0.8)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    late = frame[frame.lr < frame.lr.max()] if frame.lr.nunique() > 1 else frame
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(late.test.min() - 1, frame.test.max() + 0.5)
    legend(figure, set(frame.label))
    figure.suptitle(_header(records), x=0.01, ha="left", fontsize=8, weight="bold")
    return figure


@styled
def lengths(short: Comparison, long: Comparison, names: Sequence[str]) -> Figure:
    """Accuracy after a short and a long training: a panel per attack, a line per network of both.

    Parallel lines are a ranking that stays, crossing ones a ranking that depends on the length.
    """
    figure = new_figure(DOUBLE, 2.9)
    ends = [records.trained[0].run.epochs for records in (short, long)]
    titles, shown, counts = long.titles, set[str](), set[int]()
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        frame = training.longer(short, long, name)
        for row in frame.itertuples():
            axes.plot((0, 1), (row.short, row.long), linewidth=1, **look(row.label).line)
        shown |= set(frame.label)
        counts |= set(frame.seeds)
        axes.set_xticks((0, 1), [f"{end}" for end in ends])
        axes.set(xlim=(-0.25, 1.25), title=_wrapped(titles[name]), xlabel=f"epochs\n{frame.n.max():,} images")
        axes.yaxis.set_major_locator(MaxNLocator(6))
    figure.axes[0].set_ylabel("accuracy (%)", color=INK)
    legend(figure, shown)
    seeds = f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} seed{'s' * (max(counts) > 1)}"
    figure.suptitle(
        f"{_network(long)}: the same networks after {ends[0]} and {ends[1]} epochs, {seeds}",
        x=0.01, ha="left", fontsize=8, weight="bold",
    )  # fmt: skip
    return figure


@styled
def choices(records: Comparison) -> Figure:
    """Accuracy on the test images after every epoch: a panel per column of SCORES, a line per network.

    B, a and b mark what the paper's rules show; dotted lines: where the learning rate drops. ValueError
    where no network's epochs were attacked.
    """
    titles, networks = records.titles, training.courses(records)
    if not networks:
        raise ValueError("no network's epochs were attacked: run the suite cifar10-resnet20-selection")
    figure = new_figure(DOUBLE, 2.7)
    for axes, (column, attack) in zip(figure.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for record in networks:
            frame, height = training.course(record), 5 if record is networks[0] else -13
            axes.plot(frame.index, frame[column], **look(record.label).line)
            marks: dict[int, str] = {}
            for rule, letter in MARKS.items():
                epoch = record.kept[rule].epoch
                marks[epoch] = f"{marks[epoch]}, {letter}" if epoch in marks else letter
            for epoch, letters in marks.items():
                place, colour = (epoch, frame[column][epoch]), look(record.label).colour
                where = {"xytext": (0, height), "textcoords": "offset points", "ha": "center"}
                axes.annotate(letters, place, **where, color=colour)
        for epoch in frame.index[frame.lr.diff() < 0]:
            axes.axvline(epoch - 0.5, color="0.7", linestyle=":", linewidth=0.8)
        axes.set(title=titles[attack], xlabel="epoch", ylabel="accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(y=0.15)
    legend(figure, [record.label for record in networks])
    return figure


def _header(records: Comparison) -> str:
    networks = {record.label for record in records.trained}
    return f"{_network(records)}: {len(networks)} networks, means of {counted(records, 'training')} of each"


def _network(records: Comparison) -> str:
    return network_title(records.trained[0].run.network)


def _wrapped(title: str) -> str:
    """The title with its marks in a second line, which is blank without any."""
    head, norm, marks = title.partition(" norm.")
    return f"{head}\n{norm.strip()}{marks}"
