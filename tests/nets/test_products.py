"""What counts as a multiply-add: every operation that multiplies matrices, however a network comes to it."""

import functools

import pytest
import torch
import torch.nn.functional as F
from called_nets import CONV, Net, conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from gkp.nets import cost
from gkp.nets.grouped import GroupedKernelConv2d, GroupedKernelLinear
from gkp.nets.products import by_layer, products
from gkp.search import Selection


def two_names() -> Net:
    shared = conv()
    return Net(lambda net, x: net.a(x) + net.b(x), a=shared, b=shared)


def frozen_train() -> nn.Module:
    """A network whose `train` returns nothing, as people write who keep batch norms in eval mode."""

    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    return Frozen(conv(), nn.BatchNorm2d(4))


class LowRank(nn.Module):
    """A weight plus a product of two thin matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(4, 2)), nn.Parameter(torch.rand(2, 27))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.a @ self.b).view_as(weight)


def low_rank() -> nn.Module:
    layer = conv()
    register_parametrization(layer, "weight", LowRank())
    return layer


def masked() -> nn.Module:
    return prune.l1_unstructured(conv(), "weight", 0.5)


IMAGE = {  # on an image (1, 3, 10, 10)
    "module": (conv, CONV),
    "functional": (lambda: Net(lambda n, x: F.conv2d(x, n.a.weight, n.a.bias), a=conv()), CONV),
    "forward method": (lambda: Net(lambda n, x: n.a.forward(x), a=conv()), CONV),
    "keyword": (lambda: Net(lambda n, x: n.a(input=x), a=conv()), CONV),
    "twice": (lambda: Net(lambda n, x: n.a(x) + n.a(x), a=conv()), 2 * CONV),
    "two names": (two_names, 2 * CONV),
    "not called": (lambda: Net(lambda n, x: n.a(x), a=conv(), b=conv()), CONV),
    "dictionary": (lambda: Net(lambda n, x: {"out": n.a(x), "aux": [None, x]}, a=conv()), CONV),
    "tuple": (lambda: Net(lambda n, x: (n.a(x), 3), a=conv()), CONV),
    "train without self": (frozen_train, CONV),
    "weight norm": (lambda: parametrizations.weight_norm(conv()), CONV),
    "spectral norm": (lambda: parametrizations.spectral_norm(conv()), CONV),
    "old spectral norm": (lambda: spectral_norm(conv()), CONV),
    "low rank": (low_rank, CONV),
    "masked": (masked, CONV),
    "padding same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), 3 * 4 * 9 * 100),
    "padding circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), 3 * 4 * 9 * 100),
    "grouped": (lambda: nn.Conv2d(3, 6, 3, groups=3), 6 * 9 * 64),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), 3 * 4 * 9 * 36),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), 3 * 4 * 9 * 100),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(3, 6, 2, groups=3), 6 * 4 * 100),
    "unfold": (lambda: Net(lambda n, x: n.a.weight.flatten(1) @ F.unfold(x, 3), a=conv()), CONV),
    "scripted": (lambda: torch.jit.trace(nn.Sequential(conv()).eval(), torch.zeros(1, 3, 10, 10)), CONV),
    "elementwise": (lambda: Net(lambda n, x: (x * x).sum() + x.mean()), 0),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", IMAGE)
def test_convolutions_in_every_form(case: str) -> None:
    make, expected = IMAGE[case]
    model = make()
    assert cost.count(model, torch.rand(1, 3, 10, 10)).macs == expected
    assert cost.count(model, torch.rand(3, 3, 10, 10)).macs == expected  # of one image
    with torch.inference_mode():
        assert cost.count(model, torch.rand(1, 3, 10, 10)).macs == expected


def test_deformable_convolutions_cost_what_the_plain_ones_do() -> None:
    from torchvision.ops import DeformConv2d

    offsets = torch.zeros(1, 18, 8, 8)
    model = Net(lambda net, x: net.a(x, offsets), a=DeformConv2d(3, 4, 3))
    assert cost.count(model, torch.rand(1, 3, 10, 10)).macs == CONV


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("convention", cost.CONVENTIONS)
def test_the_image_takes_the_networks_type(dtype: torch.dtype, convention: str) -> None:
    make = functools.partial(
        nn.Sequential, conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    x = torch.rand(1, 3, 10, 10)
    expected = cost.count(make().float(), x, convention=convention)
    assert cost.count(make().to(dtype), x, convention=convention) == expected


def test_no_memory_is_needed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 10_000, 3), nn.Conv2d(10_000, 10_000, 3))
    counted = cost.count(model, torch.empty(1, 3, 1000, 1000))
    assert counted.macs == 10_000 * 27 * 998**2 + 10_000**2 * 9 * 996**2
    assert counted.params == 280_000 + 10_000**2 * 9 + 10_000
    with pytest.raises(ValueError, match="load weights"):
        cost.count(model, torch.empty(1, 3, 10, 10), convention="paper")


def test_shared_parameters_count_once() -> None:
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    tied[2].weight = tied[0].weight
    assert cost.count(tied, torch.rand(1, 8)) == cost.Cost(128, 64)
    assert cost.count(two_names(), torch.rand(1, 3, 10, 10)).params == 4 * 27 + 4


def grouped_kernel() -> GroupedKernelConv2d:
    kept = torch.tensor([[0, 2], [1, 5], [3, 4], [0, 1]])
    return GroupedKernelConv2d.from_conv(
        nn.Conv2d(6, 8, 3), Selection(torch.arange(8).flip(0), kept, torch.zeros(4))
    )


@pytest.mark.parametrize("execution", ["dense", "grouped"])
@pytest.mark.parametrize(
    "call", [lambda n, x: n.a(x), lambda n, x: n.a.forward(x), lambda n, x: n.a(input=x)]
)
def test_kept_kernels_count_and_pruned_ones_do_not(execution: str, call) -> None:
    model = Net(call, a=grouped_kernel())
    model.a.execution = execution
    assert cost.count(model, torch.rand(1, 6, 10, 10)) == cost.Cost(8 * 2 * 9 * 64, 8 * 2 * 9 + 8)
    assert model.a.execution == execution


@pytest.mark.parametrize("execution", ["dense", "grouped"])
def test_kept_weights_of_a_linear_layer_count_and_pruned_ones_do_not(execution: str) -> None:
    kept = torch.tensor([[0, 2], [1, 5], [3, 4], [0, 1]])
    layer = GroupedKernelLinear.from_linear(
        nn.Linear(6, 8), Selection(torch.arange(8).flip(0), kept, torch.zeros(4)), execution
    )
    model = nn.Sequential(layer)
    assert cost.count(model, torch.rand(1, 5, 6)) == cost.Cost(5 * 8 * 2, 8 * 2 + 8)
    assert layer.execution == execution


def test_a_network_is_left_as_it_was_even_when_it_fails() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4).eval(), grouped_kernel()).train()
    model[1].eval()
    for _ in range(2):
        with pytest.raises(ValueError, match="does not run"):
            cost.count(model, torch.rand(1, 3, 10, 10))
        assert [m.training for m in model] == [True, False, True]
        assert model[2].execution == "dense"
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert torch.backends.mha.get_fastpath_enabled()
        assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("convention", cost.CONVENTIONS)
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 1, 8, 8), (1, 3, 2, 2), (1, 10)])
def test_a_wrong_example_is_named_with_its_shape(shape: tuple[int, ...], convention: str) -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 5))
    with pytest.raises(
        ValueError, match=r"does not run on an input of shape \(1, .*give an example_input"
    ) as error:
        cost.count(model, torch.rand(shape), convention=convention)
    assert str((1, *shape[1:])) in str(error.value)


@pytest.mark.parametrize("example", [None, (1, 3, 32, 32), torch.rand(0, 3, 8, 8), torch.tensor(1.0)])
def test_an_example_must_be_images(example) -> None:
    with pytest.raises(ValueError, match="a tensor of at least one image"):
        cost.count(conv(), example)


def test_layers_without_shapes_are_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="run it once"):
        cost.count(model, torch.rand(1, 3, 8, 8))


@pytest.fixture
def doubled():
    """An operator of nobody's that multiplies matrices."""

    @torch.library.custom_op("gkp_test::product", mutates_args=())
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    return product


