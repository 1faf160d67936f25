"""Filter pruning by the size of the weights, and the random control."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkp.nets.channels.surgery import convolution, default_input, remove_filters
from gkp.nets.models import CifarResNet, CifarVGG16
from gkp.pruners.common.filters import filters_to_drop, layers_to_cut, weight_cut
from gkp.pruners.common.profile import FLAT, Profile
from gkp.pruners.common.ranking import MINIMUM, global_cut, own_norm
from gkp.pruners.common.registry import Cut, register

BLOCKS = 9  # per stage of ResNet-56, for which Li et al. print their profiles
# Shares of the filters of each stage in proportion, of mean 1, and the blocks that each stage keeps whole.
RESNET_PROFILES = {
    "l1-a": ((1.0, 1.0, 1.0), ({7}, {0}, {0, 8})),  # 10 % everywhere; without convolutions 16, 20, 38, 54
    "l1-b": ((1.8, 0.9, 0.3), ({7, 8}, {0, 7}, {0, 8})),  # 60, 30, 10 %; without 16, 18, 20, 34, 38, 54
}
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly
VGG16_PROFILE = (0, 7, 8, 9, 10, 11, 12)  # positions of the convolutions that lose 50 %, the others stay


@register(
    "random",
    structure="filter",
    citation="control",
    summary="filters chosen uniformly at random, the same share in every layer",
)
def random(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    seed: int = 0,
    profile: Profile = FLAT,
) -> Cut:
    """Uniformly random scores from a generator seeded with `seed`: the control every criterion must beat.

    profile: which layer loses how much, see `gkp.pruners.common.profile`.
    """
    generator = torch.Generator().manual_seed(seed)

    def score(weight: Tensor, _: object) -> Tensor:
        return torch.rand(len(weight), generator=generator)

    return weight_cut(model, example_input, score, profile)


def l1_norm(weight: Tensor) -> Tensor:
    """Sum of the absolute weights of each filter: (O, I, kh, kw) -> (O,)."""
    return weight.abs().sum((1, 2, 3))


@register(
    "l1",
    structure="filter",
    citation="Li et al. 2017, arXiv:1608.08710",
    summary="filters of smallest L1 norm, the same share in every layer",
)
def l1(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    profile: Profile = FLAT,
) -> Cut:
    """Score of filter i: sum |W_i|; "l1-a" and "l1-b" have the original's share for each layer.

    profile: which layer loses how much, see `gkp.pruners.common.profile`.
    """
    return weight_cut(model, example_input, lambda weight, _: l1_norm(weight), profile)


@register(
    "l1-a",
    structure="filter",
    citation="Li et al. 2017, arXiv:1608.08710, ResNet-56-A and VGG-16",
    summary="filters of smallest L1 norm, one share for all stages, "
    "sensitive layers left whole (none in a ResNet-20)",
)
def l1_a(model: nn.Module, *, groups: int, example_input: Tensor | None, data: object) -> Cut:
    """Score of filter i: sum |W_i|; layers as in the original's profile A, see `layer_profile`.

    The original removes 10 % in ResNet-56-A and 50 % in VGG-16; here `rate` is that share. The original
    then fine-tunes 40 epochs at 0.001.
    """
    return _profile_cut(model, "l1-a", example_input)


@register(
    "l1-b",
    structure="filter",
    citation="Li et al. 2017, arXiv:1608.08710, ResNet-56-B",
    summary="filters of smallest L1 norm, stages in the proportion 6:3:1, "
    "sensitive layers left whole (none in a ResNet-20)",
)
def l1_b(model: nn.Module, *, groups: int, example_input: Tensor | None, data: object) -> Cut:
    """Score of filter i: sum |W_i|; layers as in the original's profile B, see `layer_profile`.

    The original removes 60, 30 and 10 % of the filters in the three stages of ResNet-56; here `rate` is
    the mean of the three, which keep their proportion until one of them is down to a single filter. The
    original then fine-tunes 40 epochs at 0.001.
    """
    return _profile_cut(model, "l1-b", example_input)


@register(
    "l2",
    structure="filter",
    citation="the norm of He et al. 2018 (IJCAI), arXiv:1808.06866, applied once",
    summary="filters of smallest L2 norm, the same share in every layer",
)
def l2(model: nn.Module, *, groups: int, example_input: Tensor | None, data: object) -> Cut:
    """Score of filter i: ||W_i||_2, all at once from the trained weights; "sfp" prunes softly in training."""
    return weight_cut(model, example_input, lambda weight, _: weight.square().sum((1, 2, 3)).sqrt())


@register(
    "bn-gamma",
    structure="filter",
    citation="the criterion of Liu et al. 2017 (ICCV), arXiv:1708.06519, without its sparse training",
    summary="filters of smallest batch norm scale, one ranking for all layers",
)
def bn_gamma(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    minimum: float = MINIMUM,
) -> Cut:
    """Score of filter i: |gamma_i| of its own batch norm, ranked over the whole network.

    Left out: the sparse training that makes small gammas mean something. A layer keeps a share `minimum`
    of its filters, which is ours: the original can empty a layer. Filters without a batch norm of their
    own stay. ValueError when there is no batch norm at all.
    """
    example_input = default_input(model, example_input)
    norms = {name: own_norm(model, layer) for name, layer in layers_to_cut(model, example_input).items()}
    scores = {
        name: norm.weight.detach().abs() for name, norm in norms.items() if norm is not None and norm.affine
    }
    if not scores:
        raise ValueError("bn-gamma ranks scales of batch norms, and no removable filter has one: try l1")
    return global_cut(model, scores, example_input, minimum)


def layer_profile(model: nn.Module, method: str) -> list[tuple[float, tuple[str, ...]]]:
    """Li et al.'s profile: for each stage, the share it loses relative to the rate, and its convolutions.

    CIFAR ResNets: the first convolution of every block. The profiles are for ResNet-56, nine blocks per
    stage; at another depth a block is kept whole when all of its stretch of the stage is whole in
    ResNet-56, so that ResNet-110 skips the same relative depths and ResNet-20 nothing. VGG-16 has one
    profile ("l1-a"): convolutions 1 and 8 to 13. ValueError for any other network.
    """
    if isinstance(model, CifarVGG16) and method == "l1-a":
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        return [(1.0, (names[position],)) for position in VGG16_PROFILE]
    if not isinstance(model, CifarResNet):
        known = "CIFAR ResNets and VGG-16" if method == "l1-a" else "CIFAR ResNets"
        raise ValueError(f"{method} is a layer profile that exists for {known} only: use l1")
    profile = []
    stages = (model.layer1, model.layer2, model.layer3)
    for stage, (layer, share, whole) in enumerate(zip(stages, *RESNET_PROFILES[method], strict=True), 1):
        blocks = len(layer)
        stretches = [range(BLOCKS * b // blocks, -(-BLOCKS * (b + 1) // blocks)) for b in range(blocks)]
        pruned = [block for block, stretch in enumerate(stretches) if not whole.issuperset(stretch)]
        profile.append((share, tuple(f"layer{stage}.{block}.conv1" for block in pruned)))
    return profile


def _profile_cut(model: nn.Module, method: str, example_input: Tensor | None) -> Cut:
    example_input = default_input(model, example_input)
    shares = {name: share for share, names in layer_profile(model, method) for name in names}
    scores = {name: l1_norm(convolution(model, name).weight.detach()) for name in shares}

    def cut(rate: float) -> nn.Module:
        drop = {}
        for position, (name, score) in enumerate(scores.items()):
            # Each layer rounds at a point of its own. Otherwise layers whose sizes and shares are in
            # proportion all step at the same rate, and a target can fall between two such steps.
            point = (0.5 + GOLDEN * position) % 1
            count = int(rate * shares[name] * len(score) + point)
            drop[name] = filters_to_drop(score, count / len(score))
        return remove_filters(model, drop, example_input)

    return cut
