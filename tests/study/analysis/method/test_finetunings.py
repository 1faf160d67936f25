"""The same pruned networks fine-tuned otherwise: what a way brings, and a structure."""

import numpy as np
import pytest

from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import BENIGN, CONTROL
from gkp.study.analysis.method import finetunings
from gkp.study.report.plots import fronts
from gkp.study.runs.store import Store

ROBUST = finetunings.ROBUST


@pytest.fixture(scope="module")
def ways():
    return finetunings.ways(Store("."))


def test_the_table_has_the_accuracy_of_every_network_and_way(ways):
    table = finetunings.table_text(ways, [BENIGN, ROBUST]).set_index("network")
    titles = ways["plain"].titles
    for way, comparison in ways.items():
        for record in comparison:
            shown = table.loc[record.label, f"{titles[ROBUST]}, {way}"]
            assert float(shown) == pytest.approx(100 * record.metrics()[ROBUST].accuracy, abs=0.05)
    plain = [float(text) for text in table.iloc[:, 0]]
    assert plain == sorted(plain, reverse=True)
    assert finetunings.table_text({"plain": Comparison([])}, [BENIGN]).empty


def test_shares_of_variance_are_those_of_the_means_of_rows_and_columns(ways):
    """Balanced, so that a factor's sum of squares is that of its levels' means."""
    frame = finetunings._crossed(ways, ROBUST)
    structures = len({r.label for r in ways["plain"] if r.pruned})
    assert len(frame) == structures * len(ways)
    total = ((frame.accuracy - frame.accuracy.mean()) ** 2).sum()
    text = finetunings.variance_text(ways, [ROBUST]).set_index("factor")
    for column, factor in (("structure", "structure"), ("fine_tuning", "fine-tuning")):
        means = frame.groupby(column).accuracy.transform("mean")
        share = 100 * ((means - frame.accuracy.mean()) ** 2).sum() / total
        assert text.loc[factor, "share of the variance"] == f"{share:.0f} %"
    assert "rest" in text.index


def test_no_share_of_variance_before_two_networks_have_every_way(ways):
    few = {way: Comparison(r for r in c if r.label in ("sr-gkp", CONTROL)) for way, c in ways.items()}
    assert finetunings.variance_text(few, [ROBUST]).empty
    assert finetunings._crossed(ways | {"other": Comparison([])}, ROBUST).empty


def test_a_panel_of_the_figure_has_a_marker_for_every_network(ways):
    figure = fronts.finetunings(ways, BENIGN, ROBUST)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(ways)
    for axes, (way, comparison) in zip(figure.axes, ways.items(), strict=True):
        drawn = [
            (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() != "."
        ]
        expected = [tuple(100 * r.metrics()[n].accuracy for n in (BENIGN, ROBUST)) for r in comparison]
        assert np.allclose(sorted(drawn), sorted(expected)), way
        assert len(axes.lines) == len(expected) + (len(ways["plain"]) if way != "plain" else 0)
