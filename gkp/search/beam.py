"""The released beam search, over all groups and all start kernels at once.

From every start kernel each branch grows by the kernels most distant from what it keeps; every
`check_step` extensions the branches of a start are ranked by cost and smoothness (Eq. 2) and the
best few survive. Nothing loops over candidates: a step is a handful of tensor operations. In the fast
arithmetic rows (one per group and start) that have arrived at the same sets are merged, because they
have the same future but for last bits; `gkp.search.released` says what the released arithmetic does instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gkp.search import released
from gkp.search.objective import Problem, set_cost
from gkp.search.released import Sets, repeated

TIE = 1e9  # values closer than one part in this many count as equal in a rank of the fast arithmetic
CHUNK = 1 << 18  # elements of a state tensor that are worked on together: 2 MB, about a core's cache


@dataclass(frozen=True)
class Beam:
    """State of every branch, leading dimensions (rows, branches); a row is one group and one start.

    What counts as the distance of two kernels is `Problem.apart`.
    """

    group: Tensor  # (R,) group of each row
    total: Tensor  # (R, B, n) summed distance to the kept kernels, -inf at the kept ones
    near: tuple[Tensor, ...]  # per neighbour, (R, B, n) ascending distances to the nearest kept kernels
    inner: Tensor  # (R, B) summed distance among the kept kernels
    smooth: Tensor  # (R, B) summed smoothness of the kept kernels
    size: int  # kept kernels
    sets: Sets | None = None  # in the released arithmetic, which takes it for `near` and `inner`

    def rows(self, index: Tensor) -> Beam:
        """The rows `index` (R',), in the fast arithmetic."""
        near = tuple(near[index] for near in self.near)
        return Beam(
            self.group[index], self.total[index], near, self.inner[index], self.smooth[index], self.size
        )


@dataclass(frozen=True)
class Children:
    """Extensions of a beam's branches by one kernel each, not yet carried out; all (R, C)."""

    branch: Tensor | None  # which branch grows; None: of B branches child c extends the c // (C / B)th
    kernel: Tensor  # by which kernel
    inner: Tensor  # summed distance among the kept kernels afterwards
    smooth: Tensor  # summed smoothness afterwards
    sets: Sets | None = None  # those of `Beam.sets` afterwards


def search(
    problem: Problem,
    width: int,
    check_step: int,
    alpha: float,
    outer: bool,
    decision: str,
    starts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Beam search from kernels of every group; returns kept (G, keep) and cost (G,).

    starts: from how many kernels, spread evenly over the channels; None for all of them.
    """
    groups, channels = problem.smooth.shape
    count = min(starts or channels, channels)
    group = torch.arange(groups).repeat_interleave(count)
    first = (torch.arange(count) * channels // count).repeat(groups)
    rows = max(1, CHUNK // (channels * width ** min(check_step, problem.keep)))
    finals = []
    for chunk in torch.split(torch.arange(len(first)), rows):
        beam = start(problem, group[chunk], first[chunk])
        for step in range(1, problem.keep):
            children = propose(beam, problem, width)
            if step % check_step:
                beam = grow(beam, problem, children)
            else:
                beam = grow(beam, problem, truncate(beam, problem, children, width, alpha, outer))
                beam = beam if problem.released else distinct(beam)
        finals.append(beam)
    return decide(finals, problem, decision)


def start(problem: Problem, group: Tensor, first: Tensor) -> Beam:
    """Branches that keep a single kernel: group (R,), first (R,)."""
    distance = problem.apart[group, first][:, None, :]
    unset = torch.full_like(distance, math.inf)
    near = (distance, *[unset] * (problem.neighbours - 1)) if problem.neighbours else ()
    return Beam(
        group=group,
        total=distance.scatter(-1, first[:, None, None], -math.inf),
        near=() if problem.released else near,
        inner=torch.zeros(len(first), 1, dtype=distance.dtype),
        smooth=problem.smooth[group, first][:, None],
        size=1,
        sets=released.start(problem.apart, group, first, near) if problem.released else None,
    )


def propose(beam: Beam, problem: Problem, width: int) -> Children:
    """Of every branch, the `width` extensions by the kernels farthest from its kept ones."""
    width = min(width, problem.channels - beam.size)
    kernel, gain = (each.view(len(beam.group), -1) for each in farthest(beam.total.flatten(0, 1), width))
    return Children(
        branch=None,
        kernel=kernel,
        inner=repeated(beam.inner, width) + gain,
        smooth=repeated(beam.smooth, width) + problem.smooth[beam.group[:, None], kernel],
        sets=beam.sets and beam.sets.extended(kernel),
    )


def farthest(total: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Indices and values (M, width) of each row's largest, the first of equal ones first; total (M, n)."""
    # Repeated maximum by NumPy: much faster than a sort or PyTorch's for the few that are wanted.
    rest, rows, kernels, gains = total.numpy(), np.arange(len(total)), [], []
    for _ in range(width):
        kernels.append(rest.argmax(1))
        gains.append(rest[rows, kernels[-1]])
        rest[rows, kernels[-1]] = -math.inf
    for kernel, gain in zip(kernels, gains, strict=True):  # as it was: cheaper than to work on a copy
        rest[rows, kernel] = gain
    return torch.from_numpy(np.stack(kernels, 1)), torch.from_numpy(np.stack(gains, 1))


def grow(beam: Beam, problem: Problem, children: Children) -> Beam:
    """Carry the extensions out."""
    distance = distances(beam, problem, children.kernel)
    near, carried = [], distance
    for old in beam.near:  # insert the new distance into the ascending list of the nearest ones
        near.append(with_parents(torch.minimum, old, children, carried))
        if len(beam.near) > 1:
            carried = with_parents(torch.maximum, old, children, carried)
    total = with_parents(lambda old, new: new.add_(old), beam.total, children, distance)
    total.scatter_(-1, children.kernel[..., None], -math.inf)
    size = beam.size + 1
    return Beam(beam.group, total, tuple(near), children.inner, children.smooth, size, children.sets)


def with_parents(
    operation: Callable[[Tensor, Tensor], Tensor], state: Tensor, children: Children, new: Tensor
) -> Tensor:
    """operation(state (R, B, m) of each child's branch, new (R, C, m)) -> (R, C, m)."""
    if children.branch is None:  # neighbouring children share a branch: no copy of its state is needed
        parents = state[:, :, None]
        own = new.view(len(new), parents.shape[1], -1, parents.shape[-1])
        return operation(parents.expand_as(own), own).flatten(1, 2)
    rows = torch.arange(len(state))[:, None] * state.shape[1] + children.branch
    # Whole rows are copied, which gather does not do.
    return operation(state.flatten(0, 1).index_select(0, rows.flatten()).view_as(new), new)


def distances(beam: Beam, problem: Problem, kernel: Tensor) -> Tensor:
    """Distances (R, C, n) from the kernels (R, C) to all kernels of their group."""
    rows = beam.group[:, None] * problem.channels + kernel
    return problem.apart.flatten(0, 1).index_select(0, rows.flatten()).view(*kernel.shape, -1)


def cost(beam: Beam, problem: Problem) -> Tensor:
    """Cost (R, B) of every branch's kept set, less what all sets of its size have in common."""
    if beam.sets:
        return released.costs(beam.sets, problem.beta)
    near = beam.near[: beam.size]
    if not near:
        return -beam.inner
    far = sum(near[1:], near[0])
    if len(near) > 1:  # with one neighbour a kept kernel adds nothing, being at distance 0 of itself
        far = far.masked_fill(beam.total == -math.inf, 0)
    return far.sum(-1) * problem.beta - beam.inner


def children_cost(beam: Beam, problem: Problem, children: Children, outer: bool) -> Tensor:
    """Cost (R, C) of every child's kept set, where possible without building its state."""
    if children.sets:
        return released.costs(children.sets, problem.beta, outer)
    if not outer or not beam.near:
        return -children.inner
    if len(beam.near) > 1:
        return cost(grow(beam, problem, children), problem)
    distance = distances(beam, problem, children.kernel)
    far = with_parents(lambda old, new: torch.minimum(old, new, out=new), beam.near[0], children, distance)
    return far.sum(-1) * problem.beta - children.inner


def truncate(
    beam: Beam, problem: Problem, children: Children, width: int, alpha: float, outer: bool
) -> Children:
    """The `width` children of each row with the best weighted rank (Eq. 2)."""
    value, smooth = children_cost(beam, problem, children, outer), children.smooth
    if not problem.released:
        value, smooth = rounded(value), rounded(smooth)
    best = best_first(value, smooth, alpha)[:, :width]
    return Children(
        branch=best // (value.shape[1] // beam.inner.shape[1]),
        kernel=children.kernel.gather(1, best),
        inner=children.inner.gather(1, best),
        smooth=children.smooth.gather(1, best),
        sets=children.sets and children.sets.survivors(best),
    )


def best_first(value: Tensor, smooth: Tensor, alpha: float) -> Tensor:
    """Columns of value and smooth (R, C) from the best to the worst weighted rank (Eq. 2).

    The released chain of stable sorts: all by value, that list by smoothness, that list by the score,
    each descending. A rank is the position in its list, so that the lowest cost has the largest one;
    what ties in a sort stays in the order that the sort before it gave.
    """
    by_value = value.sort(dim=1, descending=True, stable=True).indices
    ranks = smooth.gather(1, by_value).sort(dim=1, descending=True, stable=True).indices
    score = alpha * ranks.double() + (1 - alpha) * torch.arange(value.shape[1]).double()
    best = score.sort(dim=1, descending=True, stable=True).indices
    return by_value.gather(1, ranks.gather(1, best))


def rounded(value: Tensor) -> Tensor:
    """Values (R, C) without the last digits of their row, so that one set reached in two orders ties."""
    return (value / value.abs().amax(1, keepdim=True).clamp_min(1e-300) * TIE).round()


def distinct(beam: Beam) -> Beam:
    """One row for each group and tuple of kept sets: equal sets have equal futures."""
    kept = (beam.total == -math.inf).flatten(1)
    bits = torch.tensor([1 << bit for bit in range(32)])
    words = F.pad(kept, (0, -kept.shape[1] % 32)).view(len(kept), -1, 32)
    keys = torch.cat([beam.group[:, None], (words * bits).sum(-1)], 1)
    _, label = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.arange(len(keys))
    first = torch.full((int(label.max()) + 1,), len(keys)).scatter_reduce(0, label, rows, "amin")
    return beam.rows(first.sort().values) if len(first) < len(keys) else beam


def decide(finals: list[Beam], problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The final arena: of all branches of a group, the first of least cost (or smoothest)."""
    value = [cost(beam, problem) if decision == "cost" else beam.smooth for beam in finals]
    values = torch.cat([each.flatten() for each in value])
    group = torch.cat([beam.group.repeat_interleave(beam.inner.shape[1]) for beam in finals])
    kept = torch.cat([(beam.total == -math.inf).flatten(0, 1) for beam in finals])
    best = torch.stack(
        [torch.where(group == g, values, math.inf).argmin() for g in range(len(problem.distance))]
    )
    chosen = kept[best].nonzero()[:, 1].view(len(best), problem.keep)
    return chosen, set_cost(problem, chosen)
