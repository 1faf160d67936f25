"""gkp.train.augment: the crops and flips of torchvision, drawn for a whole epoch."""

import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import random_split

from gkp.train.augment import crop_and_flip, draw_epoch, stream_seed


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    augment=st.sampled_from(["none", "crop", "crop+flip"]),
    seed=st.integers(0, 99),
)
def test_augmentation_equals_torchvision_image_by_image(n, height, width, padding, augment, seed):
    images = random_split(n, 9, seed).images[:, :, :height, :width]
    draws = draw_epoch(n, augment, padding, torch.Generator().manual_seed(seed))
    expected = []
    for image, top, left, flip in zip(
        images, draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True
    ):
        cropped = TF.crop(TF.pad(image, [padding]), top, left, height, width)
        expected.append(TF.hflip(cropped) if flip else cropped)
    result = crop_and_flip(images, draws.top, draws.left, draws.flip, padding)
    assert torch.equal(result, torch.stack(expected))
    if augment == "none":
        assert torch.equal(result, images)


def test_draws_are_uniform_and_each_image_comes_once():
    draws = draw_epoch(8100, "crop+flip", 4, torch.Generator().manual_seed(0))
    assert draws.order.sort().values.tolist() == list(range(8100))
    counts = torch.bincount(draws.top * 9 + draws.left, minlength=81)
    assert len(counts) == 81
    # 100 expected per corner; 60 and 140 are four standard deviations away.
    assert counts.min() > 60
    assert counts.max() < 140
    assert 0.47 < draws.flip.float().mean() < 0.53
    crop = draw_epoch(8100, "crop", 4, torch.Generator().manual_seed(0))
    assert not crop.flip.any()
    assert torch.equal(crop.top, draws.top)


def test_streams_of_seeds_and_epochs_are_all_different():
    seeds = {stream_seed("augment", seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert stream_seed("augment", 1, 2) == stream_seed("augment", 1, 2) != stream_seed("epoch", 1, 2)
