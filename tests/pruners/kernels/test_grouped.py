"""Greedy selection of grouped kernels: against the search's own, against plain Python, and by permutation."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gkp
from gkp.nets import checkpoint
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.kernels.grouped import greedy_selection
from gkp.search import grouping, select


def random_weight(filters, channels, seed):
    return torch.randn(filters, channels, 3, 3, generator=torch.Generator().manual_seed(seed))


def plainly(weight, order, rate, compared):
    """TMI-GKP's selection in loops: every start, the least similar next, the cheapest set."""
    channels = weight.shape[1]
    keep = int((1 - rate) * (channels + 1))
    count, result = int(compared * keep), []
    for filters in order:
        kernels = weight[filters].double().transpose(0, 1).flatten(1)
        similar = [[1 - (a - b).norm().item() for b in kernels] for a in kernels]
        best = None
        for start in range(channels):
            kept = [start]
            while len(kept) < keep:
                rest = [j for j in range(channels) if j not in kept]
                kept.append(min(rest, key=lambda j: sum(similar[i][j] for i in kept)))
            pruned = [j for j in range(channels) if j not in kept]
            pairs = list(itertools.combinations(kept, 2))
            near = sum(sum(sorted((similar[i][p] for i in kept), reverse=True)[:count]) for p in pruned)
            balance = len(pairs) / (len(pruned) * count) if count and pruned else 0
            cost = sum(similar[i][j] for i, j in pairs) - balance * near
            if best is None or cost < best[0] - 1e-9:
                best = cost, sorted(kept)
        result.append(best)
    return result


@given(st.integers(0, 999), st.sampled_from([0.25, 0.4375, 0.625]), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
@settings(max_examples=15)
def test_the_selection_is_the_plain_one(seed, rate, compared):
    weight = random_weight(8, 9, seed)
    order = grouping.snaking(weight, 4)
    found = greedy_selection(weight, order, rate, compared=compared)
    expected = plainly(weight, order, rate, compared)
    for kept, cost, (least, best) in zip(found.kept, found.cost, expected, strict=True):
        assert cost.item() == pytest.approx(least, rel=1e-9, abs=1e-9)
        assert kept.tolist() == best


@pytest.mark.parametrize(("filters", "channels"), [(16, 16), (32, 24)])
def test_the_selection_is_that_of_the_search(filters, channels):
    weight = random_weight(filters, channels, 0)
    keep = int(0.5625 * (channels + 1))
    expected = select(weight, strategy="greedy", beta="exact", neighbours=int(0.2 * keep))
    found = greedy_selection(weight, grouping.snaking(weight, 8), 0.4375)
    assert torch.equal(found.kept, expected.kept)
    assert torch.equal(found.filter_order, expected.filter_order)
    torch.testing.assert_close(found.cost, expected.cost)


def test_permuting_filters_permutes_the_groups():
    weight, order = random_weight(16, 8, 0), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    groups = [greedy_selection(each, grouping.snaking(each, 4), 0.5) for each in (weight, weight[order])]
    assert torch.equal(groups[0].kept, groups[1].kept)
    members = [each.filter_order.view(4, -1) for each in groups]
    for one, two in zip(*members, strict=True):
        assert set(one.tolist()) == set(order[two].tolist())


def test_gkp_greedy_has_the_groups_of_sr_gkp_and_can_be_saved(resnet8, tmp_path):
    greedy, beam = (gkp.prune(resnet8, method) for method in ("gkp-greedy", "sr-gkp"))
    for one, two in zip(greedy.modules(), beam.modules(), strict=True):
        if isinstance(one, GroupedKernelConv2d):
            assert torch.equal(one.filter_order, two.filter_order)
            assert one.kept.shape == two.kept.shape
    path = tmp_path / "greedy.safetensors"
    checkpoint.save_model(greedy, path, network="resnet8", dataset="digits")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(checkpoint.load_file(path)(x), greedy(x))


@pytest.mark.parametrize("compared", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(resnet8, compared):
    with pytest.raises(ValueError, match=r"the share of the kept kernels lies in \[0, 1\]"):
        gkp.prune(resnet8, "gkp-greedy", compared=compared)
