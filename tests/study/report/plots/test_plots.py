"""Figures: what they show, that they are legible, that equal figures are equal files."""

import itertools
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from many_records import comparison
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from record_factory import with_metrics, with_right

from gkp.search import select
from gkp.study.analysis import labels, paired, seeds, training
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import pixel_attacks
from gkp.study.analysis.labels import BENIGN, CONTROL
from gkp.study.analysis.method import costs
from gkp.study.facts import anatomy
from gkp.study.report.plots import attacks, courses, differences, kernels, search, style, suites, times
from gkp.study.runs import protocols
from gkp.study.runs.store import Store

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
    several = comparison(FEW, seeds=(0, 1, 2))
    selection = select(weight)
    return {
        "forest": differences.forest(few, [BENIGN, PAPER, SOUND]),
        "verdict": differences.verdict([few, few], several),
        "trainings": differences.trainings(several, [BENIGN, SOUND]),
        "scatter": differences.scatter(few, PAPER, SOUND),
        "epsilon": attacks.epsilon_curve(few),
        "course": courses.over_epochs(several),
        "lengths": courses.lengths(few, several, [BENIGN, PAPER, SOUND]),
        "kernels": kernels.by_smoothness(weight, 12),
        "grouped": kernels.grouped(weight, selection),
        "snaking": kernels.snaking(weight),
        "kept_map": kernels.kept_map(weight, selection),
        "beam_step": search.beam_step(anatomy.beam_step(weight), 16),
        "set_smoothness": search.set_smoothness(weight),
        "pruning_times": times.pruning_times(costs.steps(few, None)),
        "digit": attacks.digit(Store(".").fact("cifar10-resnet20-audit", "attacked-digit").facts),
    }


def test_every_figure_is_legible_in_a_column(figures):
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        assert style.SINGLE <= figure.get_figwidth() <= style.DOUBLE, name
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 7, name


def test_no_text_leaves_its_figure(figures):
    for name, figure in figures.items():
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in filter(Text.get_text, _words(figure)):
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, (name, text.get_text())
            assert box.x1 <= figure.bbox.x1 + 1, (name, text.get_text())


def _words(figure):
    """All texts but those of ticks, of which some beyond the limits exist and are not drawn."""
    yield from (text for text in (figure._suptitle, figure._supxlabel) if text)
    for axes in figure.axes:
        yield from (axes._left_title, axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)


@pytest.mark.parametrize("long", [False, True], ids=["short names", "long names"])
def test_titles_of_five_panels_do_not_run_into_each_other(few, long):
    """Among them the longest title there is; the longest names of networks beside them."""
    records = few
    if long:
        options = (("profile", "1:3:6"), ("strategy", "random"))
        run = next(record.run for record in few.trained if record.label == "sr-gkp")
        run = replace(run, options=options, macs_ratio=None, params_ratio=0.5665)
        records = Comparison(
            replace(each, run=run, label=run.label) if each.label == "l1" else each for each in few
        )
    names = [BENIGN, PAPER, PGD_3, SOUND, pixel_attacks(few, "pgd")[-1]]
    figure = differences.forest(records, names)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # makes room for the names of rows
    boxes = [axes._left_title.get_window_extent(renderer) for axes in figure.axes]
    assert len(boxes) == 5
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


def test_axes_say_what_and_in_which_unit(figures):
    (axes,) = figures["scatter"].axes
    assert axes.get_xlabel().endswith("(points)")
    assert axes.get_ylabel().endswith("(points)")
    (axes,) = figures["epsilon"].axes
    assert "(1/255)" in axes.get_xlabel()
    assert "(points)" in axes.get_ylabel()
    assert "points" in figures["forest"].get_supxlabel()


def test_figures_leave_the_readers_settings_alone(few):
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "xtick.labelsize": 30}):
        figure = differences.forest(few, [BENIGN])
        assert mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before
    assert max(text.get_fontsize() for text in figure.findobj(Text)) < 10


def test_a_forest_plot_is_the_paired_intervals_sorted_and_filled_where_shown(few):
    figure = differences.forest(few, [SOUND])
    frame = paired.intervals(few, SOUND).sort_values("difference", ascending=False)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [labels.method_title(m) for m in frame.method]
    drawn = {round(container[0].get_ydata()[0]): container for container in axes.containers}
    for place, row in enumerate(frame.itertuples()):
        marker, _, (bar,) = drawn[place]
        assert marker.get_xdata()[0] == pytest.approx(row.difference)
        assert bar.get_segments()[0][:, 0] == pytest.approx([row.low, row.high])
        hollow = to_rgb(marker.get_markerfacecolor()) == (1, 1, 1)
        assert hollow == (row.verdict == "not significant")


