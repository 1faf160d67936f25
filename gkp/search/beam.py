"""The released beam search, over all groups and all start kernels at once.

From every start kernel each branch grows by the kernels most distant from what it keeps; every
`check_step` extensions the branches of a start are ranked by cost and smoothness (Eq. 2) and the
best few survive. Nothing loops over candidates: a step is a handful of tensor operations.

Most branches arrive at sets where others have been: two kernels are taken in either order. The fast arithmetic
holds each set of a group once, however many branches of whatever starts have it, and once all branches of two
starts have the same sets, one of the two goes: the future of equal sets is equal but for last bits. In the
released arithmetic last bits count, so that every branch is its own; see `gkp.search.released`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gkp.search import released
from gkp.search.objective import Problem
from gkp.search.released import Sets

TIE = 1e9  # values closer than one part in this many count as equal in a rank of the fast arithmetic
BLOCK = 1 << 16  # elements that are worked on together: half a megabyte stays in a core's cache


@dataclass(frozen=True)
class Beam:
    """Kept sets of one size and the branches that have them; a row is one group and one start.

    Of each of the M sets there is the state; what counts as the distance of two kernels is `Problem.apart`.
    """

    rows: Tensor  # (R, B) which set each branch has
    group: Tensor  # (M,) group of each set
    mark: Tensor  # (M,) int64 number that tells sets and groups apart
    total: Tensor  # (M, n) summed distance to the kept kernels, -inf at the kept ones
    near: tuple[Tensor, ...]  # per neighbour, (M, n) ascending distances to the nearest kept kernels
    inner: Tensor  # (M,) summed distance among the kept kernels
    smooth: Tensor  # (M,) summed smoothness of the kept kernels
    size: int  # kept kernels
    path: Tensor  # (M, 1 + t) which set of the last truncation each extends, and the t kernels taken since
    sets: Sets | None = None  # in the released arithmetic, which takes it for `near` and `inner`
    beyond: Tensor | None = None  # (M,) share of the pruned kernels' distances that no extension changes
    top: Tensor | None = None  # (M,) the largest of `total` where the path starts
    least: tuple[float, ...] = ()  # of each step of the path: the smallest total of a proposed kernel, less top

    def rooted(self) -> Beam:
        """The same sets as those that the next path starts from."""
        path = torch.arange(len(self.group))[:, None]
        return replace(self, path=path, top=self.total.amax(1), least=())


@dataclass(frozen=True)
class Children:
    """Extensions of a beam's sets by one kernel each, not yet carried out; all (C,) but for `rows`."""

    rows: Tensor  # (R, B) which child each branch has
    parent: Tensor  # which set grows
    kernel: Tensor  # by which kernel
    mark: Tensor  # of the set afterwards
    inner: Tensor  # summed distance among the kept kernels afterwards
    smooth: Tensor  # summed smoothness afterwards
    sets: Sets | None = None  # those of `Beam.sets` afterwards
    least: tuple[float, ...] = ()  # as `Beam.least`

    def only(self, index: Tensor, rows: Tensor) -> Children:
        """The children `index`, of which the branches have `rows` (R, B)."""
        parent, kernel, mark = self.parent[index], self.kernel[index], self.mark[index]
        inner, smooth = self.inner[index], self.smooth[index]
        return Children(rows, parent, kernel, mark, inner, smooth, self.sets, self.least)


@dataclass(frozen=True)
class Rule:
    """What decides which branches survive, see `gkp.search.select`."""

    width: int
    check_step: int
    alpha: float
    outer: bool


def extended(beam: Beam, problem: Problem, steps: int, rule: Rule) -> Beam:
    """`steps` extensions, at most `check_step`, after which the beam is truncated."""
    for step in range(1, steps + 1):
        children = propose(beam, problem, rule.width)
        if step == rule.check_step:
            children = truncate(beam, problem, children, rule)
        beam = grow(beam, problem, children)
    return beam


def start(problem: Problem, group: Tensor, first: Tensor) -> Beam:
    """Branches that keep a single kernel: group (R,), first (R,)."""
    distance = problem.apart[group, first]
    unset = torch.full_like(distance, math.inf)
    near = (distance, *[unset] * (problem.neighbours - 1)) if problem.neighbours else ()
    own = tuple(each[:, None] for each in near)
    return Beam(
        rows=torch.arange(len(first))[:, None],
        group=group,
        mark=group * released.GOLDEN_RATIO + problem.marks[first],
        total=distance.scatter(-1, first[:, None], -math.inf),
        near=() if problem.released else near,
        inner=torch.zeros(len(first), dtype=distance.dtype),
        smooth=problem.smooth[group, first],
        size=1,
        path=torch.arange(len(first))[:, None],
        sets=released.start(problem.apart, group, first, own) if problem.released else None,
    )


def propose(beam: Beam, problem: Problem, width: int) -> Children:
    """Of every set, the `width` extensions by the kernels farthest from its kept ones, equal ones once."""
    width = min(width, problem.channels + problem.hidden - beam.size)
    kernel, gain = (each.flatten() for each in farthest(beam.total, width))
    parent = torch.arange(len(beam.group)).repeat_interleave(width)
    rows = (beam.rows[..., None] * width + torch.arange(width)).flatten(1)
    children = Children(
        rows=rows,
        parent=parent,
        kernel=kernel,
        mark=beam.mark[parent] + problem.marks[kernel],
        inner=beam.inner[parent] + gain,
        smooth=beam.smooth[parent] + problem.smooth[beam.group[parent], kernel],
        sets=beam.sets and beam.sets.extended(kernel.view(rows.shape)),
        least=() if beam.top is None else (*beam.least, float((gain - beam.top[parent]).min())),
    )
    return children if problem.released else distinct(children, problem.ties[beam.group[parent]])


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


