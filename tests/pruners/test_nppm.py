"""NPPM: gates, cost, memory and gradients by hand, and a search that finds what is useless."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gkp
from gkp.nets.channels.groups import channels_of
from gkp.pruners import nppm, prepare
from gkp.pruners.common.gates import Costs, Gates

QUICK = {"images": 16, "iterations": 3, "batch_size": 8}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gated(model, layers, x):
    """(Gates in a copy, their Costs, sizes) of the filters of `layers`."""
    channels, scored = channels_of(model, x), copy.deepcopy(model).requires_grad_(False)
    sizes = [len(channels.filters[name]) for name in layers]
    units = [unit for name in layers for unit in channels.filters[name].tolist()]
    return scored, Gates(scored, channels, units), Costs(model, channels, units, x), sizes


@pytest.mark.parametrize("theta", [-5.0, -3.0, -2.0])
def test_a_gate_is_on_as_often_as_the_formula_says(theta):
    gates, _ = nppm.soft_gates(torch.full((200_000,), theta), generator())
    expected = 1 - torch.exp(-torch.exp(torch.tensor(theta + 3)))
    assert gates.ge(0.5).float().mean() == pytest.approx(float(expected), abs=0.005)
    there, beside = (nppm.soft_gates(torch.full((5,), theta + d).double(), generator())[0] for d in (0, 1e-4))
    slope = nppm.soft_gates(torch.full((5,), theta).double(), generator())[1]
    torch.testing.assert_close((beside - there) / 1e-4, slope, rtol=1e-2, atol=1e-6)


BLOCKS = ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]


def test_the_cost_is_that_of_the_printed_formula(resnet8):
    """k k C_in c hw + 3 c hw + k k c C_out hw' + 3 C_out hw' for each block, over all gates on."""
    costs, sizes = gated(resnet8, BLOCKS, torch.rand(1, 3, 32, 32))[2:]
    gates = torch.rand(sum(sizes), generator=generator()).ge(0.5).float()

    def printed(counts):
        total = 0
        shapes = (16, 16, 1024), (16, 32, 256), (32, 64, 64)
        for (read, width, pixels), c in zip(shapes, counts, strict=True):
            total += 9 * read * c * pixels + 3 * c * pixels + 9 * c * width * pixels + 3 * width * pixels
        return total

    counts = [float(part.sum()) for part in gates.split(sizes)]
    expected = printed(counts) / printed(sizes)
    assert float(nppm.cost_ratio(gates, costs)) == pytest.approx(expected, rel=1e-5)
    assert float(nppm.cost_ratio(torch.ones(sum(sizes)), costs)) == 1


def test_the_penalty_is_zero_below_the_share_and_pulls_down_above(resnet8):
    costs, sizes = gated(resnet8, BLOCKS, torch.rand(1, 3, 32, 32))[2:]
    on, off = torch.full((sum(sizes),), 0.0), torch.full((sum(sizes),), -4.5)
    assert not nppm.cost_gradient(off, costs, 0.5, 2.0, generator()).any()
    assert nppm.cost_gradient(on, costs, 0.5, 2.0, generator()).ge(0).all()
    # 2 w ln(R / p) through a gate that is on: 2 w R' / R times the slope of the soft gate.
    hard = torch.ones(sum(sizes), requires_grad=True)
    (rise,) = torch.autograd.grad(nppm.cost_ratio(hard, costs), hard)
    soft, slope = nppm.soft_gates(torch.full_like(on, 9.0), generator())
    assert soft.ge(0.5).all()
    found = nppm.cost_gradient(torch.full_like(on, 9.0), costs, 0.5, 2.0, generator())
    torch.testing.assert_close(found, 4 * rise * slope)


def test_what_is_left_of_a_gradient_is_orthogonal_in_every_layer():
    gradient, along = torch.randn(2, 9, generator=generator())
    along[6:] = 0
    left = nppm.without_part(gradient, along, [2, 4, 3])
    for part, direction in zip(left.split([2, 4, 3]), along.split([2, 4, 3]), strict=True):
        assert float(part @ direction) == pytest.approx(0, abs=1e-6)
    assert torch.equal(left[6:], gradient[6:])
    assert not torch.allclose(left[:2], gradient[:2])


def test_the_memory_by_hand():
    memory = nppm.Memory(2, 1)
    for gate, accuracy in ((0.0, 0.25), (1.0, 0.75), (0.0, 0.875), (0.5, 1.0)):
        memory.add(torch.tensor([gate]), accuracy)
    assert len(memory) == 2
    assert memory.gates[:, 0].tolist() == [0.5, 0.25]
    assert memory.accuracies.tolist() == [0.5, 0.9375]
    for gate, accuracy in ((1.0, 0.5), (0.5, 0.75)):  # their mean, 0.625, is nearer to 0.5
        memory.add(torch.tensor([gate]), accuracy)
    assert memory.gates[:, 0].tolist() == [0.625, 0.25]
    assert memory.accuracies.tolist() == [0.5625, 0.9375]


def test_rare_accuracies_are_drawn_as_often_as_common_ones():
    memory = nppm.Memory(20, 1)
    for accuracy in [0.5] * 9 + [1.0]:
        for _ in range(2):
            memory.add(torch.tensor([accuracy]), accuracy)
    assert memory.weights().tolist() == pytest.approx([1 / 9] * 9 + [1])
    assert memory.draw(4000, generator())[1].mean() == pytest.approx(0.75, abs=0.02)


def test_the_predictor_learns_what_a_gate_is_worth():
    torch.manual_seed(0)
    predictor = nppm.Predictor([3, 5])
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-3, weight_decay=1e-3)
    for _ in range(300):
        gates = torch.rand(64, 8)
        optimizer.zero_grad()
        F.l1_loss(predictor(gates), 0.2 + 0.6 * gates[:, 4]).backward()
        optimizer.step()
    gates = torch.rand(200, 8)
    assert F.l1_loss(predictor(gates), 0.2 + 0.6 * gates[:, 4]) < 0.05


class OneUseless(nn.Module):
    """Its first layer passes three colours and one channel of nothing on to where classes are told apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)
        self.a.weight.data = torch.cat([torch.eye(3), torch.zeros(1, 3)])[:, :, None, None]
        self.b.weight.data = 12 * torch.eye(3, 4)[:, :, None, None]

    def forward(self, x):
        return self.b(self.a(x).relu()).mean((2, 3))


