"""TMI-GKP: clusters of equal size, the increase of magnitudes, who is preferred and who wins the vote."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gkp
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.kernels import tmi


@pytest.fixture
def snapshots(resnet8):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in resnet8.state_dict().items()
            if value.is_floating_point()
        }
        for _ in range(4)
    ]


@given(st.integers(0, 99))
@settings(max_examples=15)
def test_the_assignment_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    points, centres = random.normal(size=(6, 2)), random.normal(size=(3, 2))
    squared = ((points[:, None] - centres) ** 2).sum(2)
    every = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
    least = min(sum(squared[i, label] for i, label in enumerate(labels)) for labels in every)
    found = tmi.nearest_with_room(points, centres)
    assert np.bincount(found).tolist() == [2, 2, 2]
    assert sum(squared[i, label] for i, label in enumerate(found)) == pytest.approx(least)


@pytest.mark.parametrize("scheme", tmi.SCHEMES)
def test_clear_clusters_are_found(scheme):
    """Four directions far apart, eight filters around each, shuffled."""
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat(np.arange(4), 8))
    filters = 3 * np.eye(12)[truth] + 0.05 * random.normal(size=(32, 12))
    labels = tmi.SCHEMES[scheme](filters, 4)
    if scheme == "spectral":  # 16 neighbours reach beyond a cluster of 8
        assert np.bincount(labels).tolist() == [8] * 4
        return
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 4


def test_spectral_finds_clusters_as_large_as_its_neighbourhoods():
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat(np.arange(4), 17))
    filters = 3 * np.eye(12)[truth] + 0.05 * random.normal(size=(68, 12))
    assert len({(a, b) for a, b in zip(truth, tmi.spectral(filters, 4), strict=True)}) == 4


@pytest.mark.parametrize("scheme", tmi.SCHEMES)
@pytest.mark.parametrize(("filters", "groups"), [(16, 8), (32, 8), (24, 2), (8, 8)])
def test_clusters_have_equal_size_and_are_reproducible(scheme, filters, groups):
    points = np.random.default_rng(0).normal(size=(filters, 27))
    labels = tmi.SCHEMES[scheme](points, groups)
    assert np.bincount(labels, minlength=groups).tolist() == [filters // groups] * groups
    assert np.array_equal(labels, tmi.SCHEMES[scheme](points, groups))


@pytest.mark.parametrize("scheme", tmi.SCHEMES)
def test_dead_and_equal_filters_do_no_harm(scheme):
    points = np.zeros((16, 9))
    points[8:] = 1
    assert np.bincount(tmi.SCHEMES[scheme](points, 4)).tolist() == [4] * 4


def test_kernel_pca_keeps_the_distances_of_its_kernel(monkeypatch):
    """In the space of all components ||a-b||^2 = k(a,a) + k(b,b) - 2 k(a,b)."""
    filters = np.random.default_rng(0).normal(size=(6, 4))
    seen = {}

    def spy(points, groups):
        seen["points"] = points
        return np.arange(len(points)) % groups

    monkeypatch.setattr(tmi, "equal_k_means", spy)
    tmi.kernel_pca(filters, 2)
    for a, b in itertools.combinations(range(6), 2):

        def kernel(i, j):
            gap = ((filters[i] - filters[j]) ** 2).sum()
            return 0.5 * (filters[i] @ filters[j]) ** 2 + 0.5 * np.exp(-gap / 4)

        expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
        assert ((seen["points"][a] - seen["points"][b]) ** 2).sum() == pytest.approx(expected)


def test_the_increase_is_of_magnitudes():
    final, early = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[-1.0, 1.0], [1.0, -0.5]])
    found = tmi.magnitude_increase(final.view(2, 2, 1, 1), early.view(2, 2, 1, 1))
    assert found.tolist() == [1.0, 2.0]


def test_even_clusters_are_preferred():
    increase = np.array([1.0, 2.0, 3.0, 4.0])
    clusterings = {"low and high": np.array([0, 0, 1, 1]), "mixed": np.array([0, 1, 1, 0])}
    assert tmi.preferred(clusterings, increase) == "mixed"  # totals 5, 5 against 3, 7
    assert tmi.preferred({"first": clusterings["mixed"], "second": clusterings["mixed"]}, increase) == "first"


def test_the_variance_of_intervals_outweighs_their_mean():
    increase = np.array([0.0, 3.0, 6.0, 0.0, 1.0, 4.0])
    even, narrow = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 0, 2, 1])
    assert np.bincount(even, increase).tolist() == [0.0, 4.0, 10.0]  # intervals 4, 6
    assert np.bincount(narrow, increase).tolist() == [0.0, 7.0, 7.0]  # intervals 7, 0: smaller mean
    assert tmi.preferred({"narrow": narrow, "even": even}, increase) == "even"


@pytest.mark.parametrize(
    ("choices", "winner"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b", "a", "b", "b", "a"], "b"),  # three each, b twice in a row
        (["a", "b"], "a"),
        (["c", "a", "a", "c", "b"], "a"),
    ],
)
def test_the_vote(choices, winner):
    assert tmi.vote(choices) == winner


def test_a_network_is_grouped_by_its_tickets(resnet8, snapshots):
    pruned = gkp.prune(resnet8, "tmi-gkp", snapshots=snapshots)
    layers = {n: m for n, m in pruned.named_modules() if isinstance(m, GroupedKernelConv2d)}
    assert len(layers) == 6
    for name, layer in layers.items():
        weight = resnet8.get_submodule(name).weight.detach()
        earlier = [snapshot[f"{name}.weight"] for snapshot in snapshots]
        groups = tmi.ticket_groups(weight, earlier, 8)
        assert torch.equal(layer.filter_order, groups.flatten())
        filters = weight.double().flatten(1).numpy()
        expected = [scheme(filters, 8) for scheme in tmi.SCHEMES.values()]
        found = np.empty(len(weight), dtype=int)
        for label, group in enumerate(groups):
            found[group] = label
        assert any(np.array_equal(found, labels) for labels in expected)


def test_one_group_holds_all_filters():
    weight = torch.randn(6, 2, 3, 3)
    assert tmi.ticket_groups(weight, [weight], 1).tolist() == [list(range(6))]


def test_snapshots_are_asked_for_and_checked(resnet8, snapshots):
    with pytest.raises(ValueError, match="give snapshots=.*or use gkp-greedy"):
        gkp.prune(resnet8, "tmi-gkp")
    for no_list in (snapshots[0], [*snapshots, "last.safetensors"]):
        with pytest.raises(ValueError, match="snapshots is no list of state_dicts"):
            gkp.prune(resnet8, "tmi-gkp", snapshots=no_list)
    del snapshots[2]["layer2.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"layer2.0.conv1.weight is missing in a snapshot"):
        gkp.prune(resnet8, "tmi-gkp", snapshots=snapshots)
    snapshots[2]["layer2.0.conv1.weight"] = torch.zeros(2, 2, 3, 3)
    with pytest.raises(ValueError, match=r"has shape \(2, 2, 3, 3\) in a snapshot and is \(32, 16, 3, 3\)"):
        gkp.prune(resnet8, "tmi-gkp", snapshots=snapshots)
