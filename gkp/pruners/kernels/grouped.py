"""Grouped kernel pruning: groups of filters, each with its own subset of input channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from gkp.nets.channels.surgery import filter_weight, guessed_input, replace_kernels
from gkp.pruners.common.group_numbers import Groups, groups_of
from gkp.pruners.common.profile import FLAT, Profile, kernel_rates
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.kernels.layers import layers_to_prune
from gkp.search import Selection, beam, check_rate, grouping, select
from gkp.search.objective import (
    Problem,
    costs_of_sets,
    grouped_kernel_distance,
    kept_count,
    resolve_beta,
    set_cost,
)
from gkp.search.sharing import check_share, shared
from gkp.utils.progress import each_shown

WIDE, STARTS = 512, 4  # input channels beyond which a search has so many starts unless it is told otherwise


@register(
    "sr-gkp",
    structure="grouped kernel",
    citation="Zhong et al. 2023 (NeurIPS), this paper",
    summary="smoothness snaking, then the beam search for distant kernels that represent the pruned ones",
)
def sr_gkp(
    model: nn.Module,
    *,
    groups: Groups,
    example_input: Tensor | None,
    data: object,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: str | float = "reference",
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
    strategy: str = "beam",
    grouping: str = "snaking",
    variant: str = "squared",
    arithmetic: str = "fast",
    seed: int = 0,
    execution: str = "dense",
    indivisible: str = "skip",
    starts: str | int | None = "auto",
    share: float = 0.0,
    profile: Profile = FLAT,
    which: str = "all",
) -> Cut:
    """SR-GKP. Search options as in `gkp.search.select`; `seed` is that of grouping or strategy "random".

    starts: how many kernels of a layer a search starts from, None for all as released; "auto" is all up to
    512 input channels, and `STARTS` beyond, where all would take minutes to hours. Of a network without
    kernels larger than 1x1 that could be grouped, 1x1 convolutions are pruned, else linear layers.
    share: 0.02 lets groups share kept channels while a layer's cost rises by at most 2 %, so that the layer
    needs fewer gathers (`gkp.export`); 0 is as published.
    profile, which: which layer loses how much, and which are pruned, see `gkp.pruners.common.profile`.
    """
    layers = layers_to_prune(model, groups, indivisible, example_input, pointwise=True)
    rates = kernel_rates(model, layers, profile, which, example_input)
    # A search takes time with the starts, the steps and the width of each.
    work = {name: filter_weight(layer).shape[1] ** 3 for name, layer in layers.items()}

    def cut(rate: float) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        selections = {
            name: select(
                filter_weight(layers[name]),
                groups=groups_of(groups, name),
                rate=part,
                beam_width=beam_width,
                check_step=check_step,
                alpha=alpha,
                beta=beta,
                neighbours=neighbours,
                outer_in_beam=outer_in_beam,
                decision=decision,
                strategy=strategy,
                grouping=grouping,
                variant=variant,
                arithmetic=arithmetic,
                generator=generator,
                starts=_starts(layers[name], starts),
                share=share,
            )
            for name, part in each_shown("sr-gkp", rates(rate), work)
        }
        return replace_kernels(model, selections, execution, guessed_input(model, example_input))

    return cut


def _starts(layer: nn.Conv2d | nn.Linear, starts: str | int | None) -> int | None:
    if isinstance(starts, str):
        if starts != "auto":
            raise ValueError(f'starts={starts!r}: give "auto", None for all, or a number of kernels')
        return None if filter_weight(layer).shape[1] <= WIDE else STARTS
    return starts


def greedy_selection(
    weight: Tensor,
    order: Tensor,
    rate: float,
    *,
    beta: str | float = "exact",
    compared: float = 0.2,
    share: float = 0.0,
) -> Selection:
    """TMI-GKP's choice of kernels: greedy from every start, the best set by kept and pruned kernels.

    weight (O, I, kh, kw); order (groups, O / groups) filters of each group. Every start grows by the
    kernel of least summed similarity 1 - d to the kept ones. Of the I sets that result the one of least
    cost is kept, where a pruned kernel is compared with the int(compared * kept) nearest kept ones, see
    `gkp.search.objective`. The same as `select(strategy="greedy", neighbours=...)`, which carries those
    nearest kernels along and takes minutes for a wide layer. share: as there.
    """
    check_rate(rate)
    check_share(share)
    weight = weight.detach().double().cpu()
    channels = weight.shape[1]
    keep = kept_count(channels, rate)
    neighbours = int(compared * keep)
    problem = Problem(
        distance=grouped_kernel_distance(weight, order),
        smooth=weight.new_zeros(len(order), channels),  # decides nothing here
        keep=keep,
        beta=resolve_beta(beta, channels, keep, keep, neighbours),
        neighbours=neighbours,
    )
    growing = replace(problem, neighbours=0)
    kept, costs = [], []
    for group in range(len(order)):
        state = beam.start(growing, torch.full((channels,), group), torch.arange(channels))
        for _ in range(1, keep):
            state = beam.grow(state, growing, beam.propose(state, growing, 1))
        sets = (state.total == -math.inf).nonzero()[:, 1].view(-1, keep)
        cost = costs_of_sets(problem, group, sets)
        kept.append(sets[cost.argmin()])
        costs.append(cost.min())
    common = shared(problem, torch.stack(kept), share)
    return Selection(order.flatten(), common, set_cost(problem, common) if share else torch.stack(costs))


def greedy_cut(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    orders: Mapping[str, Tensor],
    beta: str | float,
    compared: float,
    execution: str,
    example_input: Tensor | None,
    profile: Profile = FLAT,
    which: str = "all",
    share: float = 0.0,
) -> Cut:
    """Cut by `greedy_selection` in groups `orders[name]` (groups, O / groups) of each layer's filters."""
    if not 0 <= compared <= 1:
        raise ValueError(f"compared={compared!r}: the share of the kept kernels lies in [0, 1]")
    rates = kernel_rates(model, layers, profile, which, example_input)

    def cut(rate: float) -> nn.Module:
        selections = {
            name: greedy_selection(
                filter_weight(layers[name]), orders[name], part, beta=beta, compared=compared, share=share
            )
            for name, part in rates(rate).items()
        }
        return replace_kernels(model, selections, execution, guessed_input(model, example_input))

    return cut


