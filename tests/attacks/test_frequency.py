"""The Fourier split against sines, Parseval's theorem and a plain double sum."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkp.attacks import Attack, frequency
from gkp.evaluate import outcome, self_check
from gkp.nets.models import create

THETA = st.floats(0, 1.5)


def images(seed=0, size=16):
    return torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(THETA)
def test_parts_add_up_and_share_the_energy(theta):
    """Parseval: parts without a common frequency are orthogonal."""
    x = images()
    low, high = frequency.split(x, theta)
    torch.testing.assert_close(low + high, x)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), x.square().sum())


def test_theta_0_is_the_identity_and_a_large_one_leaves_the_mean():
    x = images()
    assert torch.equal(frequency.high_pass(x, 0, 0.5), x)
    torch.testing.assert_close(frequency.high_pass(x, 1.5, 0.5), torch.full_like(x, 0.5))


@given(THETA, THETA)
def test_a_higher_cut_off_leaves_less(a, b):
    x = images()
    energy = [frequency.split(x, theta)[1].square().sum() for theta in sorted((a, b))]
    assert energy[1] <= energy[0] + 1e-9


@pytest.mark.parametrize("waves", [1, 3, 7])
def test_a_sine_is_kept_from_its_own_frequency_on(waves):
    """`waves` periods across 16 pixels lie at waves / 8 of the Nyquist frequency."""
    sine = torch.sin(2 * math.pi * waves * torch.arange(16, dtype=torch.float64) / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(frequency.split(sine, waves / 8)[1], sine)
    torch.testing.assert_close(frequency.split(sine, waves / 8 + 0.01)[0], sine)


def test_it_is_a_plain_sum_over_frequencies():
    x, theta, size = images(size=6)[:1, :1], 0.7, 6
    places = torch.arange(size, dtype=torch.float64)
    result = torch.zeros(size, size, dtype=torch.complex128)
    for k in range(-3, 3):
        for m in range(-3, 3):
            if math.hypot(k, m) / 3 >= theta:
                wave = torch.exp(2j * math.pi * (k * places[:, None] + m * places) / size)
                result += (x[0, 0] * wave.conj()).sum() / size**2 * wave
    torch.testing.assert_close(frequency.split(x, theta)[1][0, 0], result.real)


def test_filtering_pixels_around_the_mean_is_filtering_normalised_images():
    x, mean, std = (
        images(),
        torch.tensor([0.4, 0.5]).view(1, 2, 1, 1),
        torch.tensor([0.2, 0.3]).view(1, 2, 1, 1),
    )
    filtered = (frequency.high_pass(x, 0.4, mean) - mean) / std
    torch.testing.assert_close(filtered, frequency.split((x - mean) / std, 0.4)[1])


def test_a_negative_theta_is_refused():
    with pytest.raises(ValueError, match="theta=-0.1"):
        frequency.split(images(), -0.1)


def test_it_is_an_entry_of_an_evaluation_but_no_attack():
    torch.manual_seed(0)
    model, x, y = create("resnet8").eval(), torch.rand(8, 3, 32, 32), torch.arange(8)
    filters = [Attack("highpass", theta=theta) for theta in (0, 0.5)]
    same, other = (attack.perturb(model, x, y) for attack in filters)
    assert torch.equal(same, x)
    torch.testing.assert_close(other, frequency.high_pass(x, 0.5, model.normalize.mean))
    assert [attack.name for attack in filters] == ["highpass_0", "highpass_0.5"]
    # A filter may repair predictions: the rules about attacks do not hold for it.
    right = outcome(model, x, model(x).argmax(1), filters[1])
    wrong = outcome(model, x, (model(x).argmax(1) + 1) % 10, Attack("none"))
    assert self_check([right, wrong]) == []
