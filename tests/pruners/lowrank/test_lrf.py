"""LRF against regressions solved one by one, and what its 1x1 convolutions must give back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp import pruners
from gkp.nets import checkpoint, cost, models
from gkp.nets.channels.surgery import SkippedLayers
from gkp.pruners.lowrank import lrf


def split(conv, rate):
    products = lrf.gram(conv.weight.detach().double())
    return lrf.factorise(conv, rate, products, lrf.removal_order(products, len(products) - 1))


def one_by_one(vectors, count):
    """The criterion as printed: least squares for every vector on the others, then the 1x1 is updated."""
    left, columns = list(range(len(vectors))), torch.eye(len(vectors), dtype=torch.float64)
    order = []
    for _ in range(count):
        best = None
        for i in left:
            others = [j for j in left if j != i]
            coefficients = torch.linalg.lstsq(vectors[others].t(), vectors[i]).solution
            error = (vectors[i] - coefficients @ vectors[others]).norm() * columns[:, i].norm()
            if best is None or error < best[0]:
                best = (error, i, others, coefficients)
        _, i, others, coefficients = best
        columns[:, others] += columns[:, [i]] * coefficients
        left.remove(i)
        order.append(i)
    return order, columns[:, left]


@given(st.integers(0, 9999), st.integers(2, 8), st.integers(8, 20))
@settings(max_examples=30)
def test_order_and_compensation_are_those_of_the_printed_procedure(seed, filters, size):
    vectors = torch.randn(filters, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    products = lrf.gram(vectors)
    for count in (1, filters // 2, filters - 1):
        order, columns = one_by_one(vectors, count)
        assert lrf.removal_order(products, count) == order
        kept = torch.tensor(sorted(set(range(filters)) - set(order)))
        torch.testing.assert_close(lrf.mixture(products, kept), columns, rtol=1e-6, atol=1e-7)


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_permuting_filters_permutes_the_order(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(8, 12, dtype=torch.float64, generator=generator)
    order = torch.randperm(8, generator=generator)
    permuted = lrf.removal_order(lrf.gram(vectors[order]), 5)
    assert [int(order[i]) for i in permuted] == lrf.removal_order(lrf.gram(vectors), 5)


@pytest.mark.parametrize("bias", [True, False])
def test_filters_that_others_express_cost_nothing(bias):
    """Filters of rank 3 and inputs of rank 2: 8 filters and 6 inputs shrink without any error."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2, bias=bias)
    core = torch.randn(3, 2, 3, 3)
    out, into = torch.randn(8, 3), torch.randn(2, 6)
    conv.weight.data = torch.einsum("oa,abhw,bi->oihw", out, core, into)
    x = torch.randn(2, 6, 11, 11)
    smaller = split(conv, 0.62)
    assert smaller.conv.weight.shape == (3, 2, 3, 3)
    torch.testing.assert_close(smaller(x), conv(x), rtol=1e-4, atol=1e-4)


def test_dead_filters_and_inputs_go_first():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3)
    conv.weight.data[[1, 5]] = 0
    conv.weight.data[:, [2, 7]] = 0
    smaller = split(conv, 0.25)
    kept = [0, 2, 3, 4, 6, 7], [0, 1, 3, 4, 5, 6]
    assert torch.equal(smaller.conv.weight, conv.weight[kept[0]][:, kept[1]])
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(smaller(x), conv(x), rtol=1e-4, atol=1e-5)


def test_compensation_beats_dropping():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 3, bias=False), torch.randn(64, 8, 3, 3)
    smaller = split(conv, 0.5)
    kept_filters = torch.where(smaller.expand.weight.flatten(1).eq(1).any(1))[0]
    dropped = conv(x)
    dropped[:, [i for i in range(8) if i not in kept_filters]] = 0
    compensated = nn.Sequential(nn.Conv2d(8, 4, 3, bias=False), smaller.expand)
    compensated[0].weight.data = conv.weight.data[kept_filters]
    assert (compensated(x) - conv(x)).norm() < (dropped - conv(x)).norm()


def test_rate_zero_leaves_a_layer_whole():
    conv = nn.Conv2d(4, 6, 3)
    assert torch.equal(split(conv, 0.0).weight, conv.weight)
    assert isinstance(split(conv, 0.01), nn.Conv2d)


def test_a_network_keeps_its_other_layers_and_can_be_saved(resnet8, tmp_path):
    pruned = gkp.prune(resnet8, "lrf", rate=0.35)
    assert [tuple(layer.weight.shape) for layer in pruned.layer2[0].conv1] == [
        (10, 16, 1, 1),
        (21, 10, 3, 3),
        (32, 21, 1, 1),
    ]
    assert torch.equal(pruned.conv1.weight, resnet8.conv1.weight)
    path = tmp_path / "lrf.safetensors"
    checkpoint.save_model(pruned, path, network="resnet8", dataset="digits")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(checkpoint.load_file(path)(x), pruned(x))