def test_methods_in_the_spotlight_have_their_colours_and_the_rest_is_grey(few):
    figure = differences.forest(few, [SOUND])
    names = {labels.method_title(label): label for label in ("sr-gkp", "random", "unpruned", "l1")}
    for text in figure.axes[0].get_yticklabels():
        label = names[text.get_text()]
        expected = style.REST if label == "l1" else style.look(label).colour
        assert to_rgb(text.get_color()) == to_rgb(expected)


@pytest.mark.parametrize("count", [2, 3])
def test_every_training_is_a_dot(count):
    records = comparison(FEW, seeds=range(count))
    gains = seeds.gains(records, SOUND, CONTROL)
    assert {len(own) for own in gains.values()} == {count}
    (axes,) = differences.trainings(records, [SOUND]).axes
    dots = [points.get_offsets()[:, 0].tolist() for points in axes.collections if len(points.get_offsets())]
    assert sorted(sum(dots, [])) == pytest.approx(sorted(sum(gains.values(), [])))
    assert not axes.containers  # and no bars


def test_the_verdict_has_a_panel_for_each_network_and_attack(figures):
    axes = figures["verdict"].axes
    assert len(axes) == 4
    assert all(one.get_title(loc="left").startswith("ResNet-20, ") for one in axes)
    assert "small dots" in figures["verdict"].get_supxlabel()


def test_the_scatter_names_the_methods_of_the_spotlight(figures):
    shown = {text.get_text() for text in figures["scatter"].axes[0].texts}
    assert {"SR-GKP", "random filters", "unpruned"} <= shown


def test_the_curve_is_about_the_same_images_at_every_eps(few):
    """Benign accuracy is known of 400 images; where an attack saw 100, its point is about those."""
    names = pixel_attacks(few, "fgsm")
    short = Comparison(
        with_metrics(r, {n: m.first(100) if n in names else m for n, m in r.metrics().items()}) for r in few
    )
    figure = attacks.epsilon_curve(short)
    (axes,) = figure.axes
    own, control = (short.right(label, BENIGN)[0][:100] for label in ("sr-gkp", CONTROL))
    line = next(line for line in axes.lines if line.get_color() == style.look("sr-gkp").colour)
    expected = 100 * (own.double().mean() - control.double().mean()).item()
    assert line.get_ydata()[0] == pytest.approx(expected)
    assert axes.get_xticklabels()[0].get_text() == f"0\n{100 * control.double().mean():.0f} %"
    assert "100 images" in figure.get_suptitle()
    (bars,) = axes.collections
    measured = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    for (eps, low), (_, high) in bars.get_segments():
        assert low < high
        assert low <= measured[eps] <= high


def test_a_single_large_step_is_said_to_overshoot_where_nothing_is_defended(few):
    assert "overshoots" in attacks.epsilon_curve(few).get_suptitle()
    assert "overshoots" not in attacks.epsilon_curve(few, kind="pgd").get_suptitle()
    defended = Comparison(Store(".").of_suite("cifar10-resnet20-adversarial"))
    assert "overshoots" not in attacks.epsilon_curve(defended).get_suptitle()


def test_the_grouped_layer_has_the_kernels_of_its_selection(weight):
    selection = select(weight)
    figure = kernels.grouped(weight, selection)
    cells = [axes.collections[0].get_array() for axes in figure.axes]
    assert [int(np.ma.count(values)) for values in cells] == [256, 144, 144, 144]
    size = weight.double().square().sum((2, 3)).sqrt()
    kept = {
        round(float(size[f, c]), 9)
        for group, members in enumerate(selection.filter_order.view(8, 2))
        for f in members
        for c in selection.kept[group]
    }
    for values in cells[1:]:
        assert {round(float(v), 9) for v in np.ma.compressed(values)} == kept


def test_kept_map_dots_are_the_selection(weight):
    selection = select(weight)
    dots = kernels.kept_map(weight, selection).axes[0].collections[0].get_offsets()
    assert {(int(y), int(x)) for x, y in dots} == {
        (group, int(channel)) for group, kept in enumerate(selection.kept) for channel in kept
    }


def test_snaking_draws_every_filter_in_every_grouping(weight):
    figure = kernels.snaking(weight)
    totals = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert [len(axes.patches) for axes in figure.axes] == [16, 16, 16]
    assert totals == pytest.approx([totals[0]] * 3)


