"""Which kernels each group keeps: the released beam search, plain greedy, exact enumeration, controls.

`gkp.search.objective` says what is searched for, `gkp.search.beam` how the released code searches. Here the
two meet a convolution's weight, next to plain greedy selection and exact enumeration, with which the beam's
optimality gap is measured.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gkp.search import arena, beam, exact
from gkp.search import grouping as groupings
from gkp.search.objective import (
    ARITHMETICS,
    Problem,
    all_sets,
    costs_of_sets,
    grouped_kernel_distance,
    kept_count,
    resolve_beta,
    set_cost,
)
from gkp.search.sharing import check_share, shared
from gkp.search.smoothness import smoothness, summed_in_order
from gkp.search.threads import one_thread

STRATEGIES = ("beam", "greedy", "exact", "smoothest", "roughest", "random")
GROUPINGS = ("snaking", "random", "contiguous")
MAX_SETS = 3_000_000  # exact enumeration holds a few seconds per group up to here
MAX_CHANNELS = 64  # beyond them an integer program has little hope
BLOCK = 1 << 25  # distances that are held together, 256 MB: groups are searched so many at a time


@dataclass(frozen=True)
class Selection:
    """What a layer keeps.

    filter_order: (O,) original filter index at each position; consecutive runs of O/groups form a group.
    kept: (groups, keep) input channels each group keeps, ascending.
    cost: (groups,) cost of the kept sets, float64.
    """

    filter_order: Tensor
    kept: Tensor
    cost: Tensor

    @property
    def groups(self) -> int:
        return len(self.kept)


def select(
    weight: Tensor,
    *,
    groups: int | None = None,
    rate: float = 0.4375,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: str | float = "reference",
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
    strategy: str = "beam",
    grouping: str | Tensor = "snaking",
    variant: str = "squared",
    generator: torch.Generator | None = None,
    arithmetic: str = "fast",
    starts: int | None = None,
    share: float = 0.0,
) -> Selection:
    """Group the filters of a convolution and choose the input channels that each group keeps.

    weight: (O, I, kh, kw), O divisible by `groups`; None is 8, or as many as `grouping` has rows. rate:
    fraction of kernels to remove, in (0, 1); each group keeps int((1 - rate) * (I + 1)), as the released
    code does. beam_width: branches kept per start kernel. check_step: extensions between two truncations
    of the beam. alpha: weight of the cost rank against the smoothness rank (Eq. 2). beta: "reference"
    (fixed by the sizes at its first use, as in the released code; the other strategies first use it on
    final sets, where it is Eq. 3's), "exact" (Eq. 3) or a finite number. neighbours: how many nearest
    kept kernels a pruned one is compared with; 0 drops the term. outer_in_beam: whether that term counts
    while the beam is truncated. decision: "cost", or "smoothness" alone, picks the final set.
    strategy: "beam"; "greedy" (one branch per start); "exact" (a list of all sets, up to
    3 million, else an integer program, see `gkp.search.exact`); and, as
    controls, the "smoothest" or "roughest" kernels of each group, or "random" ones (needs `generator`).
    grouping: "snaking", "random" (needs `generator`), "contiguous", or int64 (groups, O/groups) indices.
    variant: of the smoothness, see `gkp.search.smoothness`.
    arithmetic: "fast", or "released": every sum with the last bits of the released code's, see
    `gkp.search.released`, which costs O(keep^2) for each set and suits layers of up to some 128 channels.
    starts: from how many kernels of a group the beam or greedy search starts, spread evenly over the
    input channels; None starts from every one, as released. Time grows with it, so that a few serve a
    layer of thousands of channels.
    share: groups get one set in common as long as the layer's cost rises by no more than this, relative to
    it, see `gkp.search.sharing`; 0, as published, leaves each its own.

    Returns a `Selection` on the CPU. ValueError for anything out of range.
    """
    _check(weight, rate, beam_width, check_step, alpha, neighbours, decision, strategy, beta)
    _check_means(arithmetic, starts, outer_in_beam)
    check_share(share, strategy, decision)
    weight = weight.detach().double().cpu()
    groups = _groups(groups, grouping)
    order = _group(weight, groups, grouping, variant, generator, arithmetic)
    channels = weight.shape[1]
    keep = kept_count(channels, rate)
    first_use = 1 + check_step if strategy == "beam" and outer_in_beam and check_step < keep else keep
    beta = resolve_beta(beta, channels, keep, first_use, neighbours)
    width = 1 if strategy == "greedy" else beam_width
    rule = beam.Rule(width, check_step, alpha, outer_in_beam)
    problems: list[Problem] = []
    kept: list[Tensor] = []
    cost: list[Tensor] = []
    with one_thread() as threads:
        for filters in torch.split(order, max(1, BLOCK // channels**2)):
            distance = grouped_kernel_distance(weight, filters, arithmetic)
            smooth = _smooth(weight, filters, variant, arithmetic)
            problem = Problem(distance, smooth, keep, beta, neighbours, arithmetic)
            sets, costs = _searched(problem, strategy, decision, generator, rule, starts, threads)
            kept.append(sets)
            cost.append(costs)
            if share:
                problems.append(problem)
        if share:
            distances, smooths = zip(*((p.distance, p.smooth) for p in problems), strict=True)
            whole = replace(problems[0], distance=torch.cat(distances), smooth=torch.cat(smooths))
            common = shared(whole, torch.cat(kept), share)
            return Selection(order.flatten(), common, set_cost(whole, common))
    return Selection(order.flatten(), torch.cat(kept), torch.cat(cost))


def _searched(
    problem: Problem,
    strategy: str,
    decision: str,
    generator: torch.Generator | None,
    rule: beam.Rule,
    starts: int | None,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """Kept sets (G, keep) and their costs (G,)."""
    if strategy == "exact":
        return _exact(problem, decision)
    if strategy in ("smoothest", "roughest", "random"):
        return _without_search(problem, strategy, generator)
    return arena.search(problem, rule, decision, starts, threads)


def _smooth(weight: Tensor, order: Tensor, variant: str, arithmetic: str) -> Tensor:
    """Smoothness (G, I) of the grouped kernels."""
    if arithmetic == "released":
        return summed_in_order(weight[order].transpose(1, 2), variant)
    return smoothness(weight, variant)[order].sum(1)


def _without_search(
    problem: Problem, strategy: str, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Kept sets (G, keep) by smoothness alone, or drawn uniformly, and their costs (G,)."""
    if strategy == "random":
        if generator is None:
            raise ValueError('strategy="random" needs generator=torch.Generator().manual_seed(...)')
        score = torch.rand(problem.smooth.shape, generator=generator, dtype=torch.float64)
    else:
        score = problem.smooth if strategy == "smoothest" else -problem.smooth
    kept = score.sort(dim=1, stable=True).indices[:, : problem.keep].sort(1).values
    return kept, set_cost(problem, kept)


def _exact(problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The best sets (G, keep) and their costs (G,), proved: by a list of all, else by an integer program."""
    sets = math.comb(problem.channels, problem.keep)
    if sets <= MAX_SETS:
        return _enumerate(problem, decision)
    if decision != "cost" or problem.channels > MAX_CHANNELS:
        raise ValueError(
            f'strategy="exact" would list {sets:,} sets of {problem.keep} among {problem.channels} kernels '
            f'(limit {MAX_SETS:,}; {MAX_CHANNELS} kernels by decision="cost"): use strategy="beam" for it'
        )
    optimum = exact.solve(problem)
    if not optimum.proved.all():
        raise ValueError(
            f'strategy="exact" is not done after a minute a group (gap up to {float(optimum.gap.max()):.2%})'
            ": give gkp.search.exact.solve more seconds, which also tells what it has"
        )
    return optimum.kept, optimum.cost


def _enumerate(problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The best of all C(n, keep) sets of every group."""
    candidates = all_sets(problem)
    kept, cost = [], []
    for group, smoothness_of_kernels in enumerate(problem.smooth):
        costs = costs_of_sets(problem, group, candidates)
        best = (costs if decision == "cost" else smoothness_of_kernels[candidates].sum(1)).argmin()
        kept.append(candidates[best])
        cost.append(costs[best])
    return torch.stack(kept), torch.stack(cost)


def _groups(groups: int | None, grouping: str | Tensor) -> int:
    """How many groups; ValueError where the indices in `grouping` are not as many rows as `groups` says."""
    if not isinstance(grouping, Tensor):
        return 8 if groups is None else groups
    rows = len(grouping) if grouping.dim() == 2 else 0
    if not rows or groups not in (None, rows):
        raise ValueError(
            f"grouping has shape {tuple(grouping.shape)} with groups={groups}: give indices of shape "
            "(groups, filters / groups), and groups as many as their rows, or leave groups out"
        )
    return rows


def _group(
    weight: Tensor,
    groups: int,
    grouping: str | Tensor,
    variant: str,
    generator: torch.Generator | None,
    arithmetic: str,
) -> Tensor:
    if isinstance(grouping, Tensor):
        if not torch.equal(grouping.flatten().sort().values, torch.arange(len(weight))):
            raise ValueError(f"grouping must hold each of the {len(weight)} filters once")
        return grouping
    if grouping == "random":
        if generator is None:
            raise ValueError('grouping="random" needs generator=torch.Generator().manual_seed(...)')
        return groupings.random(weight, groups, generator=generator)
    if grouping == "contiguous":
        return groupings.contiguous(weight, groups)
    if grouping == "snaking":
        return groupings.snaking(weight, groups, variant=variant, arithmetic=arithmetic)
    raise ValueError(f"grouping {grouping!r}: choose one of {', '.join(GROUPINGS)} or give the indices")


def _check(
    weight: Tensor,
    rate: float,
    beam_width: int,
    check_step: int,
    alpha: float,
    neighbours: int,
    decision: str,
    strategy: str,
    beta: str | float,
) -> None:
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape (O, I, kh, kw), got {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError(
            "weight holds NaN or infinite values: the checkpoint is damaged or training diverged"
        )
    check_rate(rate)
    for what, count, least in (
        ("beam_width", beam_width, 1),
        ("check_step", check_step, 1),
        ("neighbours", neighbours, 0),
    ):
        if not _is_whole(count, least):
            raise ValueError(f"{what}={count!r}: give a whole number, at least {least}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: the weight of the cost rank lies in [0, 1]")
    for name, value, choices in (
        ("decision", decision, ("cost", "smoothness")),
        ("strategy", strategy, STRATEGIES),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")
    number = isinstance(beta, numbers.Real) and not isinstance(beta, bool) and math.isfinite(beta)
    if not number and beta not in ("reference", "exact"):
        raise ValueError(f'beta {beta!r}: choose "reference", "exact" or a finite number')


def _check_means(arithmetic: str, starts: int | None, outer_in_beam: bool) -> None:
    if not isinstance(outer_in_beam, bool):
        raise ValueError(f"outer_in_beam={outer_in_beam!r}: give True or False")
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"arithmetic {arithmetic!r}: choose one of {', '.join(ARITHMETICS)}")
    if starts is not None and not _is_whole(starts, 1):
        raise ValueError(
            f"starts={starts!r}: give how many kernels a search starts from, at least 1, or None for all"
        )


def _is_whole(value: object, least: int) -> bool:
    """Whether value is an integer, and no bool, of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def check_rate(rate: float) -> None:
    """ValueError unless rate is a number and 0 < rate < 1."""
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 < rate < 1:
        raise ValueError(
            f"rate={rate!r}: the fraction to remove lies strictly between 0 and 1, for example 0.4375"
        )
