"""Least squares over kernels: against plain normal equations, and on networks where the answer is known."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import gkp
from gkp import pruners
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.kernels.rebuilt import eliminate, kernel_grams

ONE_LAYER = 1 / 5  # of the multiply-adds of a ResNet-8's layers that are pruned


def plainly(gram: torch.Tensor, keep: int) -> tuple[list[int], torch.Tensor, float]:
    """The same elimination with a solved system for every candidate."""
    whole, left = gram.sum(), list(range(len(gram)))

    def fit(kept: list[int]) -> tuple[torch.Tensor, float]:
        right = gram[kept].sum(1)
        scales = torch.linalg.solve(gram[kept][:, kept], right)
        return scales, float((whole - right @ scales) / whole)

    while len(left) > keep:
        errors = [fit([j for j in left if j != i])[1] for i in left]
        left.pop(errors.index(min(errors)))
    return left, *fit(left)


@pytest.mark.parametrize("keep", [1, 3, 6])
def test_the_elimination_is_that_of_the_normal_equations(keep: int) -> None:
    x = torch.randn(2, 40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = x.mT @ x
    kept, scales, error = eliminate(gram, keep)
    for group in range(2):
        expected, weights, rest = plainly(gram[group], keep)
        assert kept[group].tolist() == expected
        torch.testing.assert_close(scales[group][kept[group]], weights, rtol=1e-5, atol=1e-6)
        assert float(error[group]) == pytest.approx(rest, rel=1e-5)
        gone = [i for i in range(7) if i not in expected]
        assert scales[group][gone].tolist() == [1.0] * len(gone)


def test_twins_share_what_the_one_that_stays_gets() -> None:
    """Kernel 1 always gives twice what kernel 0 gives: one of them stays, scaled to give all three parts."""
    base = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.stack([base[:, 0], 2 * base[:, 0], base[:, 1]], 1)[None]
    kept, scales, error = eliminate(x.mT @ x, 2)
    first, last = kept[0].tolist()
    assert last == 2
    assert scales[0, first].item() == pytest.approx({0: 3.0, 1: 1.5}[first], rel=1e-4)
    assert error.item() == pytest.approx(0, abs=1e-6)


def test_grams_are_of_what_each_kernel_gives(images: object) -> None:
    """One image position, one location: G is the outer product of the kernels' parts of the output."""
    few = dataclasses.replace(images, images=images.images[:1, :, :3, :3], labels=images.labels[:1])
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    order = torch.tensor([[0, 3], [1, 2]])
    gram = kernel_grams(conv, {"0": order}, few, 1, 1, 0)["0"]
    pixels = few.pixels(slice(1))[0].double()
    per_filter = (conv[0].weight.double() * pixels).sum((2, 3))  # (O, I)
    expected = torch.stack([per_filter[group].T @ per_filter[group] for group in order])
    torch.testing.assert_close(gram, expected.detach(), rtol=1e-4, atol=1e-8)


def test_dead_channels_go_and_the_network_stays(resnet8: nn.Module, images: object) -> None:
    """Where a third of the inputs of a layer are dead, nothing is lost with them."""
    model = copy.deepcopy(resnet8)
    dead = torch.arange(16) % 3 == 0
    block = model.layer1[0]
    block.conv2.weight.data[:, dead] = 0
    pruned = pruners.prepare(
        model, "gkp-reconstruction", data=images, images=32, profile={"layer1.0.conv2": 1.0}
    )
    x = images.pixels(slice(4))
    with torch.no_grad():
        small = pruned(6 / 16 * ONE_LAYER)
        assert isinstance(small.layer1[0].conv2, GroupedKernelConv2d)
        assert not dead[small.layer1[0].conv2.kept].any()
        torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)


def test_scales_rebuild_more_than_the_kernels_alone(resnet8: nn.Module, images: object) -> None:
    name, x, rate = "layer2.0.conv2", images.pixels(slice(32)), 0.25 * ONE_LAYER
    lost = {}
    for rescale in (False, True):
        pruned = gkp.prune(
            resnet8, "gkp-reconstruction", data=images, rate=rate, rescale=rescale, profile={name: 1.0}
        )
        with torch.no_grad():
            lost[rescale] = (pruned(x) - resnet8(x)).square().mean().item()
    random = gkp.prune(resnet8, strategy="random", rate=rate, profile={name: 1.0})
    with torch.no_grad():
        assert lost[True] < lost[False] < (random(x) - resnet8(x)).square().mean().item()


def test_no_location_is_refused(resnet8: nn.Module, images: object) -> None:
    with pytest.raises(ValueError, match="locations=0: give a number of positions per image"):
        gkp.prune(resnet8, "gkp-reconstruction", data=images, locations=0)


def test_layers_may_have_groups_of_their_own(resnet8: nn.Module, images: object) -> None:
    groups = {"layer2.0.conv2": 4}
    pruned = gkp.prune(resnet8, "gkp-reconstruction", groups=groups, data=images, images=4)
    found = {name: len(m.kept) for name, m in pruned.named_modules() if isinstance(m, GroupedKernelConv2d)}
    assert found.pop("layer2.0.conv2") == 4
    assert set(found.values()) == {8}
