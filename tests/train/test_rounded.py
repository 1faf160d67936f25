"""Convolutions in bfloat16 without instructions for them: the same numbers, only sooner."""

import pytest
import torch
import torch.nn.functional as F
from small_training import QUICK, same_weights, train

from gkp.train import rounded
from gkp.train.rounded import RoundedConvolutions, fast_bfloat16, rounds

CPU = torch.device("cpu")
ULP = 2**-7  # a step between neighbouring bfloat16 numbers, relative


def convolved(groups=1):
    """Result and gradients of one strided convolution under autocast."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(6, 4 // groups, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.conv2d(x, w, stride=2, padding=1, groups=groups)
    y.float().square().sum().backward()
    return y, x.grad, w.grad


@pytest.mark.parametrize("groups", [1, 2])
def test_same_numbers_as_pytorch_up_to_the_order_of_sums(groups):
    plain = convolved(groups)
    with RoundedConvolutions():
        ours = convolved(groups)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= ULP * b.abs().max()
    assert ours[0].dtype == torch.bfloat16


def test_the_result_is_the_exact_one_rounded():
    torch.manual_seed(0)
    x, w = torch.randn(1, 2, 5, 5).bfloat16(), torch.randn(3, 2, 3, 3).bfloat16()
    with RoundedConvolutions():
        y = F.conv2d(x, w)
    exact = F.conv2d(x.double(), w.double())
    assert torch.equal(y, exact.bfloat16())
    assert not torch.equal(y.double(), exact)


def test_other_precisions_are_left_alone():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    plain = F.conv2d(x, w)
    with RoundedConvolutions():
        assert torch.equal(F.conv2d(x, w), plain)


def test_training_uses_it_where_the_cpu_has_no_instructions(monkeypatch):
    convolutions = []

    class Counting(RoundedConvolutions):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in rounded._CONVOLUTIONS and args[0].dtype == torch.bfloat16:
                convolutions.append(func)
            return super().__torch_dispatch__(func, types, args, kwargs)

    monkeypatch.setattr(rounded, "RoundedConvolutions", Counting)
    recipe = type(QUICK)(**{**vars(QUICK), "epochs": 1, "precision": "bfloat16"})
    monkeypatch.setattr(rounded, "rounds", lambda device: False)
    train(recipe)
    assert not convolutions
    monkeypatch.setattr(rounded, "rounds", lambda device: True)
    first, _ = train(recipe)
    steps = 5  # 70 images in batches of 16; two convolutions, forward and backward
    assert len(convolutions) == 4 * steps
    again, _ = train(recipe)
    assert same_weights(first, again)


def test_a_gpu_is_left_alone():
    assert not rounds(torch.device("cuda"))
    with fast_bfloat16(torch.device("cuda")) as mode:
        assert mode is None
