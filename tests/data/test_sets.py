"""gkp.data: digits, held-out parts, tensors of one's own, and the real test split."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkp import data
from gkp.nets import models


def test_digits_are_the_same_everywhere():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1300, 497)
    assert train.images.shape[1:] == (3, 32, 32)
    assert test.fingerprint == "291df027b7aa83dafdf5799e78a5d6da3a4f2df521e879e6ff94bdca7886dcd3"
    assert train.fingerprint == "b02ec920dc5f417636dd745e0655bee84aa0de9f01a5f3d4f472b0bb0b8e2917"
    assert test.labels.bincount().min() >= 49
    # blocks of 4x4 pixels average to the original levels away from the border
    blocks = torch.nn.functional.avg_pool2d(test.pixels()[:, :1], 4)
    assert blocks.shape == (497, 1, 8, 8)
    assert blocks.max() > 0.9
    assert torch.equal(test.images[:, 0], test.images[:, 2])


def small_split(labels):
    labels = torch.as_tensor(labels)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(labels), 3, 2, 2), generator=generator, dtype=torch.uint8)
    names = tuple("abcde")
    return data.Split(images, labels, "toy", "train", names, data.fingerprint(images, labels), 100)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data(), st.integers(0, 9))
def test_hold_out_divides_balances_and_repeats(labels, draw, seed):
    split = small_split(labels)
    n = draw.draw(st.integers(1, len(labels) - 1))
    rest, held = data.hold_out(split, n, seed=seed)
    assert (len(held), len(rest)) == (n, len(labels) - n)
    assert (rest.part, held.part, held.official_size) == ("train", "validation", 100)

    def rows(*splits):
        return sorted(
            (*s.images[i].flatten().tolist(), int(s.labels[i])) for s in splits for i in range(len(s))
        )

    assert rows(rest, held) == rows(split)
    # a class gives fewer than another only when it has no more to give
    given_, left = (s.labels.bincount(minlength=5) for s in (held, rest))
    assert all(given_[c] >= given_.max() - 1 or left[c] == 0 for c in range(5) if c in labels)
    assert data.hold_out(split, n, seed=seed)[1].fingerprint == held.fingerprint


def test_hold_out_depends_on_the_seed_and_refuses_nonsense():
    split = small_split([0, 1, 2, 3, 4] * 8)
    held = {data.hold_out(split, 10, seed=seed)[1].fingerprint for seed in range(5)}
    assert len(held) == 5
    for n in (0, 40, -1):
        with pytest.raises(ValueError, match="choose 1 to 39"):
            data.hold_out(split, n)


def test_pixels_take_and_names():
    split = small_split([0, 1, 2, 3])
    assert torch.equal(split.pixels(), split.images.float() / 255)
    assert torch.equal(split.pixels(torch.tensor([2, 0])), split.pixels()[[2, 0]])
    two = split.take(2)
    assert torch.equal(two.images, split.images[:2])
    assert two.fingerprint == split.take(torch.tensor([0, 1])).fingerprint != split.fingerprint
    assert str(two) == "toy train, 2 of the publisher's 100 images"
    for n in (0, 5):
        with pytest.raises(ValueError, match="choose 1 to 4"):
            split.take(n)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.zeros(4, dtype=torch.bool), "takes no image"),
        (torch.zeros(0, dtype=torch.int64), "takes no image"),
        (torch.tensor([[0, 1]]), "give integers"),
        (torch.tensor([0.0]), "give integers"),
    ],
)
def test_an_index_takes_images(index, message):
    with pytest.raises(ValueError, match=message):
        small_split([0, 1, 2, 3]).take(index)


def test_the_fingerprint_is_what_it_says():
    split = small_split([3, 1])
    bytes_ = split.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes() + split.labels.numpy().tobytes()
    assert split.fingerprint == hashlib.sha256(bytes_).hexdigest()


def test_every_data_set_that_a_network_can_be_for_has_an_image_size():
    assert set(data.IMAGE_SIZES) == set(models.CLASSES)
    for name in ("digits",):
        assert data.load(name, "test").images.shape[2:] == (data.IMAGE_SIZES[name],) * 2


def test_the_real_test_split(cifar10_test):
    known = {
        # 9,979 images: the full set without 20 ships and a horse
        "a1286c6fa615554dd4be13ea918c30cd6d7836554d6a3f52489a228e29290682": (
            "a0d63ce3f8454786b615b8fd6a914f2f98a2096968b2eed1bfda5aca1cd93e51",
            "23593faa3faa077e7caeab933bea621d640927d7e819a26eed50d72019760bf5",
        )
    }
    if cifar10_test.fingerprint not in known:
        pytest.skip(f"no reference for {cifar10_test}")
    images = cifar10_test.images.permute(0, 2, 3, 1).contiguous().numpy()
    found = tuple(hashlib.sha256(a).hexdigest() for a in (images, cifar10_test.labels.numpy()))
    assert found == known[cifar10_test.fingerprint]
    assert str(cifar10_test) == "cifar10 test, 9,979 of the publisher's 10,000 images"


def test_tensors_of_ones_own_are_a_split_like_any_other() -> None:
    digits = data.load("digits", "test")
    own = data.of_tensors(digits.images, digits.labels.int())
    assert (own.fingerprint, len(own.classes), own.official_size) == (digits.fingerprint, 10, len(digits))
    assert own.labels.dtype == torch.int64


GREY = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), r"float32 \(2, 3, 8, 8\): give uint8"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), "give uint8"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0).long(), "give uint8"),
        (GREY, torch.tensor([0.0, 1.0]), "give 2 whole numbers"),
        (GREY, torch.tensor([0, -1]), "give 2 whole numbers"),
        (GREY, torch.tensor([0]), "give 2 whole numbers"),
        (
            GREY,
            np.array([0, 1]),
            "the labels are a ndarray",
        ),
        (GREY, torch.tensor([False, True]), "give 2 whole numbers"),
        (GREY, torch.tensor([0, 1j]), "give 2 whole numbers"),
        (GREY[:, :, :0], torch.tensor([0, 1]), r"\(2, 3, 0, 8\): give uint8"),
        (torch.rand(2, 3, 8, 8).to(torch.uint8), torch.tensor([0, 1]), "nothing above 1, of 255: give bytes"),
        (np.zeros((2, 3, 8, 8), np.uint8), torch.tensor([0, 1]), "the images are a ndarray"),
    ],
)
def test_other_tensors_are_refused_with_what_to_give(images, labels, match) -> None:
    with pytest.raises(ValueError, match=match):
        data.of_tensors(images, labels)


def test_a_part_has_a_name_of_a_part() -> None:
    assert data.of_tensors(GREY, torch.tensor([0, 1]), part="validation").part == "validation"
    with pytest.raises(ValueError, match="unknown part 'trian': choose one of train, test, validation"):
        data.of_tensors(GREY, torch.tensor([0, 1]), part="trian")


def test_numbers_of_images_are_whole_numbers():
    split = data.load("digits", "test").take(np.int64(30))
    assert len(split) == 30
    for no_number in (3.0, True, [0, 1], "3"):
        with pytest.raises(ValueError, match="choose 1 to 30, or give an index tensor"):
            split.take(no_number)
    with pytest.raises(ValueError, match="cannot hold out 3.0 of 30"):
        data.hold_out(split, 3.0)
