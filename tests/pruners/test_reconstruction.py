"""ThiNet against greedy selection and least squares on the samples themselves."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gkp.pruners import prepare
from gkp.pruners.reconstruction import Reader, drawn, least_squares_scales, removal_order, sampled_grams

READ = {"0": Reader("2", torch.arange(8))}


def contributions(reader, x, output, channels, locations, generator) -> torch.Tensor:
    """Of inputs that come filter by filter."""
    order = torch.arange(reader.weight.shape[1])
    return drawn(reader, x, output, order, channels, locations, generator)[0]


def samples_of(rows: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, channels)) + 0.5


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 999))
def test_the_removed_set_grows_by_the_channel_that_costs_least(channels, seed) -> None:
    x = samples_of(20, channels, seed)
    removed: list[int] = []
    while len(removed) < channels:
        rest = [c for c in range(channels) if c not in removed]
        costs = [(x[:, [*removed, c]].sum(1) ** 2).sum() for c in rest]
        removed.append(rest[int(np.argmin(costs))])
    order = removal_order(torch.from_numpy(x.T @ x))
    assert order.argsort().tolist() == removed


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(1, 7), st.integers(0, 999))
def test_scales_are_the_least_squares_solution_on_the_samples(channels, dropped, seed) -> None:
    x = samples_of(40, channels, seed)
    drop = torch.arange(min(dropped, channels - 1))
    kept = np.setdiff1d(np.arange(channels), drop.numpy())
    expected = np.linalg.lstsq(x[:, kept], x.sum(1), rcond=None)[0]
    scales = least_squares_scales(torch.from_numpy(x.T @ x), drop).numpy()
    np.testing.assert_allclose(scales[kept], expected, rtol=1e-6, atol=1e-8)
    assert (scales[drop.numpy()] == 1).all()


def test_scales_with_nothing_dropped_or_dead_channels() -> None:
    x = samples_of(40, 5, 0)
    x[:, 2] = 0
    gram = torch.from_numpy(x.T @ x)
    assert least_squares_scales(gram, torch.tensor([], dtype=torch.long)).tolist() == [1] * 5
    assert least_squares_scales(gram, torch.tensor([0])).isfinite().all()
    live = least_squares_scales(gram, torch.tensor([2]))
    np.testing.assert_allclose(live[[0, 1, 3, 4]].numpy(), 1, rtol=1e-9)


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(4, 5, 3, padding=1),
        nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 5, (3, 2), dilation=(2, 1), padding=(0, 1)),
        nn.Conv2d(4, 5, 1),
    ],
)
def test_contributions_sum_to_outputs_of_the_reader(reader) -> None:
    x = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = reader(x)
        got = contributions(reader, x, output, 4, 50, torch.Generator().manual_seed(1))
        # The same draws again: filters, then rows, then columns.
        generator = torch.Generator().manual_seed(1)
        o, i, j = (torch.randint(size, (100,), generator=generator) for size in output.shape[1:])
        expected = output[torch.arange(2).repeat_interleave(50), o, i, j]
        if reader.bias is not None:
            expected = expected - reader.bias[o]
        torch.testing.assert_close(got.sum(1), expected, rtol=1e-4, atol=1e-5)
        without = x.clone()
        without[:, 2] = 0
        part = contributions(reader, without, output, 4, 50, torch.Generator().manual_seed(1))
    assert (part[:, 2] == 0).all()
    torch.testing.assert_close(part[:, [0, 1, 3]], got[:, [0, 1, 3]])


def test_a_linear_reader_sums_the_positions_of_a_channel() -> None:
    reader = nn.Linear(12, 7)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = contributions(reader, x, reader(x), 4, 20, torch.Generator().manual_seed(1))
        unit = torch.randint(7, (60,), generator=torch.Generator().manual_seed(1))
        image = torch.arange(3).repeat_interleave(20)
        assert got.shape == (60, 4)
        expected = F.linear(x, reader.weight)[image, unit]
        torch.testing.assert_close(got.sum(1), expected, rtol=1e-4, atol=1e-5)


def test_filters_whose_maps_cancel_in_the_next_layer_go_together() -> None:
    gram = torch.tensor([[4.0, -3.9, 0], [-3.9, 4.0, 0], [0, 0, 4.1]])
    assert removal_order(gram).tolist() == [0, 1, 2]


def test_a_filter_that_repeats_another_goes_and_the_scales_make_up_for_it(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    block = model.layer1[0]
    half = {0: 8, 1: 9, 2: 10, 3: 11}  # filter: its copy
    for filter, repeat in half.items():
        for tensor in (block.conv1.weight, *block.bn1.parameters()):
            tensor.data[repeat] = tensor.data[filter]
        block.bn1.running_mean[repeat] = block.bn1.running_mean[filter]
        block.bn1.running_var[repeat] = block.bn1.running_var[filter]
        block.conv2.weight.data[:, repeat] = block.conv2.weight.data[:, filter]
    readers = {"layer1.0.conv1": Reader("layer1.0.conv2", torch.arange(16))}
    grams = sampled_grams(model, readers, images, 20, 16, 0)
    scales = least_squares_scales(grams["layer1.0.conv1"], torch.tensor(list(half.values())))
    expected = torch.tensor([2.0] * 4 + [1.0] * 4)
    torch.testing.assert_close(scales[:8].float(), expected, rtol=1e-3, atol=1e-3)


def test_rescaling_brings_the_logits_nearer(resnet8, images) -> None:
    x = images.pixels()
    errors = {}
    for rescale in (True, False):
        pruned = prepare(resnet8, "thinet", data=images, locations=40, rescale=rescale)(0.4375)
        with torch.no_grad():
            errors[rescale] = float((pruned(x) - resnet8(x)).square().mean())
    assert errors[True] < errors[False]


def test_dead_filters_go_first_and_the_logits_stay(resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        block.bn1.weight.data[::4] = 0
        block.bn1.bias.data[::4] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prepare(model, "thinet", data=images, locations=20)(0.25)
    torch.testing.assert_close(pruned(images.pixels()), model(images.pixels()), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_layout_of_the_weights_does_not_matter(resnet8, images) -> None:
    trained = copy.deepcopy(resnet8).to(memory_format=torch.channels_last)  # as training leaves it
    one, other = (prepare(m, "thinet", data=images)(0.4375) for m in (resnet8, trained))
    torch.testing.assert_close(one(images.pixels()), other(images.pixels()), rtol=1e-3, atol=1e-3)


def test_vgg_is_cut_down_to_the_layer_that_feeds_the_classifier(thin_vgg16, images) -> None:
    pruned = prepare(thin_vgg16, "thinet", data=images, images=16)(0.25)
    assert pruned.linear.in_features == 96
    assert pruned(images.pixels(slice(2))).isfinite().all()


def test_refusals_name_the_value(resnet8, images) -> None:
    with pytest.raises(ValueError, match="locations=0"):
        prepare(resnet8, "thinet", data=images, locations=0)
    with pytest.raises(ValueError, match="0: its filters are the network's output"):
        prepare(
            nn.Sequential(nn.Conv2d(3, 4, 3)), "thinet", data=images, example_input=torch.rand(1, 3, 8, 8)
        )


PADDINGS = [
    {"padding": 2, "padding_mode": mode} | other
    for mode in ("reflect", "circular", "replicate")
    for other in ({}, {"stride": 2}, {"dilation": (2, 1)}, {"stride": (1, 2), "dilation": 2, "bias": False})
]
PADDINGS += [{"padding": "same", "padding_mode": m} for m in ("zeros", "reflect", "circular", "replicate")]
PADDINGS += [{"padding": "same", "dilation": (3, 1)}, {"padding": "valid", "stride": 2}]


@pytest.mark.parametrize("options", PADDINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contributions_are_those_of_one_channel_at_a_time(options, dtype) -> None:
    """The reference convolves each channel on its own, with PyTorch's padding."""
    torch.manual_seed(0)
    reader = nn.Conv2d(4, 5, (3, 4), **options).to(dtype)
    x = torch.randn(2, 4, 9, 8, dtype=dtype)
    with torch.no_grad():
        output = reader(x)
        got = contributions(reader, x, output, 4, 50, torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        unit, row, column = (torch.randint(size, (100,), generator=generator) for size in output.shape[1:])
        image = torch.arange(2).repeat_interleave(50)
        bias = 0 if reader.bias is None else reader.bias[unit]
        for channel in range(4):
            alone = torch.zeros_like(x)
            alone[:, channel] = x[:, channel]
            expected = reader(alone)[image, unit, row, column] - bias
            torch.testing.assert_close(got[:, channel], expected, rtol=1e-4, atol=1e-5)


def test_a_linear_reader_at_every_position() -> None:
    reader = nn.Linear(4, 6)
    x = torch.randn(3, 5, 7, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = contributions(reader, x, reader(x), 4, 20, torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        unit, position = (torch.randint(size, (60,), generator=generator) for size in (6, 35))
        image = torch.arange(3).repeat_interleave(20)
        expected = F.linear(x, reader.weight).view(3, 35, 6)[image, position, unit]
    assert got.shape == (60, 4)
    torch.testing.assert_close(got.sum(1), expected, rtol=1e-4, atol=1e-5)


def circular(mode: str) -> nn.Module:
    torch.manual_seed(0)
    first, reader = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=2, padding_mode=mode)
    return nn.Sequential(first, nn.ReLU(), reader, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_samples_of_padded_readers_are_those_of_the_network(images, mode, dtype) -> None:
    grams = sampled_grams(circular(mode).to(dtype), READ, images, 20, 16, 0)
    wrong = sampled_grams(circular("zeros").to(dtype), READ, images, 20, 16, 0)
    assert grams["0"].isfinite().all()
    assert not torch.allclose(grams["0"], wrong["0"], rtol=1e-3)


class Standardised(nn.Conv2d):
    """Weight standardisation: what it computes is not what `weight` says."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_a_reader_that_computes_something_else_is_named(images) -> None:
    model = circular("zeros")
    model[2] = Standardised(8, 6, 3, padding=2)
    with pytest.raises(ValueError, match=r"thinet cannot rebuild the output of 2, .*another method"):
        sampled_grams(model, READ, images, 20, 16, 0)
