"""Grouped kernels by how well the rest rebuilds a layer's output: ThiNet's question, asked of each group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.copying import copied
from gkp.nets.channels.surgery import convolution, filter_weight, guessed_input, replace_kernels
from gkp.pruners.common.group_numbers import Groups, groups_of
from gkp.pruners.common.images import batches, sample, scoring_copy
from gkp.pruners.common.profile import FLAT, Profile, kernel_rates
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.kernels.layers import layers_to_prune
from gkp.pruners.reconstruction import patches
from gkp.search import Selection, grouping
from gkp.search.objective import kept_count
from gkp.utils.logits import run
from gkp.utils.whole import is_whole

RIDGE = 1e-8  # times the mean of the diagonal: makes dead kernels harmless, moves nothing else


@register(
    "gkp-reconstruction",
    structure="grouped kernel",
    needs="images",
    citation="control; the criterion of Luo et al. 2017 (ICCV), arXiv:1707.06342, for kernels of a group",
    summary="SR-GKP's groups, and in each the kernels that rebuild its output best; these are rescaled",
)
def gkp_reconstruction(
    model: nn.Module,
    *,
    groups: Groups,
    example_input: Tensor | None,
    data: Split,
    images: int = 256,
    locations: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    rescale: bool = True,
    execution: str = "dense",
    indivisible: str = "skip",
    profile: Profile = FLAT,
    which: str = "all",
) -> Cut:
    """Greedy least squares in each group of filters, see `eliminate`; nothing is trained in between.

    A scalar of the output, without its bias, is a sum over input channels: x_i is what kernel i gives to it.
    Of `images` images, at `locations` random positions each, all filters of a group are samples of x. The
    kernels that stay are scaled so that they rebuild the whole sum best (rescale=False leaves that out).
    All layers are sampled in the network as it is. profile, which: as in "sr-gkp".
    """
    layers = {
        name: convolution(model, name) for name in layers_to_prune(model, groups, indivisible, example_input)
    }
    rates = kernel_rates(model, layers, profile, which, example_input)
    orders = {
        name: grouping.snaking(filter_weight(conv).cpu(), groups_of(groups, name))
        for name, conv in layers.items()
    }
    grams = kernel_grams(model, orders, sample(data, images, seed), locations, batch_size, seed)

    def cut(rate: float) -> nn.Module:
        scaled, selections = copied(model), {}
        for name, share in rates(rate).items():
            order, weight = orders[name], convolution(scaled, name).weight
            kept, scales, error = eliminate(grams[name], kept_count(weight.shape[1], share))
            selections[name] = Selection(order.flatten(), kept, error)
            if rescale:
                with torch.no_grad():
                    weight[order] *= scales[:, None, :, None, None].to(weight)
        return replace_kernels(scaled, selections, execution, guessed_input(model, example_input))

    return cut


def eliminate(gram: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Remove kernels one by one, each time the one without which least squares loses least.

    gram: G = sum of x x^T over samples, (groups, I, I). With S the kernels that are left, w = argmin of
    sum (sum_i x_i - sum_{i in S} w_i x_i)^2. Returns kept (groups, keep), ascending; w (groups, I), 1 for
    what is gone; and the error that is left (groups,), as a share of sum (sum_i x_i)^2.
    """
    channels = gram.shape[1]
    diagonal = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    ridged = gram + RIDGE * diagonal[:, None, None] * torch.eye(channels, dtype=gram.dtype)
    # With P = (G_SS)^-1 the error grows by w_i^2 / P_ii without i; both follow by one step.
    inverse = torch.linalg.inv(ridged)
    scales, error = torch.ones_like(gram[:, 0]), torch.zeros_like(gram[:, 0, 0])
    left, groups = torch.ones_like(scales, dtype=torch.bool), torch.arange(len(gram))
    for _ in range(channels - keep):
        pivots = inverse.diagonal(dim1=1, dim2=2)
        growth = (scales.square() / pivots.clamp_min(1e-300)).masked_fill(~left, torch.inf)
        gone = growth.argmin(1)
        column, pivot = inverse[groups, gone], pivots[groups, gone].clone()
        error += growth[groups, gone]
        scales = scales - column * (scales[groups, gone] / pivot)[:, None]
        inverse = inverse - column[:, :, None] * column[:, None] / pivot[:, None, None]
        left[groups, gone] = False
        scales = torch.where(left, scales, 0)
    kept = left.nonzero()[:, 1].view(len(gram), keep)
    return kept, torch.where(left, scales, 1), error / gram.sum((1, 2)).clamp_min(1e-300)


def kernel_grams(
    model: nn.Module, orders: Mapping[str, Tensor], data: Split, locations: int, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """{layer: G (groups, I, I), float64 on the CPU} of what each kernel gives to sampled outputs.

    orders: {layer: (groups, O / groups) filters}. ValueError for less than one location.
    """
    if not is_whole(locations):
        raise ValueError(f"locations={locations!r}: give a number of positions per image, 1 or more")
    model, generator = scoring_copy(model), torch.Generator().manual_seed(seed)
    grams: dict[str, Tensor] = {}

    def watch(name: str, order: Tensor) -> None:
        conv = convolution(model, name)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            image = torch.arange(len(output)).repeat_interleave(locations)
            row, column = (torch.randint(n, (len(image),), generator=generator) for n in output.shape[2:])
            seen = patches(conv, inputs[0], image, row, column).flatten(2).double().cpu()
            weight = conv.weight.detach().flatten(2).double().cpu()
            x = torch.einsum("sik,gfik->gsfi", seen, weight[order]).flatten(1, 2)
            grams[name] = grams.get(name, 0) + x.mT @ x

        conv.register_forward_hook(hook)

    for name, order in orders.items():
        watch(name, order)
    with torch.no_grad():
        for pixels, _ in batches(data, batch_size, next(model.parameters()).device):
            run(model, pixels)
    return grams
