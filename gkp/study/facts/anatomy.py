"""What a selection looks like beside all others that were possible: smoothness, agreement, optimality."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkp.nets.channels.surgery import kernel_layers
from gkp.search import Selection, beam, grouping, select
from gkp.search.objective import Problem, grouped_kernel_distance, kept_count, resolve_beta
from gkp.search.smoothness import smoothness

if TYPE_CHECKING:  # what trains imports this file and needs no tables
    import pandas as pd

MAX_SETS = 20_000  # sets that `smoothness_of_sets` lists; beyond, it draws as many at random


def layers(model: nn.Module, groups: int = 8) -> dict[str, Tensor]:
    """Name -> weight (O, I, kh, kw) of every convolution that grouped kernel pruning takes."""
    return {name: conv.weight.detach() for name, conv in kernel_layers(model, groups)[0].items()}


def group_smoothness(weight: Tensor, order: Tensor) -> Tensor:
    """Smoothness of every grouped kernel: weight (O, I, kh, kw), order (G, O/G) -> (G, I), float64."""
    return smoothness(weight.detach().double().cpu())[order].sum(1)


def smoothness_of_sets(
    weight: Tensor, selection: Selection, *, limit: int = MAX_SETS, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Smoothness of the kept set of every group (G,), and of all sets of that size (G, M).

    Where there are more than `limit` sets, M = limit sets drawn uniformly with `generator`.
    """
    order = selection.filter_order.view(selection.groups, -1)
    by_kernel, keep = group_smoothness(weight, order), selection.kept.shape[1]
    chosen = by_kernel.gather(1, selection.kept).sum(1)
    if math.comb(by_kernel.shape[1], keep) <= limit:
        sets = torch.tensor(list(itertools.combinations(range(by_kernel.shape[1]), keep)))
    else:
        sets = torch.rand(limit, by_kernel.shape[1], generator=generator).topk(keep, dim=1).indices
    return chosen, by_kernel[:, sets].sum(2)


def share_smoother(weight: Tensor, selection: Selection, **options: Any) -> Tensor:
    """For every group, the share of all sets of that size that are smoother than the kept one: (G,)."""
    chosen, others = smoothness_of_sets(weight, selection, **options)
    # Sums of the same numbers in another order differ in their last bits: no set is smoother than itself.
    return (others < chosen[:, None] * (1 - 1e-9)).double().mean(1)


def same_groups(a: Selection, b: Selection) -> Tensor:
    """Which groups keep the same kernels in both: bool (G,)."""
    return (a.kept == b.kept).all(1)


def overlap(a: Selection, b: Selection) -> Tensor:
    """Share of kept kernels that both keep, per group: (G,)."""
    shared = (a.kept[:, :, None] == b.kept[:, None, :]).any(2)
    return shared.double().mean(1)


def explained_by_size(weights: Mapping[str, Tensor]) -> float:
    """Spearman's rank correlation of smoothness (Eq. 1) and squared norm over all kernels of all layers."""
    import pandas as pd

    kernels = torch.cat([weight.detach().double().cpu().flatten(0, 1) for weight in weights.values()])
    columns = {"smoothness": smoothness(kernels), "size": kernels.square().sum((1, 2))}
    return float(pd.DataFrame(columns).rank().corr().iloc[0, 1])


def survey(
    weights: Mapping[str, Tensor], searches: Mapping[str, Mapping[str, Any]], **common: Any
) -> pd.DataFrame:
    """Every search on every layer, group by group, compared with the first of `searches`.

    searches: title -> options of `gkp.search.select`. Columns: layer, group, search, same (the first one's
    set), overlap (share of kernels that it keeps too), smoother (share of all sets that are smoother).
    """
    import pandas as pd

    rows = []
    for name, weight in weights.items():
        first: Selection | None = None
        for title, options in searches.items():
            selection = select(weight, **common, **options)
            first = first or selection
            smoother = share_smoother(weight, selection, generator=torch.Generator().manual_seed(0))
            columns = zip(
                same_groups(selection, first).tolist(),
                overlap(selection, first).tolist(),
                smoother.tolist(),
                strict=True,
            )
            for group, (same, shared, share) in enumerate(columns):
                row = {"layer": name, "group": group, "search": title}
                rows.append(row | {"same": same, "overlap": shared, "smoother": share})
    return pd.DataFrame(rows)


def survey_text(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per search: groups with the same set, overlap, share of all sets that are smoother."""
    import pandas as pd

    rows = []
    for title, part in frame.groupby("search", sort=False):
        row = {"search": title, "same set as the first": f"{part['same'].sum()} of {len(part)} groups"}
        row["kernels in common"] = f"{100 * part['overlap'].mean():.1f} %"
        rows.append(row | {"sets that are smoother": f"{100 * part['smoother'].mean():.1f} %"})
    return pd.DataFrame(rows)


def beam_step(
    weight: Tensor,
    *,
    group: int = 0,
    first: int = 0,
    groups: int = 8,
    rate: float = 0.4375,
    width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
) -> pd.DataFrame:
    """The released search from one start kernel to its first cut of the beam, as a table of the branches.

    weight: (O, I, kh, kw). kept (channels, the start first), cost, smoothness, survives: `width` to the power
    of `check_step` branches, the best by Eq. 2 first, and whether the beam keeps them.
    """
    import pandas as pd

    weight = weight.detach().double().cpu()
    order, channels = grouping.snaking(weight, groups), weight.shape[1]
    beta = resolve_beta("reference", channels, kept_count(channels, rate), 1 + check_step, 1)
    problem = Problem(
        grouped_kernel_distance(weight, order), smoothness(weight)[order].sum(1), 1 + check_step, beta, 1
    )
    state = beam.start(problem, torch.tensor([group]), torch.tensor([first]))
    paths = [[first]]
    for step in range(1, check_step + 1):
        children = beam.propose(state, problem, width, merge=False)
        parents = [path for path in paths for _ in range(width)]
        paths = [[*path, int(kernel)] for path, kernel in zip(parents, children.kernel, strict=True)]
        if step < check_step:
            state = beam.grow(state, problem, children)
    cost = beam.children_cost(state, problem, children, outer=True)
    ranks = beam.best_first(beam.rounded(cost[None]), beam.rounded(children.smooth[None]), alpha)
    best = ranks[0].tolist()
    columns = {"kept": paths, "cost": cost.tolist(), "smoothness": children.smooth.tolist()}
    return pd.DataFrame(columns).iloc[best].assign(survives=[place < width for place in range(len(best))])


def holds_roughest(weight: Tensor, selection: Selection, group: int = 0) -> Tensor:
    """Which of the sets of `smoothness_of_sets` hold the group's roughest kernel: bool (M,).

    ValueError where there are too many sets to list.
    """
    order = selection.filter_order.view(selection.groups, -1)
    by_kernel, keep = group_smoothness(weight, order)[group], selection.kept.shape[1]
    if math.comb(len(by_kernel), keep) > MAX_SETS:
        raise ValueError(f"{len(by_kernel)} channels have too many sets to list: take a layer of at most 16")
    sets = torch.tensor(list(itertools.combinations(range(len(by_kernel)), keep)))
    return (sets == by_kernel.argmax()).any(1)