def test_the_search_switches_a_useless_channel_off_first():
    pixels = torch.zeros(48, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(48) % 3
    pixels[torch.arange(48), labels] = 255
    data = gkp.data.Split(pixels, labels, "colours", "train", ("r", "g", "b"), "", 48)
    x = torch.rand(1, 3, 32, 32)
    scored, gates, costs, sizes = gated(OneUseless().eval(), ["a"], x)
    batches = nppm._batches(data, 16, 0)
    theta = nppm.search(scored, gates, costs, sizes, batches, 250, 0.75, 2.0, 15.0, 100, 0)
    assert int(theta.argmin()) == 3
    assert theta[3] < theta[:3].min() - 1


def test_batches_go_on_in_new_orders_and_places(images):
    few = images.take(10)
    seen = list(itertools.islice(nppm._batches(few, 4, 0), 6))
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    for turn in (seen[:3], seen[3:]):
        labels = torch.cat([batch.labels for batch in turn])
        assert sorted(labels.tolist()) == sorted(few.labels.tolist())
    assert not torch.equal(seen[0].images, seen[3].images)
    again = next(nppm._batches(few, 4, 0))
    assert torch.equal(again.images, seen[0].images)


def test_the_seed_alone_decides_and_the_callers_numbers_stay(resnet8, images):
    def kept(seed):
        torch.manual_seed(5)
        pruned = prepare(resnet8, "nppm", data=images, seed=seed, **QUICK)(0.4)
        return pruned.layer3[0].bn1.running_mean, torch.rand(1)

    (one, a), (other, b), (third, _) = kept(0), kept(0), kept(1)
    torch.manual_seed(5)
    assert a == b == torch.rand(1)
    assert torch.equal(one, other)
    assert one.shape != third.shape or not torch.equal(one, third)


def test_the_predictor_joins_in_and_changes_the_search(resnet8, images, monkeypatch):
    options = {"images": 16, "iterations": 12, "batch_size": 8}
    kept = []
    for entries, each in ((64, 20), (3, 8)):  # with more than 3 pairs after 8 iterations
        monkeypatch.setattr(nppm, "ENTRIES", entries)
        monkeypatch.setattr(nppm, "ROUND", each)
        scores = {}
        monkeypatch.setattr(nppm, "global_cut", lambda model, found, *_, scores=scores: scores.update(found))
        prepare(resnet8, "nppm", data=images, **options)
        kept.append(torch.cat(list(scores.values())))
    assert not torch.equal(*kept)
    assert all(theta.isfinite().all() for theta in kept)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"iterations": 0}, "iterations=0"), ({"memory": True}, "memory=True"), ({"keep": 1.0}, "keep=1.0")],
)
def test_options_out_of_range_are_named(options, sentence, resnet8, images):
    with pytest.raises(ValueError, match=sentence):
        prepare(resnet8, "nppm", data=images, **{**QUICK, **options})
