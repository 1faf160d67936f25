"""What a selection looks like, against counting by hand."""

import itertools

import pytest
import torch

from gkp.nets import models
from gkp.search import Selection, grouping, select
from gkp.search.smoothness import smoothness
from gkp.study.facts import anatomy


@pytest.fixture(scope="module")
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(1))


def _selection(kept, filters=8):
    kept = torch.tensor(kept)
    return Selection(torch.arange(filters), kept, torch.zeros(len(kept)))


def test_smoothness_of_all_sets_by_hand(weight):
    selection = _selection([[0, 1, 2], [3, 4, 5]])
    own, others = anatomy.smoothness_of_sets(weight, selection)
    each = smoothness(weight.double())
    second = each[4:].sum(0)
    assert own[1] == pytest.approx(float(second[3:].sum()))
    by_hand = [float(second[list(s)].sum()) for s in itertools.combinations(range(6), 3)]
    assert others[1].tolist() == pytest.approx(by_hand)


def test_the_smoothest_and_the_roughest_set(weight):
    each = anatomy.group_smoothness(weight, torch.arange(8).view(1, 8))[0]
    order = each.argsort()
    smoothest, roughest = order[:3].sort().values, order[3:].sort().values
    shares = [anatomy.share_smoother(weight, _selection([s.tolist()])) for s in (smoothest, roughest)]
    assert shares[0].item() == 0
    assert shares[1].item() == pytest.approx(19 / 20)


def test_large_layers_are_sampled():
    weight = torch.randn(8, 40, 3, 3, generator=torch.Generator().manual_seed(2))
    selection = select(weight, groups=4)
    draw = torch.Generator().manual_seed(0)
    own, others = anatomy.smoothness_of_sets(weight, selection, limit=50, generator=draw)
    assert others.shape == (4, 50)
    each = anatomy.group_smoothness(weight, selection.filter_order.view(4, -1))
    keep = selection.kept.shape[1]
    extremes = [each.sort(1, descending=turned).values[:, :keep].sum(1) for turned in (False, True)]
    assert (others >= extremes[0][:, None] - 1e-9).all()
    assert (others <= extremes[1][:, None] + 1e-9).all()


def test_same_groups_and_overlap():
    a, b = _selection([[0, 1, 2], [3, 4, 5]]), _selection([[0, 1, 2], [0, 4, 5]])
    assert anatomy.same_groups(a, b).tolist() == [True, False]
    assert anatomy.overlap(a, b).tolist() == pytest.approx([1, 2 / 3])


def test_survey_compares_with_the_first(weight):
    frame = anatomy.survey({"one": weight}, {"a": {}, "again": {}, "b": {"beta": "exact"}}, groups=4)
    assert len(frame) == 12
    assert frame[frame.search != "b"].same.all()
    text = anatomy.survey_text(frame)
    assert text["same set as the first"].tolist()[:2] == ["4 of 4 groups"] * 2


def test_smoothness_is_explained_by_size_when_kernels_are_one_shape():
    shape = torch.randn(3, 3, generator=torch.Generator().manual_seed(3))
    scaled = shape * torch.linspace(0.1, 2, 32).view(8, 4, 1, 1)
    assert anatomy.explained_by_size({"one": scaled}) == pytest.approx(1)


def test_layers_of_a_network():
    found = anatomy.layers(models.create("resnet8"))
    assert "conv1" not in found
    assert all(weight.shape[2:] == (3, 3) for weight in found.values())


def test_the_step_of_the_beam_is_that_of_the_search(weight):
    """Where four kernels are all that is kept, the survivors of every start are the final beam."""
    large = torch.randn(16, 7, 3, 3, generator=torch.Generator().manual_seed(3))
    options = {"groups": 8, "rate": 0.5}  # int(0.5 * 8) = 4 kernels stay: the start and three more
    kept = select(large, **options, outer_in_beam=True).kept[2]
    steps = [anatomy.beam_step(large, group=2, first=first, **options) for first in range(7)]
    assert all(len(step) == 8 and step["survives"].sum() == 2 for step in steps)
    assert all(step["survives"].tolist() == [True] * 2 + [False] * 6 for step in steps)
    assert all(step["kept"].map(lambda path: path[0]).eq(first).all() for first, step in enumerate(steps))
    survivors = [tuple(sorted(path)) for step in steps for path in step["kept"][step["survives"]]]
    assert tuple(kept.tolist()) in survivors
    each = anatomy.group_smoothness(large, grouping.snaking(large, 8))[2]
    for row in steps[0].itertuples():
        assert row.smoothness == pytest.approx(float(each[row.kept].sum()))


def test_sets_with_the_roughest_kernel_are_told_apart():
    weight = torch.randn(16, 6, 3, 3, generator=torch.Generator().manual_seed(4))
    weight[:, 4] *= 10
    selection = select(weight)
    rough = anatomy.holds_roughest(weight, selection)
    _, others = anatomy.smoothness_of_sets(weight, selection)
    assert rough.double().mean() == pytest.approx(selection.kept.shape[1] / 6)
    assert others[0][rough].min() > others[0][~rough].max()
    with pytest.raises(ValueError, match="at most 16"):
        anatomy.holds_roughest(torch.randn(16, 32, 3, 3), select(torch.randn(16, 32, 3, 3)))
