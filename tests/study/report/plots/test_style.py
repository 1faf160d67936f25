"""Looks of methods: colours, markers, their order, legends."""

import itertools

import numpy as np
from many_records import comparison
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from gkp.study.analysis import labels, paired
from gkp.study.analysis.labels import BENIGN
from gkp.study.report.plots import differences, style
from gkp.study.runs import suites


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
    assert isinstance(differences.forest(comparison(("l1", "my-method")), [BENIGN]), Figure)


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


def test_a_method_far_from_the_others_is_a_number_at_the_edge(monkeypatch) -> None:
    records = comparison(("sr-gkp", "random", "l1"))
    found = paired.intervals(records, BENIGN)
    far = found.method == "l1"
    moved = found.assign(**{c: found[c].where(~far, found[c] - 40) for c in ("difference", "low", "high")})
    monkeypatch.setattr(paired, "intervals", lambda *_: moved)
    (axes,) = differences.forest(records, [BENIGN]).axes
    low, high = axes.get_xlim()
    assert moved.low[~far].min() > low > -40
    assert moved.high[~far].max() < high
    (text,) = axes.texts
    size = abs(moved.difference[far].item())
    assert text.get_text() == f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} \N{MINUS SIGN}{size:.0f}"
