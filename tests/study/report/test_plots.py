"""Figures: what they show, that they are legible, that equal figures are equal files."""

import itertools
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from many_records import IMAGES, METHODS, comparison
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from record_factory import with_metrics, with_right

from gkp.attacks import Attack
from gkp.search import select
from gkp.study.analysis import labels
from gkp.study.analysis.comparison import Comparison, pixel_attacks, points
from gkp.study.analysis.labels import BENIGN, CONTROL
from gkp.study.report import kernel_plots, plots, style
from gkp.study.runs import suites
from gkp.utils.stats import wilson

FEW = ("random", "l1", "sr-gkp")
PGD_3 = "pgd3_norm_8/255_step2/255_true"
SOUND, PAPER = "pgd10_pixel_0.5/255_step0.125/255_true", "fgsm_norm_0.01_predicted"


@pytest.fixture(scope="module")
def few():
    return comparison(FEW)


@pytest.fixture(scope="module")
def weight():
    return torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def figures(few, weight):
    """Every figure once."""
    return {
        "tradeoff": plots.tradeoff(few, [PAPER, SOUND]),
        "methods": plots.methods(few, [BENIGN, SOUND]),
        "epsilon": plots.epsilon_curve(few),
        "history": plots.history(few),
        "kernels": kernel_plots.kernels(weight, 12),
        "snaking": kernel_plots.snaking(weight),
        "kept_map": kernel_plots.kept_map(weight, select(weight)),
        "set_smoothness": kernel_plots.set_smoothness(weight),
    }


def test_every_figure_is_legible_in_a_column(figures):
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() in (style.SINGLE, style.DOUBLE), name
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 7, name


def test_titles_of_five_panels_do_not_run_into_each_other(few):
    """Among them the longest title there is."""
    figure = plots.methods(few, [BENIGN, PAPER, PGD_3, SOUND, pixel_attacks(few, "pgd")[-1]])
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        axes.get_title(loc="left") and axes._left_title.get_window_extent(renderer) for axes in figure.axes
    ]
    assert len(boxes) == 5
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


def test_axes_say_what_and_in_which_unit(figures):
    for axes in figures["tradeoff"].axes:
        assert "(%)" in axes.get_xlabel()
        assert "(%)" in axes.get_ylabel()
    left, right = figures["epsilon"].axes
    assert "1/255" in left.get_xlabel()
    assert "(points)" in right.get_ylabel()
    assert [axes.get_xlabel() for axes in figures["history"].axes] == ["epoch", "epoch"]


def test_figures_leave_the_readers_settings_alone(few):
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "xtick.labelsize": 30}):
        figure = plots.methods(few, [BENIGN])
        assert mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before
    assert max(text.get_fontsize() for text in figure.findobj(Text)) < 10


def test_error_bars_are_wilson_intervals(few):
    figure = plots.methods(few, [BENIGN])
    drawn = [np.asarray(bar.get_segments()[0])[:, 0] for bar in _bars(figure)]
    frame = points(few, [BENIGN]).set_index("label")
    assert len(drawn) == len(frame)
    for (low, high), label in zip(drawn, style.ordered(frame.index), strict=True):
        mean, n = frame["mean"][label] / 100, frame["n"][label]
        assert (low / 100, high / 100) == pytest.approx(wilson(round(mean * n), n))


def test_several_seeds_are_drawn_as_mean_and_deviation():
    records = comparison(("l1",), seeds=(0, 1, 2))
    figure = plots.methods(records, [BENIGN])
    frame = points(records, [BENIGN]).set_index("label")
    own = [100 * r.metrics()[BENIGN].accuracy for r in records if r.label == "l1"]
    assert frame.loc["l1", "high"] - frame.loc["l1", "mean"] == pytest.approx(np.std(own, ddof=1))
    assert "standard deviation over 3 seeds" in figure.get_supxlabel()


