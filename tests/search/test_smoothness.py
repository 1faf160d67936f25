import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkp.search.smoothness import DIFFERENCES, filter_smoothness, smoothness


def by_loops(kernel: torch.Tensor, variant: str) -> float:
    """Eq. 1 as it is written: every position against each of its eight neighbours."""
    height, width = kernel.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    inside = 0 <= i + di < height and 0 <= j + dj < width
                    if (di, dj) != (0, 0) and inside:
                        a, b = kernel[i, j].item(), kernel[i + di, j + dj].item()
                        total += {
                            "squared": abs(b**2 - a**2),
                            "absolute": abs(b - a),
                            "quadratic": (b - a) ** 2,
                        }[variant]
    return total


@pytest.mark.parametrize("variant", DIFFERENCES)
@given(seed=st.integers(0, 1000), height=st.integers(1, 5), width=st.integers(1, 5))
def test_equals_the_definition(variant: str, seed: int, height: int, width: int) -> None:
    kernel = torch.randn(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert smoothness(kernel, variant).item() == pytest.approx(by_loops(kernel, variant), abs=1e-12)


def test_small_cases_by_hand() -> None:
    assert smoothness(torch.tensor([[1.0, 2.0]])).item() == 6  # |4 - 1|, seen from both sides
    assert smoothness(torch.tensor([[1.0, -1.0]])).item() == 0  # blind to sign
    assert smoothness(torch.tensor([[1.0, -1.0]]), "absolute").item() == 4
    assert smoothness(torch.ones(3, 3)).item() == 0
    assert smoothness(torch.randn(4, 2, 1, 1)).abs().sum() == 0  # a 1x1 kernel has no neighbours


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_squared_smoothness_grows_with_the_square_of_the_scale(seed: int, scale: float) -> None:
    kernels = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(smoothness(scale * kernels), scale**2 * smoothness(kernels))
    for symmetric in (kernels.flip(-1), kernels.flip(-2), kernels.transpose(-1, -2)):
        assert torch.allclose(smoothness(symmetric), smoothness(kernels))


def test_a_filter_is_the_sum_of_its_kernels() -> None:
    weight = torch.randn(4, 5, 3, 3)
    each = torch.stack([smoothness(weight[:, j]) for j in range(5)], 1)
    assert torch.allclose(filter_smoothness(weight), each.sum(1))


def test_errors_name_the_choices() -> None:
    with pytest.raises(ValueError, match="squared, absolute, quadratic"):
        smoothness(torch.ones(3, 3), "cubic")
    with pytest.raises(ValueError, match="shape"):
        smoothness(torch.ones(3))
