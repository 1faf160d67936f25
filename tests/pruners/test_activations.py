"""HRank and CHIP against their definitions, one image and one channel at a time."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gkp.nets.channels.surgery import default_input, filter_layers
from gkp.pruners import activations, prepare
from gkp.pruners.activations import channel_independence, feature_ranks
from gkp.pruners.common.images import sample, visit_feature_maps


def nuclear_norm(matrix: np.ndarray) -> float:
    return np.linalg.svd(matrix, compute_uv=False).sum()


def independence_by_definition(maps: torch.Tensor) -> np.ndarray:
    """|A|_* - |A with row i zeroed|_* for every image and channel."""
    result = np.zeros(maps.shape[:2])
    for image, rows in enumerate(maps.flatten(2).double().numpy()):
        for channel in range(len(rows)):
            without = rows.copy()
            without[channel] = 0
            result[image, channel] = nuclear_norm(rows) - nuclear_norm(without)
    return result


@pytest.mark.parametrize("shape", [(3, 16, 5, 5), (3, 24, 4, 4), (2, 40, 2, 2), (2, 6, 1, 1), (2, 9, 3, 3)])
def test_channel_independence_is_the_fall_of_the_nuclear_norm(shape) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    maps[:, 1] = 0
    maps[0, 2] = maps[0, 3]
    maps[1] *= 1e-4
    np.testing.assert_allclose(
        channel_independence(maps).numpy(), independence_by_definition(maps), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_channel_independence_lies_between_0_and_the_norm_of_the_channel(channels, side, seed) -> None:
    maps = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(seed))
    independence = channel_independence(maps)
    norms = maps.flatten(2).norm(dim=2).double()
    assert (independence >= 0).all()
    assert (independence <= norms * (1 + 1e-6)).all()


def test_channels_at_right_angles_are_worth_their_norms_and_a_dead_image_nothing() -> None:
    maps = torch.diag(torch.tensor([3.0, 2.0, 0.5, 0.0])).view(1, 4, 2, 2)
    np.testing.assert_allclose(channel_independence(maps)[0].numpy(), [3, 2, 0.5, 0], atol=1e-6)
    assert (channel_independence(torch.zeros(1, 4, 2, 2)) == 0).all()


def test_ranks_are_those_of_numpy() -> None:
    maps = torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(0)).relu()
    maps[0, 0] = 0
    maps[1, 1] = torch.ones(6, 1) @ torch.arange(6.0).view(1, 6)
    expected = [[np.linalg.matrix_rank(m) for m in image] for image in maps.numpy()]
    assert feature_ranks(maps).tolist() == expected
    assert expected[0][0] == 0
    assert expected[1][1] == 1


def test_feature_maps_are_what_the_next_convolution_reads(resnet8, images) -> None:
    layers = filter_layers(resnet8, default_input(resnet8, None))
    seen = {}
    visit_feature_maps(resnet8, layers, images.take(4), 4, lambda name, maps: seen.update({name: maps}))
    block = resnet8.layer1[0]
    entry = F.relu(resnet8.bn1(resnet8.conv1(resnet8.normalize(images.take(4).pixels()))))
    torch.testing.assert_close(seen["layer1.0.conv1"], F.relu(block.bn1(block.conv1(entry))))
    assert set(seen) == set(layers)


@pytest.mark.parametrize("method", ["hrank", "chip"])
def test_the_score_is_a_mean_over_images_whatever_the_batches(method, resnet8, images, monkeypatch) -> None:
    scores = []
    monkeypatch.setattr(activations, "uniform_cut", lambda _, found, __: scores.append(found))
    for size in (12, 5):
        prepare(resnet8, method, data=images, images=12, batch_size=size)
    criterion = {"hrank": feature_ranks, "chip": channel_independence}[method]
    maps = []
    layers = {"layer2.0.conv1": filter_layers(resnet8, default_input(resnet8, None))["layer2.0.conv1"]}
    visit_feature_maps(resnet8, layers, sample(images, 12, 0), 1, lambda _, found: maps.append(found))
    expected = criterion(torch.cat(maps)).mean(0)
    for found in scores:
        torch.testing.assert_close(found["layer2.0.conv1"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["hrank", "chip"])
def test_dead_filters_go_first_and_the_logits_stay(method, resnet8, images) -> None:
    model = copy.deepcopy(resnet8)
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        dead = slice(0, None, 4)
        block.bn1.weight.data[dead] = 0
        block.bn1.bias.data[dead] = 0
    pruned = prepare(model, method, data=images, images=16)(0.25)
    assert pruned.layer1[0].conv1.out_channels == 12
    x = images.pixels()
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["hrank", "chip"])
def test_the_order_of_the_filters_does_not_matter(method, resnet8, images) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shuffled = copy.deepcopy(resnet8)
    block = shuffled.layer1[0]
    for tensor in (
        block.conv1.weight,
        *block.bn1.parameters(),
        block.bn1.running_mean,
        block.bn1.running_var,
    ):
        tensor.data = tensor.data[order].clone()
    block.conv2.weight.data = block.conv2.weight.data[:, order].clone()
    x = images.pixels()
    one = prepare(resnet8, method, data=images, images=16)(0.4375)
    other = prepare(shuffled, method, data=images, images=16)(0.4375)
    if method == "chip":  # ranks tie, and a tie goes by the order
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-4)
    assert one.layer1[0].conv1.weight.shape == other.layer1[0].conv1.weight.shape


def test_scoring_needs_at_least_one_image(resnet8, images) -> None:
    with pytest.raises(ValueError, match="images=0"):
        prepare(resnet8, "hrank", data=images, images=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        prepare(resnet8, "chip", data=images, batch_size=0)
    with pytest.raises(ValueError, match="give data="):
        prepare(resnet8, "chip")