def test_the_difference_to_the_control_is_zero_for_the_control(few):
    right = plots.epsilon_curve(few).axes[1]
    flat = [line for line in right.lines if np.allclose(line.get_ydata(), 0)]
    assert [line.get_color() for line in flat] == [style.look(CONTROL).colour]


def test_the_curve_is_about_the_same_images_at_every_eps(few):
    """Benign accuracy is known of 400 images; where an attack saw 100, its point is about those."""
    names = pixel_attacks(few, "fgsm")
    short = Comparison(
        with_metrics(r, {n: m.first(100) if n in names else m for n, m in r.metrics().items()}) for r in few
    )
    figure = plots.epsilon_curve(short)
    left, right = figure.axes
    (control,) = few.right(CONTROL, BENIGN).values()
    expected = 100 * control[:100].double().mean().item()
    own = next(line for line in left.lines if line.get_color() == style.look(CONTROL).colour)
    assert own.get_ydata()[0] == pytest.approx(expected)
    assert "100 images" in figure.get_suptitle()
    line = next(line for line in right.lines if line.get_color() == style.look("sr-gkp").colour)
    (bars,) = right.collections
    for (_, low), (_, high) in bars.get_segments():
        assert low < high
    for (eps, low), (_, high) in bars.get_segments():
        measured = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))[eps]
        assert low <= measured <= high


def test_kept_map_dots_are_the_selection(weight):
    selection = select(weight)
    dots = kernel_plots.kept_map(weight, selection).axes[0].collections[0].get_offsets()
    assert {(int(y), int(x)) for x, y in dots} == {
        (group, int(channel)) for group, kept in enumerate(selection.kept) for channel in kept
    }


def test_snaking_draws_every_filter_in_every_grouping(weight):
    figure = kernel_plots.snaking(weight)
    totals = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert [len(axes.patches) for axes in figure.axes] == [16, 16, 16]
    assert totals == pytest.approx([totals[0]] * 3)


def test_set_smoothness_lists_all_sets(weight):
    left = kernel_plots.set_smoothness(weight).axes[0]
    assert sum(bar.get_height() for bar in left.patches) == 11440


# ---- files ---------------------------------------------------------------------------------------


def test_saving_twice_gives_equal_files(figures, tmp_path, monkeypatch):
    first = [path.read_bytes() for path in style.save(figures["kept_map"], tmp_path / "a")]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")  # Matplotlib's and fontTools' idea of now
    paths = style.save(figures["kept_map"], tmp_path / "b")
    assert [path.name for path in paths] == ["b.pdf", "b.png"]
    assert [path.read_bytes() for path in paths] == first


def test_save_all_writes_what_the_records_allow(few, figures, tmp_path, monkeypatch):
    for name, figure in (("methods", "methods"), ("epsilon_curve", "epsilon"), ("history", "history")):
        monkeypatch.setattr(
            plots, name, lambda *_, drawn=figures[figure]: drawn
        )  # drawing them takes seconds
    saved = []
    monkeypatch.setattr(plots, "save", lambda figure, stem: saved.append(stem) or [stem])
    plots.save_all("small", few, tmp_path)
    assert [stem.name for stem in saved] == ["tradeoff", "methods", "epsilon", "history"]


def test_a_single_epoch_is_no_course(few, figures, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, stem: [stem])
    for name in ("methods", "epsilon_curve", "tradeoff"):
        monkeypatch.setattr(plots, name, lambda *_: figures["methods"])
    short = [r.history and replace(r.history, epochs=r.epochs[:1]) for r in few]
    once = Comparison(replace(r, history=course) for r, course in zip(few, short, strict=True))
    assert "history" not in [stem.name for stem in plots.save_all("small", once, tmp_path)]


