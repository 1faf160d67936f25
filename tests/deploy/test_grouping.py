"""Orders of channels and forms of layers: every one computes what the layer of grouped kernels computes."""

import itertools

import pytest
import torch
from torch import nn

import gkp
from gkp.deploy.forms import FORMS, forms_of, in_forms, span
from gkp.deploy.grouping import Grouping, groupings, reordered
from gkp.nets.deploy import folded
from gkp.nets.grouped import GroupedKernelConv2d, GroupedKernelLinear


def grouped_conv(
    inputs: int, outputs: int, groups: int, keep: int, seed: int, **options
) -> GroupedKernelConv2d:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.stack([torch.randperm(inputs, generator=generator)[:keep] for _ in range(groups)])
    order = torch.randperm(outputs, generator=generator)
    return GroupedKernelConv2d(
        inputs, outputs, 3, padding=1, filter_order=order, kept=kept.sort(1).values, **options
    )


def chain(groups: int) -> nn.Sequential:
    """Plain, grouped, grouped, plain: every kind of neighbour; ends in a mean over the image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        grouped_conv(32, 64, groups, 12, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        grouped_conv(64, 32, groups, 24, 2, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()


@pytest.fixture(params=(1, 2, 4, 8))
def network(request: pytest.FixtureRequest) -> nn.Sequential:
    return chain(request.param)


X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_every_combination_of_forms_computes_the_same(network: nn.Sequential) -> None:
    expected = network(X)
    rewritten, grouped, _ = reordered(folded(network, X), groupings(network))
    torch.testing.assert_close(rewritten(X), expected, rtol=1e-4, atol=1e-5)
    tried = 0
    for forms in itertools.product(
        *(forms_of(rewritten.get_submodule(name), grouped[name]) for name in grouped)
    ):
        variant = in_forms(rewritten, grouped, dict(zip(grouped, forms, strict=True)))
        torch.testing.assert_close(variant(X), expected, rtol=1e-4, atol=1e-5)
        kinds = sum(isinstance(module, GroupedKernelConv2d) for module in variant.modules())
        assert kinds == 0
        tried += 1
    several = any(len(grouping.filters) > 1 for grouping in grouped.values())
    assert tried >= (4 if several else 2)  # one group, whose unread channels are gone, is a dense layer


def test_outputs_need_no_order_where_the_reader_follows(network: nn.Sequential) -> None:
    before = groupings(network)
    assert all(grouping.back is not None for grouping in before.values())
    _, after, _ = reordered(folded(network, X), before)
    assert all(grouping.back is None for grouping in after.values())


def test_two_groups_read_slices_of_a_plain_neighbour_which_loses_what_nobody_reads() -> None:
    network = chain(2)
    rewritten, grouped, removed = reordered(folded(network, X), groupings(network))
    read = network[3].kept.unique()
    assert removed["0"] == 32 - (len(read) + -len(read) % 8)
    assert rewritten[0].out_channels == rewritten[3].in_channels == 32 - removed["0"]
    assert all(span(channels) is not None for channels in grouped["3"].channels)


def test_one_group_reads_everything_that_is_left() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), grouped_conv(32, 64, 1, 16, 1)).eval()
    rewritten, grouped, removed = reordered(folded(network, X), groupings(network))
    assert removed == {"0": 16}
    assert span(grouped["2"].channels[0]) == (0, rewritten[2].in_channels) == (0, 16)


class Residual(nn.Module):
    """Two readers of the first layer, and an output that is added: nothing may be reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.first = grouped_conv(16, 16, 2, 4, 1)
        self.second = grouped_conv(16, 16, 2, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(torch.relu(y)) + y


@torch.no_grad()
def test_what_is_read_twice_keeps_its_order() -> None:
    torch.manual_seed(0)
    network, x = Residual().eval(), torch.rand(1, 16, 5, 5)
    rewritten, grouped, removed = reordered(folded(network, x), groupings(network))
    assert removed == {}
    assert all(grouping.back is not None for grouping in grouped.values())
    for form in FORMS:
        variant = in_forms(rewritten, grouped, dict.fromkeys(grouped, form))
        torch.testing.assert_close(variant(x), network(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_linear_layers_split() -> None:
    torch.manual_seed(0)
    kept = torch.stack([torch.randperm(24)[:9].sort().values for _ in range(4)])
    network = nn.Sequential(
        GroupedKernelLinear(24, 16, filter_order=torch.randperm(16), kept=kept), nn.GELU()
    )
    grouped, dense, x = groupings(network), folded(network), torch.rand(5, 24)
    assert forms_of(dense[0], grouped["0"]) == ("dense", "split")
    variant = in_forms(dense, grouped, {"0": "split"})
    torch.testing.assert_close(variant(x), network(x), rtol=1e-4, atol=1e-5)


def test_layers_with_hooks_stay_dense() -> None:
    conv = nn.Conv2d(4, 4, 3)
    grouping = Grouping((torch.tensor([0, 1]), torch.tensor([2, 3])), (torch.tensor([0]), torch.tensor([1])))
    assert forms_of(conv, grouping) == FORMS
    conv.register_forward_hook(lambda *_: None)
    assert forms_of(conv, grouping) == ("dense",)


@torch.no_grad()
def test_formats_stay_in_channels_last() -> None:
    network = gkp.prune(gkp.models.create("resnet8"), groups=2, strategy="random").eval()
    x = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    rewritten, grouped, _ = reordered(folded(network, x), groupings(network))
    for form in ("grouped", "split"):
        name = "layer3.0.conv2"
        variant = in_forms(rewritten, grouped, {name: form})
        inputs = rewritten.get_submodule(name).in_channels
        images = torch.rand(2, inputs, 8, 8).contiguous(memory_format=torch.channels_last)
        assert variant.get_submodule(name)(images).is_contiguous(memory_format=torch.channels_last)


SHARED = ((0, 1, 2, 5), (0, 1, 2, 5), (1, 3, 5, 7), (0, 1, 2, 5))


@torch.no_grad()
def test_groups_with_one_set_of_channels_run_as_one() -> None:
    torch.manual_seed(0)
    order, kept, x = torch.randperm(16), torch.tensor(SHARED), torch.rand(2, 8, 5, 5)
    network = nn.Sequential(GroupedKernelConv2d(8, 16, 3, filter_order=order, kept=kept)).eval()
    grouped, dense = groupings(network), folded(network, x)
    assert [len(filters) for filters in grouped["0"].filters] == [12, 4]
    assert forms_of(dense[0], grouped["0"]) == FORMS
    split, grouped_conv = (in_forms(dense, grouped, {"0": form})[0] for form in ("split", "grouped"))
    assert len(split.parts) == 2
    assert grouped_conv.conv.groups == 4
    for form in FORMS:
        torch.testing.assert_close(in_forms(dense, grouped, {"0": form})(x), network(x), rtol=1e-4, atol=1e-5)


def test_groups_of_one_size_are_made_where_they_stay_few() -> None:
    def sizes(*filters: int) -> list[int] | None:
        parts = tuple(torch.arange(sum(filters)).split(list(filters)))
        even = Grouping(parts, tuple(torch.tensor([i, i + 1]) for i in range(len(filters)))).even
        return even and [len(f) for f in even.filters]

    assert sizes(8, 4, 4) == [4] * 4
    assert sizes(6, 2) == [2] * 4
    assert sizes(8, 2) is None
    assert sizes(8) is None
    unequal = Grouping((torch.arange(2), torch.arange(2, 4)), (torch.tensor([0]), torch.tensor([1, 2])))
    assert unequal.even is None