def test_set_smoothness_lists_all_sets(weight):
    left = search.set_smoothness(weight).axes[0]
    assert sum(bar.get_height() for bar in left.patches) == 11440
    assert len({bar.get_facecolor() for bar in left.patches}) == 2  # with and without the roughest kernel


# ---- courses -------------------------------------------------------------------------------------


def test_a_course_has_a_line_per_network_with_the_mean_of_its_seeds(figures):
    several = comparison(FEW, seeds=(0, 1, 2))
    frame = training.by_epoch(several)
    for axes, column in zip(figures["course"].axes, ("loss", "test"), strict=True):
        means = frame.groupby(["label", "epoch"])[column].mean()
        drawn = sorted(tuple(line.get_ydata()) for line in axes.lines)
        assert drawn == sorted(tuple(means.loc[label]) for label in set(frame.label))
    with pytest.raises(ValueError, match="run the suite"):
        courses.over_epochs(Comparison([]))


def test_lengths_join_the_accuracies_of_the_same_networks(few, figures):
    several = comparison(FEW, seeds=(0, 1, 2))
    for axes, name in zip(figures["lengths"].axes, (BENIGN, PAPER, SOUND), strict=True):
        frame = training.longer(few, several, name)
        ends = sorted(zip(frame.short, frame.long, strict=True))
        assert sorted(tuple(line.get_ydata()) for line in axes.lines) == ends
        assert f"{frame.n.max():,} images" in axes.get_xlabel()


@pytest.mark.parametrize("suite", ["cifar10-resnet56-57", "cifar10-resnet56-short", "cifar10-resnet20-short"])
def test_words_about_the_curve_stand_outside_of_its_panel(suite):
    figure = attacks.epsilon_curve(Comparison(Store(".").of_suite(suite)))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert figure._suptitle.get_window_extent().y0 >= axes.get_window_extent().y1


# ---- files ---------------------------------------------------------------------------------------


def test_saving_twice_gives_equal_files(figures, tmp_path, monkeypatch):
    first = [path.read_bytes() for path in style.save(figures["kept_map"], tmp_path / "a")]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")  # Matplotlib's and fontTools' idea of now
    paths = style.save(figures["kept_map"], tmp_path / "b")
    assert [path.name for path in paths] == ["b.pdf", "b.png"]
    assert [path.read_bytes() for path in paths] == first


@pytest.mark.parametrize(
    ("names", "seeds", "expected"),
    [
        (FEW, (0,), ["differences", "epsilon"]),
        (FEW, (0, 1, 2), ["trainings"]),
        ((), (0,), []),  # the control alone is two dots on a canvas
    ],
)
def test_save_all_writes_what_the_records_allow(names, seeds, expected, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(suites, "save", lambda figure, stem: saved.append(stem) or [stem])
    suites.save_all("small", comparison(names, seeds), tmp_path)
    assert [stem.name for stem in saved] == expected
    assert suites.NAMES.issuperset(expected)


def test_a_figure_that_the_records_no_longer_allow_goes(tmp_path, monkeypatch):
    """With a third seed the trainings stand for the differences; a file of the reader's own stays."""
    for name in ("differences.png", "differences.pdf", "epsilon.png", "mine.png"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(suites, "save", lambda figure, stem: [stem])
    suites.save_all("small", comparison(FEW, (0, 1, 2)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_a_suite_that_only_attacks_anothers_networks_repeats_no_figure(few, tmp_path):
    assert suites.save_all("other", few, tmp_path) == []


def test_a_curve_of_pgd_is_drawn_once_the_method_and_its_control_met_it(few, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(suites, "save", lambda figure, stem: saved.append(stem.name) or [stem])
    attacks = protocols.curve()
    met = []
    for record in few:
        if record.label in ("sr-gkp", CONTROL):
            right = record.metrics()[BENIGN].right
            for attack in attacks:
                record = with_right(record, attack, right)
        met.append(record)
    suites.save_all("small", Comparison(met), tmp_path)
    assert saved == ["differences", "epsilon", "epsilon-pgd"]
    assert suites.NAMES.issuperset(saved)


def test_variants_are_compared_with_their_method(few):
    assert suites.reference(few) == CONTROL
    own = next(record for record in few if record.label == "sr-gkp")
    variant = replace(own, label="sr-gkp (alpha-0.0)")
    assert suites.reference(Comparison([*few, variant])) == "sr-gkp"
    assert suites.reference(Comparison([])) == ""


def test_nothing_is_drawn_without_results(tmp_path):
    assert suites.save_all("method", Comparison([]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
