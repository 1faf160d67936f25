"""CC: damages against brute force, curves against decompositions one by one, layers against zeros."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gkp
from gkp import pruners
from gkp.nets import cost
from gkp.nets.channels.surgery import SkippedLayers
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.lowrank import cc, damage
from gkp.train.fleet.member import Member
from gkp.train.fleet.wide import widened
from gkp.train.recipe import Recipe

MACS = 0.5625


def layer(filters=4, inputs=3, size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, filters, inputs, size, generator=generator, dtype=torch.float64)
    return weight, gradient.square()


def without_direction(current, place):
    left, values, right = torch.linalg.svd(current.flatten(1), full_matrices=False)
    values[place] = 0
    return (left @ values.diag() @ right).view_as(current)


def without_channel(current, channel):
    current = current.clone()
    current[:, channel] = 0
    return current


def next_states(current, channels, rank):
    """All that deleting one more unit may give, as the method is defined: by a decomposition for each."""
    yield from (without_channel(current, channel) for channel in channels)
    yield from (without_direction(current, place) for place in range(rank))


@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 3, 2), (2, 4, 3), (6, 3, 1)])
@pytest.mark.parametrize("gone", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_score_is_the_damage_and_the_mean_damage_of_all_next_deletions(shape, gone):
    weight, squares = layer(*shape)
    channels, rank = list(range(shape[1])), min(shape[0], shape[1] * shape[2])
    current = weight
    if gone[1]:
        current, rank = without_direction(current, 1), rank - 1
    if gone[0]:
        current = without_channel(current, channels.pop(1))

    def m(state):
        return (squares * (state - weight) ** 2).sum()

    expected = []
    for unit, state in enumerate(next_states(current, channels, rank)):
        channel = unit < len(channels)
        left = channels[:unit] + channels[unit + 1 :] if channel else channels
        then = [m(each) for each in next_states(state, left, rank - (not channel))]
        expected.append(m(state) + 0.9 * sum(then) / len(then))
    pair = damage.directions(current, rank)
    found = damage.damages(weight, squares, current, torch.tensor(channels), pair, 0.9)
    torch.testing.assert_close(torch.cat(found), torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_without_a_look_ahead_channels_go_by_their_own_damage():
    weight, squares = layer(6, 8, 9)
    found = damage.damages(weight, squares, weight, torch.arange(8), damage.directions(weight, 6), 0.0)[0]
    torch.testing.assert_close(found, (squares * weight**2).sum((0, 2)))


def test_where_all_gradients_are_one_the_smallest_singular_values_go():
    weight, ones = layer(6, 8, 9)[0], torch.ones(6, 8, 9, dtype=torch.float64)
    values = torch.linalg.svdvals(weight.flatten(1))
    found = damage.damages(weight, ones, weight, torch.arange(8), damage.directions(weight, 6), 0.0)[1]
    torch.testing.assert_close(found, values**2)
    smaller = without_direction(weight, 5)
    found = damage.damages(weight, ones, smaller, torch.arange(8), damage.directions(smaller, 5), 0.0)[1]
    torch.testing.assert_close(found, values[:5] ** 2 + values[5] ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_that_of_deleting_one_by_one(seed):
    """Damages alone decide the order; a direction is counted among those of the matrix as it is then."""
    weight, squares = layer(5, 6, 4, seed)
    alone = [(squares * (state - weight) ** 2).sum() for state in next_states(weight, range(6), 5)]
    current, gone, shares, values = weight, [], [], []
    for unit in np.argsort([float(each) for each in alone]):
        if unit < 6:
            current = without_channel(current, unit)
        else:
            current = without_direction(current, unit - 6 - sum(each < unit for each in gone))
            gone.append(unit)
        lost = len(shares) + 1 - len(gone)
        left = (6 - lost) * 4
        shares.append(1 - ((left + 5) * (5 - len(gone)) if gone else 5 * left) / 120)
        values.append(float((squares * (current - weight) ** 2).sum()))
    kept = np.array(shares) > 0
    c, m = np.array(shares)[kept], np.array(values)[kept] / max(np.array(values)[kept])
    slope, start = np.polyfit(c, np.log(m + 1e-10), 1, w=m**0.25)  # it squares its weights
    assert damage.exponential(weight, squares) == pytest.approx((start, slope), rel=1e-6)


@pytest.mark.parametrize("removed", [0.05, 0.3, 0.6])
def test_the_allocation_has_the_least_damage_weighted_by_cost(removed):
    curves, costs = [(-3.0, 4.0), (-5.0, 6.0)], [1.0, 2.5]
    grid = np.linspace(0, damage.CAP, 200_001)
    other = (removed * sum(costs) - costs[0] * grid) / costs[1]
    allowed = (other >= 0) & (other <= damage.CAP)
    first, second = grid[allowed], other[allowed]
    total = costs[0] * np.exp(-3 + 4 * first) + costs[1] * np.exp(-5 + 6 * second)
    best = total.argmin()
    found = damage.allocation(curves, costs, removed * sum(costs))
    assert found == pytest.approx([first[best], second[best]], abs=1e-4)


def test_the_allocation_ends_at_the_cap_and_begins_where_nothing_is_lost():
    curves = [(-3.0, 4.0), damage.NO_DAMAGE]
    assert damage.allocation(curves, [1.0, 1.0], 5.0) == pytest.approx([damage.CAP, damage.CAP])
    assert damage.allocation(curves, [1.0, 1.0], 0.5) == pytest.approx([0, 0.5], abs=1e-3)


def test_a_path_is_the_same_whatever_was_asked_before():
    weight, squares = layer(8, 9, 4)
    one, other = (damage.Path(weight, squares, 0.9) for _ in range(2))
    shares = (0.2, 0.5, 0.9, 0.35)
    assert [one.until(share) for share in shares] == [other.until(share) for share in reversed(shares)][::-1]
    for share in shares:
        channels, directions = one.until(share)
        assert damage.share_removed(weight, len(channels), directions) >= share
        assert len(channels) < 9
        assert directions < 8
    assert one.until(0.0) == ([], 0)
    channels, directions = one.until(2.0)
    assert (len(channels), directions) == (8, 7), "one of each stays"


def test_dead_channels_and_directions_go_first():
    weight, squares = layer(8, 9, 4)
    weight[:, [2, 7]] = 0
    weight[5:] = weight[:3]  # three directions of eight are zero
    path = damage.Path(weight, squares, 0.0)
    path.until(0.5)
    assert sorted(path.units[:5]) == [-1, -1, -1, 2, 7]


def test_directions_come_back_where_channels_alone_are_enough():
    weight, squares = layer(8, 9, 4)
    path = damage.Path(weight, squares, 0.9, [-1, 3, 4, 5, 1, -1])
    share = damage.share_removed(weight, 3, 0)
    assert damage.share_removed(weight, 3, 1) < share
    assert path.until(share) == ([3, 4, 5], 0)


# ---- layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_directions_that_are_zero_cost_nothing(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2, bias=bias, padding_mode="circular")
    conv.weight.data = torch.einsum("or,rihw->oihw", torch.randn(8, 3), torch.randn(3, 6, 3, 3))
    x = torch.randn(2, 6, 11, 11)
    smaller = cc._layer(conv, cc.split(conv.weight.detach(), 3, torch.arange(8)), torch.arange(6), "dense")
    assert [tuple(each.weight.shape) for each in smaller] == [(3, 6, 3, 3), (8, 3, 1, 1)]
    torch.testing.assert_close(smaller(x), conv(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("execution", ["dense", "grouped"])
@pytest.mark.parametrize(("channels", "directions"), [(2, 0), (0, 5), (2, 5)])
def test_the_layer_costs_what_its_path_says(channels, directions, execution):
    """Gathering is free, then a convolution to r channels, then one of 1x1."""
    conv, x = nn.Conv2d(6, 8, 3, padding=1), torch.rand(1, 6, 5, 5)
    rank = 8 - directions if directions else None
    factors = cc.split(conv.weight.detach()[:, channels:], rank, torch.arange(8))
    smaller = cc._layer(conv, factors, torch.arange(channels, 6), execution)
    whole = cost.count(conv, x)
    assert whole.macs == 6 * 8 * 9 * 25
    share = damage.share_removed(conv.weight.detach().flatten(2), channels, directions)
    assert cost.count(smaller, x).macs == round((1 - share) * whole.macs)
    assert cost.count(smaller, x).params == cost.count(smaller, x).macs // 25 + 8
    assert cost.count(smaller, x, convention="paper").macs == cost.count(smaller, x).macs + 8 * 25


def test_factors_dearer_than_their_product_are_multiplied():
    weight = torch.randn(8, 6, 3, 3)
    whole, none = cc.split(weight, 7, torch.arange(8))
    assert none is None
    expected = without_direction(weight.double().flatten(2), 7).view_as(weight)
    torch.testing.assert_close(whole, expected)


def test_no_more_directions_are_kept_than_there_are():
    """Of R = 8 four are gone, and of six input channels two are left: two directions with 1x1 kernels."""
    weight = torch.randn(8, 6, 1, 1)
    first, expand = cc.split(weight[:, :2], 4, torch.arange(8))
    assert expand is None
    torch.testing.assert_close(first, weight[:, :2].double())


def test_the_gradient_is_that_of_the_mean_loss(resnet8, images):
    model = copy.deepcopy(resnet8)
    weight = model.layer2[0].conv1.weight
    loss = F.cross_entropy(model(images.pixels()), images.labels)
    (expected,) = torch.autograd.grad(loss, weight)
    for size in (48, 20):
        found = cc.mean_gradients(resnet8, ["layer2.0.conv1"], images, size)["layer2.0.conv1"]
        torch.testing.assert_close(found, expected.double().flatten(2), rtol=1e-3, atol=1e-6)


# ---- networks ------------------------------------------------------------------------------------------

GONE = {
    "layer1.0.conv1": ([0, 5], 8),  # reads the residual stream: gathers
    "layer1.0.conv2": ([1, 2, 15], 11),  # what it loses the first convolution makes for nobody
    "layer2.0.conv1": ([], 20),
    "layer2.0.conv2": (list(range(20)), 0),
    "layer3.0.conv1": ([31], 0),
}


def test_layers_and_unread_filters_compute_what_zeros_would(resnet8):
    masked, x = copy.deepcopy(resnet8), torch.rand(2, 3, 32, 32)
    for name, (lost, directions) in GONE.items():
        weight = masked.get_submodule(name).weight
        weight.data[:, lost] = 0
        left, values, right = torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)
        values[len(values) - directions :] = 0
        weight.data = (left @ values.diag() @ right).view_as(weight).float()
    pruned = cc._without(resnet8, GONE, x[:1], "grouped")
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), masked(x), rtol=1e-4, atol=1e-4)
    assert pruned.layer1[0].bn1.num_features == 13
    assert pruned.layer1[0].conv2.expand.weight.shape == (16, 5, 1, 1)
    assert pruned.layer2[0].conv1.weight.shape == (12, 16, 3, 3), "12 directions of 12 filters that are left"
    assert pruned.layer1[0].conv1.conv.kept.shape == (1, 14)
    assert resnet8.layer1[0].bn1.num_features == 16


class Concatenation(nn.Module):
    """`b` and `c` are read by `d` alone, side by side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 4, 3) for n in (3, 4, 4, 8))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.d(torch.cat([self.b(x), self.c(x)], 1)).relu().mean((2, 3)))


