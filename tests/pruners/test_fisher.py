"""Group Fisher against gates of single images, Taylor-FO, and the order in which channels are masked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gkp
from gkp.nets import cost
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import filter_layers, remove_filters
from gkp.pruners import prepare
from gkp.pruners.common.gates import Costs, Gates, drops
from gkp.pruners.fisher import Order, fisher
from gkp.pruners.gradients import first_order


def information(model, data, batch_size, mask=None):
    """(units of all bundles, their information)."""
    channels = channels_of(model, data.take(1).pixels())
    units = [unit for bundle in channels.bundles for unit in bundle.units]
    scored = copy.deepcopy(model).requires_grad_(False)
    mask = torch.ones(len(units), dtype=torch.float64) if mask is None else mask
    return units, fisher(scored, Gates(scored, channels, units), mask, data, batch_size)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 4, 3),
            nn.Conv2d(6, 4, 3),
            nn.Linear(8, 10),
        )

    def forward(self, x, gates=(1, 1)):
        x = self.a(x).relu()
        y = torch.cat([self.b(x * gates[0]).relu(), self.c(x * gates[1]).relu()], 1)
        return self.head(y.mean((2, 3)))


def test_what_all_readers_lose_is_summed_before_it_is_squared(images):
    model, some = TwoReaders().eval(), images.take(5)
    expected = torch.zeros(6, dtype=torch.float64)
    for image, label in zip(some.pixels(), some.labels, strict=True):
        gates = [torch.ones(1, 6, 1, 1, requires_grad=True) for _ in range(2)]
        loss = F.cross_entropy(model(image[None], gates), label[None])
        found = torch.autograd.grad(loss, gates)
        expected += (found[0] + found[1]).double().flatten() ** 2
    owner = channels_of(model, some.take(1).pixels()).filters["a"].tolist()
    for batch_size in (5, 2, 1):
        units, scores = information(model, some, batch_size)
        found = scores[[units.index(unit) for unit in owner]]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_image_by_image_it_is_the_squared_gradient_of_taylor(resnet8, images):
    some = images.take(6)
    layers = filter_layers(resnet8, some.take(1).pixels())
    taylor = first_order(resnet8, layers, some, 1)
    channels = channels_of(resnet8, some.take(1).pixels())
    units, scores = information(resnet8, some, 3)
    for name in layers:
        places = [units.index(unit) for unit in channels.filters[name].tolist()]
        torch.testing.assert_close(scores[places].float() / 6, taylor[name], rtol=1e-3, atol=1e-8)


class Rows(nn.Module):
    """Its linear layers read rows of all images in one long axis."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(3 * 32, 6), nn.Linear(6, 5), nn.Linear(5, 10)

    def forward(self, x):
        rows = x.transpose(1, 2).flatten(2)  # (n, 32, 96)
        hidden = self.two(self.one(rows.flatten(0, 1)).relu()).view(len(x), 32, 5)
        return self.head(hidden.mean(1))


def test_layers_that_read_images_in_one_axis_are_seen_image_by_image(images):
    some = images.take(3)
    units, together = information(Rows().eval(), some, 3)
    alone = sum(information(Rows().eval(), some.take(torch.tensor([i])), 1)[1] for i in range(3))
    torch.testing.assert_close(together, alone)
    assert len(units) >= 6
    assert together.min() > 0


def test_dead_channels_have_none_and_go_first(resnet8, images):
    model = copy.deepcopy(resnet8)
    for stage in (1, 2, 3):
        norm = model.get_submodule(f"layer{stage}.0.bn1")
        norm.weight.data[::4] = norm.bias.data[::4] = 0
    assert int(information(model, images.take(8), 8)[1].eq(0).sum()) == 28
    for per in ("memory", "macs", "none"):
        pruned = prepare(model, "group-fisher", data=images, images=8, step=28, per=per)(0.25)
        assert [pruned.get_submodule(f"layer{i}.0.conv1").out_channels for i in (1, 2, 3)] == [12, 24, 48]
        torch.testing.assert_close(pruned(images.pixels()), model(images.pixels()), rtol=1e-4, atol=1e-4)


def order_of(per="memory", step=1):
    """Two layers of 3 and 4 channels with made-up information: (Order, masks that it asked for)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(4, 10)),
    ).eval()
    x, masks = torch.rand(1, 3, 8, 8), []
    channels = channels_of(model, x)
    costs = Costs(model, channels, [u for b in channels.bundles for u in b.units], x)

    def information(mask, turn):
        masks.append((turn, mask.clone()))
        return torch.tensor([9.0, 1, 5, 2, 8, 3, 4], dtype=torch.float64)

    return Order([3, 4], [2, 3], costs, information, step, per), masks


def test_what_a_channel_takes_divides_its_information():
    order, _ = order_of("none", step=9)
    assert order.places == [1, 3, 5, 6, 2], "one channel of each layer stays"
    order, _ = order_of("memory", step=9)  # 36 positions in the first layer, 16 in the second
    assert order.places == [1, 3, 2, 5, 6]
    order, _ = order_of("macs")
    # One of the first: 27 x 36 + 4 x 9 x 16; of the second: 27 x 16 + 10.
    assert [round(float(each)) for each in order._takes()[[0, 3]]] == [972 + 576, 18 * 16 + 10]


def test_masks_grow_by_steps_as_far_as_is_asked():
    order, masks = order_of(step=2)
    assert order.places == [1, 3]
    assert order.until(1e-9) == []
    assert len(masks) == 1
    assert order.until(0.99) == [1, 3, 2, 5, 6]
    assert [turn for turn, _ in masks] == [0, 1, 2]
    assert masks[1][1].tolist() == [1, 0, 1, 0, 1, 1, 1]
    assert order.until(0.99) == order.places
    for count, left in enumerate(order.left, 1):
        assert order.until(1 - left) == order.places[:count]


@pytest.mark.parametrize("network", ["resnet8", "resnet20"])
def test_a_target_of_multiply_adds_is_met_within_1_percent(network, request, images):
    model, x = request.getfixturevalue(network), torch.rand(1, 3, 32, 32)
    target = 0.5625 * cost.count(model, x).macs
    cut = prepare(model, "group-fisher", data=images, images=4, step=40)
    pruned, _ = gkp.pruners.match_macs(model, cut, target)
    assert cost.count(pruned, x).macs == pytest.approx(target, rel=0.01)


def test_masked_channels_are_not_there_when_the_others_are_scored(resnet8, images):
    """Information under a mask is that of the network without the masked channels."""
    x, some = images.take(1).pixels(), images.take(4)
    channels = channels_of(resnet8, x)
    bundle = channels.bundles[-1]
    mask = torch.ones(sum(len(b.units) for b in channels.bundles), dtype=torch.float64)
    mask[-10:] = 0
    small = remove_filters(resnet8, drops(channels, [bundle], set(bundle.units[-10:])), x)
    expected = information(small, some, 4)[1]
    torch.testing.assert_close(information(resnet8, some, 4, mask)[1][:-10], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"per": "time"}, "memory, macs, none"), ({"step": 0}, "1 or more"), ({"minimum": 1.0}, "below 1")],
)
def test_options_out_of_range_are_named(options, sentence, resnet8, images):
    with pytest.raises(ValueError, match=sentence):
        prepare(resnet8, "group-fisher", data=images, **options)