def test_a_collapsed_network_is_named_instead_of_drawn(few):
    fifth = torch.arange(IMAGES) < IMAGES / 5
    collapsed = [with_right(r, Attack("none"), fifth) if r.label == "l1" else r for r in few]
    figure = plots.tradeoff(Comparison(collapsed), [PAPER])
    assert "not drawn: l1 at 20 % without attack" in figure.get_suptitle()
    assert "l1" not in {text.get_text() for text in figure.legends[0].get_texts()}
    assert figure.axes[0].get_xlim()[0] > 50


def test_the_control_is_named_only_where_it_is_drawn(few):
    alone = Comparison(record for record in few if record.label != CONTROL)
    assert CONTROL in plots.methods(few, [BENIGN]).get_supxlabel()
    assert CONTROL not in plots.methods(alone, [BENIGN]).get_supxlabel()


def test_nothing_is_drawn_without_results(tmp_path):
    assert plots.save_all("method", Comparison([]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# ---- looks ---------------------------------------------------------------------------------------


def test_no_two_methods_share_colour_and_marker():
    looks = [style.look(name) for name in style.LOOKS]
    assert len(set(looks)) == len(looks)


def test_variants_have_their_methods_hue_and_a_look_of_their_own():
    labels = {run.label for run in suites.get("cifar10-resnet20-ablations").runs if run.epochs}
    looks = {label: style.look(label) for label in labels}
    assert len(set(looks.values())) == len(looks)
    variants = [label for label in labels if " (" in label]
    assert len(variants) > 8
    assert {looks[label].colour for label in variants} == {style.look("sr-gkp").colour}
    assert {label.partition("(")[2].rstrip(")") for label in variants} <= set(style.VARIANTS)
    unknown = style.look("sr-gkp (decision-smoothness)")
    assert (unknown.marker, unknown.line["markerfacecolor"]) == (style.look("sr-gkp").marker, (1, 1, 1))


def test_colours_of_families_stay_apart_for_the_colour_blind():
    """Simulated dichromacy (Machado, Oliveira and Fernandes 2009, severity 1.0), distances in CIE Lab."""
    simulations = {
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    for matrix in simulations.values():
        for a, b in itertools.combinations(style.LOOKS, 2):
            first, second = style.look(a), style.look(b)
            if first.marker == second.marker:
                apart = np.linalg.norm(_lab(first.colour, matrix) - _lab(second.colour, matrix))
                assert apart > 10, (a, b)


def test_every_marker_is_dark_enough_on_paper():
    for name in style.LOOKS:
        assert _lab(style.look(name).colour, np.eye(3))[0] < 80, name


def test_order_is_controls_grouped_kernels_then_the_rest():
    labels = style.ordered(["own", "slimming", "sr-gkp (alpha-1)", "random", "sr-gkp", "unpruned", "own"])
    assert labels == ["unpruned", "random", "sr-gkp", "sr-gkp (alpha-1)", "slimming", "own"]


def test_a_readers_own_method_is_drawn():
    look = style.look("my-method")
    assert look.colour == style.OTHER_COLOUR
    assert labels.family("my-method") == labels.OTHERS
    assert isinstance(plots.tradeoff(comparison(("l1", "my-method")), [SOUND]), Figure)


def test_all_methods_are_in_the_legend():
    figure = plots.tradeoff(comparison(), [PAPER])
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {*METHODS, "unpruned", CONTROL}


def _bars(figure):
    return [bar for container in figure.axes[0].containers for bar in container[2]]


def _lab(colour, matrix):
    """CIE Lab (D65) of a colour seen through a 3x3 matrix on linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(to_xyz) @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_legend_of_many_variants_fits_the_figure():
    labels = {run.label for run in suites.get("cifar10-resnet20-ablations").runs if run.epochs}
    figure = style.new_figure(style.DOUBLE, 4)
    figure.subplots()
    style.styled(lambda: style.legend(figure, labels) or figure)()
    box = figure.legends[0].get_window_extent().transformed(figure.transFigure.inverted())
    assert box.x0 >= 0
    assert box.x1 <= 1