def test_a_layer_that_nobody_reads_any_more_keeps_one_filter():
    model, x = Concatenation().eval(), torch.rand(2, 3, 12, 12)
    pruned = cc._without(model, {"d": ([0, 1, 2, 3, 7], 0)}, x[:1], "dense")
    assert (pruned.b.out_channels, pruned.c.out_channels) == (1, 3)
    masked = copy.deepcopy(model)
    masked.d.weight.data[:, [0, 1, 2, 3, 7]] = 0
    torch.testing.assert_close(pruned(x), masked(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pruned(resnet8, images):
    """By the whole method, with layers of both kinds."""
    rough = copy.deepcopy(resnet8)
    for stage in (1, 2, 3):
        weight = rough.get_submodule(f"layer{stage}.0.conv1").weight
        weight.data[1::2] = weight.data[::2] + 0.01 * weight.data[1::2]
    small = gkp.prune(rough, "cc", rate=0.5, data=images, gamma=0.0)
    kinds = {type(module) for module in small.modules()}
    assert {GroupedKernelConv2d, nn.Sequential} <= kinds
    assert any(hasattr(module, "expand") for module in small.modules())
    return small


def test_a_network_of_both_kinds_is_saved_and_loaded(pruned, tmp_path):
    path, x = tmp_path / "cc.safetensors", torch.rand(2, 3, 32, 32)
    gkp.save_model(pruned, path, network="resnet8", dataset="digits")
    with torch.no_grad():
        assert torch.equal(gkp.load_model(path)(x), pruned(x))


def test_a_fleet_trains_it_as_it_is(pruned, resnet8, images):
    assert Member(pruned, images, Recipe()).why_alone() == ""
    assert widened(pruned, resnet8, images.take(4).pixels()).model is pruned


def test_without_directions_a_fleet_has_it_in_the_shape_of_its_start(resnet8, images):
    """Channels alone: the layers are those of the start, some of grouped kernels."""
    small = cc._without(resnet8, {"layer1.0.conv1": ([0, 5], 0)}, images.take(1).pixels(), "grouped")
    wide = widened(small, resnet8, images.take(4).pixels())
    assert wide.model is not small
    assert int(wide.mask()["layer1.0.conv1.weight"].sum()) == 16 * 14 * 9


def test_a_target_of_multiply_adds_is_met_within_1_percent(resnet20, images):
    x, whole = torch.rand(1, 3, 32, 32), cost.count(resnet20, torch.rand(1, 3, 32, 32)).macs
    cut = pruners.prepare(resnet20, "cc", data=images, images=4, gamma=0.0)
    small, _ = pruners.match_macs(resnet20, cut, MACS * whole)
    assert cost.count(small, x).macs == pytest.approx(MACS * whole, rel=0.01)


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_the_filters_does_not_matter(seed, resnet8, images):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    shuffled = copy.deepcopy(resnet8)
    block = shuffled.layer1[0]
    for tensor in itertools.chain([block.conv1.weight], block.bn1.parameters(), block.bn1.buffers()):
        if tensor.dim():
            tensor.data = tensor.data[order]
    block.conv2.weight.data = block.conv2.weight.data[:, order]
    one, other = (pruners.prepare(m, "cc", data=images, gamma=0.0)(0.4) for m in (resnet8, shuffled))
    with torch.no_grad():
        torch.testing.assert_close(one(images.pixels()), other(images.pixels()), rtol=1e-3, atol=1e-3)


class Twice(nn.Module):
    """One convolution under two names, between two others; a hook, and a weight that stays as it is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.again, self.head = self.first, nn.Linear(8, 10)
        self.first.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(self.again(self.first(self.stem(x).relu()).relu()).relu().mean((2, 3)))


def test_shared_layers_flags_hooks_and_modes_stay(images):
    model, seen = Twice().eval(), []
    model.first.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    small = gkp.prune(model, "cc", rate=0.4, example_input=torch.rand(1, 3, 32, 32), data=images)
    assert small.first is small.again
    assert not isinstance(small.first, nn.Conv2d)
    flags = {name: p.requires_grad for name, p in small.first.named_parameters()}
    assert set(flags.values()) == {False, True}
    assert all(flag == name.endswith("bias") for name, flag in flags.items())
    seen.clear()
    small(torch.rand(1, 3, 8, 8))
    assert seen == [8, 8]


def test_what_cannot_be_split_is_named(images):
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1))
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"this network has none \(1: it already has groups=2\)"):
        gkp.prune(grouped.append(nn.Flatten()), "cc", example_input=x, data=images)
    grouped.insert(2, nn.Conv2d(8, 10, 1))
    with pytest.warns(SkippedLayers, match="1: it already has groups=2"):
        gkp.prune(grouped, "cc", rate=0.02, example_input=x, data=images)
    with pytest.raises(ValueError, match=r"gamma=2.*from 0 to 1"):
        gkp.prune(grouped, "cc", example_input=x, data=images, gamma=2)