def test_an_operator_that_may_hide_products_is_named_until_its_cost_is_known(doubled, monkeypatch) -> None:
    from torch.utils import flop_counter

    model = Net(lambda net, x: doubled(x, net.a.weight), a=nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"gkp_test.product.*register_flop_formula"):
        cost.count(model, torch.rand(5, 8))
    formula = flop_counter.shape_wrapper(lambda a, b, out_shape: 2 * a[0] * a[1] * b[1])
    monkeypatch.setitem(flop_counter.flop_registry, torch.ops.gkp_test.product, formula)
    assert cost.count(model, torch.rand(5, 8)).macs == 64


def test_fused_kernels_called_by_hand_are_refused() -> None:
    a = nn.MultiheadAttention(8, 2, batch_first=True)
    weights = (a.in_proj_weight, a.in_proj_bias, a.out_proj.weight, a.out_proj.bias)
    model = Net(lambda net, x: torch._native_multi_head_attention(x, x, x, 8, 2, *weights)[0])
    with pytest.raises(ValueError, match="_native_multi_head_attention"):
        cost.count(model, torch.rand(1, 5, 8))


def test_operators_that_take_functions_are_refused() -> None:
    model = Net(lambda net, x: torch.cond(x.sum() > 0, net.a, torch.sin, (x,)), a=nn.Linear(8, 8))
    with pytest.raises(ValueError, match="cannot count the operators cond"):
        cost.count(model, torch.rand(1, 8))


def test_layers_are_told_apart() -> None:
    model = Net(lambda n, x: n.b(input=n.a(n.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Sequential(conv(), nn.ReLU()))
    x = torch.rand(2, 3, 10, 10)
    found = by_layer(model, ["a", "b", "b.0", "b.1"], x)
    assert found == {"a": 2 * 9 * 100, "b": CONV, "b.0": CONV, "b.1": 0}
    assert [number for _, number in products(model, x)] == [900, 900, CONV]