@register(
    "gkp-greedy",
    structure="grouped kernel",
    citation="Zhong et al. 2023 (NeurIPS), this paper's Table 5: snaking with greedy selection",
    summary="smoothness snaking, then TMI-GKP's greedy choice of distant kernels: the control for the beam",
)
def gkp_greedy(
    model: nn.Module,
    *,
    groups: Groups,
    example_input: Tensor | None,
    data: object,
    beta: str | float = "exact",
    compared: float = 0.2,
    variant: str = "squared",
    share: float = 0.0,
    execution: str = "dense",
    indivisible: str = "skip",
    profile: Profile = FLAT,
    which: str = "all",
) -> Cut:
    """SR-GKP's groups with TMI-GKP's selection, see `greedy_selection`; nothing of either is left out.

    beta: weight of the pruned kernels, "exact" balances the numbers of pairs (TMI-GKP's "auto") or a
    number. compared: share of the kept kernels that a pruned one is compared with. variant: of the
    smoothness. share, profile, which: as in `sr_gkp`. How the paper set beta in its Table 5 is not stated:
    not verified.
    """
    layers = layers_to_prune(model, groups, indivisible, example_input, pointwise=True)
    orders = {
        name: grouping.snaking(filter_weight(layer).cpu(), groups_of(groups, name), variant=variant)
        for name, layer in layers.items()
    }
    return greedy_cut(
        model, layers, orders, beta, compared, execution, example_input, profile, which=which, share=share
    )