@pytest.mark.parametrize("network", ["resnet8", "resnet20"])
def test_the_added_convolutions_are_counted_and_the_target_is_met(network, request):
    model, x = request.getfixturevalue(network), torch.rand(1, 3, 32, 32)
    whole = cost.count(model, x).macs
    pruned, rate = pruners.match_macs(model, pruners.prepare(model, "lrf"), 0.57 * whole)
    assert abs(cost.count(pruned, x).macs / whole - 0.57) < 0.0057
    assert (1 - rate) ** 2 < 0.5, "without its 1x1 convolutions it would cost less"


def test_networks_without_such_convolutions_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match="and this network has none"):
        gkp.prune(net, "lrf", example_input=torch.rand(1, 3, 8, 8))


def test_the_network_computes_the_same_when_filters_repeat():
    """Every second filter of a block equals its neighbour: the function stays to rounding."""
    torch.manual_seed(0)
    model = models.create("resnet8").eval()
    for stage in (1, 2, 3):
        block = model.get_submodule(f"layer{stage}.0")
        for conv in (block.conv1, block.conv2):
            conv.weight.data[1::2] = conv.weight.data[::2]
            conv.weight.data[:, 1::2] = conv.weight.data[:, ::2]
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gkp.prune(model, "lrf", rate=0.5)(x), model(x), rtol=1e-3, atol=1e-3)


class Twice(nn.Module):
    """One convolution under two names, between two others."""

    def __init__(self, **options):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, **options)
        self.again, self.head = self.first, nn.Linear(8, 5)

    def forward(self, x):
        x = self.again(self.first(self.stem(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_a_shared_convolution_stays_shared():
    pruned = gkp.prune(Twice(), "lrf", rate=0.5, example_input=torch.rand(1, 3, 8, 8))
    assert pruned.first is pruned.again
    assert isinstance(pruned.first, nn.Sequential)
    assert len(list(pruned.parameters())) == len({id(p) for p in pruned.parameters()}) == 2 + 4 + 2


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_layers_of_low_rank_are_split_without_error_at_every_border(padding_mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=2, padding_mode=padding_mode)
    conv.weight.data = torch.einsum("oahw,ai->oihw", torch.randn(8, 3, 3, 3), torch.randn(3, 6))
    conv.weight.data[4:] = conv.weight.data[:4]
    x = torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(split(conv, 0.5)(x), conv(x), rtol=1e-4, atol=1e-4)


def test_flags_hooks_and_mode_go_to_the_split_layer():
    torch.manual_seed(0)
    model, seen = Twice().eval(), []
    model.first.weight.requires_grad_(False)
    model.first.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    pruned = gkp.prune(model.to(memory_format=torch.channels_last), "lrf", rate=0.5)
    flags = {name: parameter.requires_grad for name, parameter in pruned.first.named_parameters()}
    expected = {"reduce.weight": False, "conv.weight": False, "expand.weight": False, "expand.bias": True}
    assert flags == expected
    assert not any(module.training for module in pruned.modules())
    assert pruned.first.conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen.clear()  # pruning runs the network, too
    pruned(torch.rand(1, 3, 8, 8))
    assert seen == [8, 8]


def test_layers_that_cannot_be_split_are_named():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    )
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.warns(SkippedLayers, match=r"1: it already has groups=2; 3: its weight is parametrised"):
        pruned = gkp.prune(model, "lrf", rate=0.5, example_input=torch.rand(1, 3, 16, 16))
    assert isinstance(pruned[2], nn.Sequential)
    with pytest.raises(ValueError, match=r"this network has none \(1: it already has groups=2\)"):
        gkp.prune(model[:2], "lrf", example_input=torch.rand(1, 3, 16, 16))


def test_the_example_says_what_the_network_reads():
    """One channel of 28 x 28 and a flatten: no other input goes through."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 24**2, 10)
    ).eval()
    x = torch.rand(1, 1, 28, 28)
    pruned = gkp.prune(model, "lrf", rate=0.5, example_input=x)
    assert pruned[2].conv.weight.shape == (4, 4, 3, 3)
    assert pruned(x).shape == (1, 10)


def test_nothing_is_drawn_from_the_global_generator(resnet8):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    gkp.prune(resnet8, "lrf", rate=0.5)
    assert torch.equal(torch.get_rng_state(), before)