def distinct(children: Children, ties: Tensor) -> Children:
    """One child for each set, the first of those that arrive at it; all of them where ties (C,) holds.

    Where kernels are equal, so are the costs of different sets, and last bits tell which one is chosen.
    """
    own = torch.where(ties, torch.arange(len(ties)), children.mark)
    _, first, place = np.unique(own.numpy(), return_index=True, return_inverse=True)
    return children.only(torch.from_numpy(first), torch.from_numpy(place)[children.rows])


def grow(beam: Beam, problem: Problem, children: Children) -> Beam:
    """Carry the extensions out."""
    group, size = beam.group[children.parent], beam.size + 1
    lines = group * problem.channels + children.kernel
    near = neighbours(beam, problem, children.parent, lines)
    total = with_parents(torch.add, beam.total, children.parent, problem, lines)
    total[torch.arange(len(total)), children.kernel] = -math.inf
    path = torch.cat([beam.path[children.parent], children.kernel[:, None]], 1)
    return replace(
        beam,
        rows=children.rows,
        group=group,
        mark=children.mark,
        total=total,
        near=near,
        inner=children.inner,
        smooth=children.smooth,
        size=beam.size + 1,
        path=path,
        sets=children.sets,
        beyond=None if beam.beyond is None else beam.beyond[children.parent],
        top=None if beam.top is None else beam.top[children.parent],
        least=children.least,
    )


def neighbours(beam: Beam, problem: Problem, parent: Tensor, lines: Tensor) -> tuple[Tensor, ...]:
    """`Beam.near` of the sets `parent` (C,) with one more kernel each, whose distances are `lines` (C,)."""
    if len(beam.near) == 1:
        return (with_parents(torch.minimum, beam.near[0], parent, problem, lines),)
    near, carried = [], problem.apart.flatten(0, 1).index_select(0, lines) if beam.near else None
    for old in beam.near:  # insert the new distance into the ascending list of the nearest ones
        own = old.index_select(0, parent)
        near.append(torch.minimum(own, carried))
        carried = torch.maximum(own, carried)
    return tuple(near)


def with_parents(
    operation: Callable[..., Tensor], state: Tensor, parent: Tensor, problem: Problem, lines: Tensor
) -> Tensor:
    """operation(state (M, n) of each child's parent, distances (C, n) from its kernel) -> (C, n)."""
    apart, found = problem.apart.flatten(0, 1), state.new_empty(len(parent), state.shape[1])
    size = max(1, BLOCK // state.shape[1])
    for part in range(0, len(parent), size):
        own = state.index_select(0, parent[part : part + size])
        operation(own, apart.index_select(0, lines[part : part + size]), out=found[part : part + size])
    return found


def separation(near: tuple[Tensor, ...], total: Tensor) -> Tensor:
    """Summed distances (M,) of the pruned kernels to their nearest kept ones."""
    far = sum(near[1:], near[0])
    if len(near) > 1:  # with one neighbour a kept kernel adds nothing, being at distance 0 of itself
        far = far.masked_fill(total == -math.inf, 0)
    return far.sum(-1)


def cost(beam: Beam, problem: Problem) -> Tensor:
    """Cost (M,) of every kept set, less what all sets of its size have in common."""
    if beam.sets:
        return released.costs(beam.sets, problem.beta).flatten()
    near = beam.near[: beam.size]
    return separation(near, beam.total) * problem.beta - beam.inner if near else -beam.inner


def children_cost(beam: Beam, problem: Problem, children: Children, outer: bool) -> Tensor:
    """Cost (C,) of every child's kept set, without building more of its state than counts."""
    if children.sets:
        return released.costs(children.sets, problem.beta, outer).flatten()
    if not outer or not beam.near:
        return -children.inner
    lines = beam.group[children.parent] * problem.channels + children.kernel
    far = []
    for part in torch.split(torch.arange(len(lines)), max(1, BLOCK // problem.channels)):
        parent, near = children.parent[part], neighbours(beam, problem, children.parent[part], lines[part])
        several = len(near) > 1
        total = beam.total[parent].scatter_(1, children.kernel[part, None], -math.inf) if several else near[0]
        far.append(separation(near[: beam.size + 1], total))
    outside = torch.cat(far) if beam.beyond is None else torch.cat(far) + beam.beyond[children.parent]
    return outside * problem.beta - children.inner


def truncate(beam: Beam, problem: Problem, children: Children, rule: Rule) -> Children:
    """The children of each row with the best weighted rank (Eq. 2); of rows with equal ones, one."""
    value, smooth = (
        each[children.rows] for each in (children_cost(beam, problem, children, rule.outer), children.smooth)
    )
    if not problem.released:
        value, smooth = rounded(value), rounded(smooth)
    best = best_first(value, smooth, rule.alpha)[:, : rule.width]
    rows = children.rows.gather(1, best)
    if children.sets:
        chosen = replace(children, sets=children.sets.survivors(best))
        return chosen.only(rows.flatten(), torch.arange(rows.numel()).view_as(rows))
    tuples = (children.mark[rows] * torch.arange(1, 2 * rows.shape[1], 2)).sum(1)
    first = np.sort(np.unique(tuples.numpy(), return_index=True)[1])
    index, place = torch.unique(rows[torch.from_numpy(first)], return_inverse=True)
    return children.only(index, place)


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
