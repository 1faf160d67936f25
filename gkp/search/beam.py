"""The released beam search, over all groups and all start kernels at once.

From every start kernel each branch grows by the kernels most distant from what it keeps; every
`check_step` extensions the branches of a start are ranked by cost and smoothness (Eq. 2) and the
best few survive. Nothing loops over candidates: a step is a handful of tensor operations.

Most branches arrive at sets where others have been: two kernels are taken in either order. The fast
arithmetic holds each set of a group once, however many branches of whatever starts have it, and once all
branches of two starts have the same sets, one of the two goes: the future of equal sets is equal but for last
bits. In the released arithmetic last bits count, and every branch is its own; see `gkp.search.released`.
"""

from __future__ import annotations

import math
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
class Rule:
    """What decides which branches survive, see `gkp.search.select`."""

    width: int
    check_step: int
    alpha: float
    outer: bool


@dataclass(frozen=True)
class Roots:
    """The K sets that the last truncation left; what counts as distance is `Problem.apart`."""

    near: tuple[Tensor, ...]  # per neighbour, (K, n) ascending distances to the nearest kept kernels
    kept: Tensor  # (K, n) whether it is kept, bool; read with several neighbours only

    def nearer(self, root: Tensor, table: Tensor, lines: Tensor) -> tuple[Tensor, ...]:
        """`near` of sets that extend `root` (C,) by kernels, the `lines` (C, t) of a table of distances."""
        near = [distances.index_select(0, root) for distances in self.near]
        for line in lines.unbind(1) if near else ():
            carried = table.index_select(0, line)
            for order, old in enumerate(near):  # insert the new distance into the ascending list
                near[order] = torch.minimum(old, carried)
                carried = torch.maximum(old, carried) if order + 1 < len(near) else carried
        return tuple(near)


@dataclass(frozen=True)
class Beam:
    """Kept sets of one size and the branches that have them; a row is one group and one start."""

    rows: Tensor  # (R, B) which of the M sets each branch has
    group: Tensor  # (M,) group of each set
    mark: Tensor  # (M,) int64 number that tells sets and groups apart
    total: Tensor  # (M, n) summed distance to the kept kernels, -inf at the kept ones
    inner: Tensor  # (M,) summed distance among the kept kernels
    smooth: Tensor  # (M,) summed smoothness of the kept kernels
    size: int  # kept kernels
    roots: Roots
    root: Tensor  # (M,) which root each extends
    path: Tensor  # (M, t) by which kernels
    sets: Sets | None = None  # in the released arithmetic, which takes it for `roots` and `inner`


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

    def only(self, index: Tensor, rows: Tensor) -> Children:
        """The children `index`, of which the branches have `rows` (R, B)."""
        parent, kernel, mark = self.parent[index], self.kernel[index], self.mark[index]
        return Children(rows, parent, kernel, mark, self.inner[index], self.smooth[index], self.sets)


def start(problem: Problem, group: Tensor, first: Tensor) -> Beam:
    """Branches that keep a single kernel: group (R,), first (R,)."""
    distance, count = problem.apart[group, first], torch.arange(len(first))
    unset = torch.full_like(distance, math.inf)
    near = (distance, *[unset] * (problem.neighbours - 1)) if problem.neighbours else ()
    branch_near = tuple(distances[:, None] for distances in near)
    total = distance.scatter(-1, first[:, None], -math.inf)
    return Beam(
        rows=count[:, None],
        group=group,
        mark=group * released.GOLDEN_RATIO + problem.marks[first],
        total=total,
        inner=torch.zeros(len(first), dtype=distance.dtype),
        smooth=problem.smooth[group, first],
        size=1,
        roots=Roots(() if problem.released else near, total == -math.inf),
        root=count,
        path=first[:, None][:, :0],
        sets=released.start(problem.apart, group, first, branch_near) if problem.released else None,
    )


def extended(beam: Beam, problem: Problem, steps: int, rule: Rule) -> Beam:
    """`steps` extensions, at most `check_step`, after which the beam is truncated."""
    for step in range(1, steps + 1):
        children = propose(beam, problem, rule.width)
        if step == rule.check_step:
            children = truncate(beam, problem, children, rule)
        beam = grow(beam, problem, children)
    return rooted(beam, problem)


def propose(beam: Beam, problem: Problem, width: int, *, merge: bool = True) -> Children:
    """Of every set, the `width` extensions by the kernels farthest from its kept ones.

    merge: hold equal sets once, in the fast arithmetic.
    """
    width = min(width, problem.channels - beam.size)
    kernel, gain = (tensor.flatten() for tensor in farthest(beam.total, width))
    parent = torch.arange(len(beam.group)).repeat_interleave(width)
    group, rows = beam.group[parent], (beam.rows[..., None] * width + torch.arange(width)).flatten(1)
    children = Children(
        rows=rows,
        parent=parent,
        kernel=kernel,
        mark=beam.mark[parent] + problem.marks[kernel],
        inner=beam.inner[parent] + gain,
        smooth=beam.smooth[parent] + problem.smooth[group, kernel],
        sets=beam.sets and beam.sets.extended(kernel.view(rows.shape)),
    )
    return distinct(children, problem, group) if merge and not problem.released else children


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


def distinct(children: Children, problem: Problem, group: Tensor) -> Children:
    """One child for each set, the first of those that arrive at it; all of them in groups that have ties.

    Where kernels are equal, so are the costs of different sets, and last bits tell which one is chosen.
    group: (C,) of the children.
    """
    mark = torch.where(problem.ties[group], torch.arange(len(group)), children.mark)
    _, first, place = np.unique(mark.numpy(), return_index=True, return_inverse=True)
    return children.only(torch.from_numpy(first), torch.from_numpy(place)[children.rows])


def grow(beam: Beam, problem: Problem, children: Children) -> Beam:
    """Carry the extensions out."""
    parent = children.parent
    group, table = beam.group[parent], problem.apart.flatten(0, 1)
    lines, total = (
        group * problem.channels + children.kernel,
        beam.total.new_empty(len(parent), problem.channels),
    )
    for part in parts(len(parent), problem.channels):
        before = beam.total.index_select(0, parent[part])
        torch.add(before, table.index_select(0, lines[part]), out=total[part])
    total[torch.arange(len(total)), children.kernel] = -math.inf
    return replace(
        beam,
        rows=children.rows,
        group=group,
        mark=children.mark,
        total=total,
        inner=children.inner,
        smooth=children.smooth,
        size=beam.size + 1,
        root=beam.root[parent],
        path=torch.cat([beam.path[parent], children.kernel[:, None]], 1),
        sets=children.sets,
    )


def parts(count: int, channels: int) -> list[slice]:
    """0..count-1 in slices that have some `BLOCK` elements in rows of so many channels."""
    size = max(1, BLOCK // max(1, channels))
    return [slice(at, at + size) for at in range(0, count, size)]


def rooted(beam: Beam, problem: Problem) -> Beam:
    """The same sets as the roots of what comes."""
    table, lines = problem.apart.flatten(0, 1), beam.group[:, None] * problem.channels + beam.path
    near = tuple(distances.new_empty(len(lines), problem.channels) for distances in beam.roots.near)
    for part in parts(len(lines), problem.channels):
        nearer = beam.roots.nearer(beam.root[part], table, lines[part])
        for distances, updated in zip(near, nearer, strict=True):
            distances[part] = updated
    roots, root = Roots(near, beam.total == -math.inf), torch.arange(len(beam.group))
    return replace(beam, roots=roots, root=root, path=beam.path[:, :0])


def separation(near: tuple[Tensor, ...], kept: Tensor) -> Tensor:
    """Summed distances (M,) of the pruned kernels to their nearest kept ones, kept (M, n)."""
    far = sum(near[1:], near[0])
    if len(near) > 1:  # with one neighbour a kept kernel adds nothing, being at distance 0 of itself
        far = far.masked_fill(kept, 0)
    return far.sum(-1)


def cost(beam: Beam, problem: Problem) -> Tensor:
    """Cost (M,) of every root's kept set, less what all sets of its size have in common."""
    if beam.sets:
        return released.costs(beam.sets, problem.beta).flatten()
    near = beam.roots.near[: beam.size]
    return separation(near, beam.roots.kept) * problem.beta - beam.inner if near else -beam.inner


def children_cost(beam: Beam, problem: Problem, children: Children, outer: bool) -> Tensor:
    """Cost (C,) of every child's kept set, without building its state."""
    if children.sets:
        return released.costs(children.sets, problem.beta, outer).flatten()
    if not outer or not beam.roots.near:
        return -children.inner
    path = torch.cat([beam.path[children.parent], children.kernel[:, None]], 1)
    roots, root, table = beam.roots, beam.root[children.parent], problem.apart.flatten(0, 1)
    lines = beam.group[children.parent, None] * problem.channels + path
    sums = []
    for part in parts(len(lines), problem.channels):
        near = roots.nearer(root[part], table, lines[part])[: beam.size + 1]
        kept = roots.kept[root[part]].scatter_(1, path[part], True) if len(near) > 1 else roots.kept
        sums.append(separation(near, kept))
    return torch.cat(sums) * problem.beta - children.inner


def truncate(beam: Beam, problem: Problem, children: Children, rule: Rule) -> Children:
    """The children of each row with the best weighted rank (Eq. 2); of rows with equal ones, one."""
    value, smooth = (
        values[children.rows]
        for values in (children_cost(beam, problem, children, rule.outer), children.smooth)
    )
    if not problem.released:
        value, smooth = rounded(value), rounded(smooth)
    best = best_first(value, smooth, rule.alpha)[:, : rule.width]
    rows = children.rows.gather(1, best)
    if children.sets:
        survivors = replace(children, sets=children.sets.survivors(best))
        return survivors.only(rows.flatten(), torch.arange(rows.numel()).view_as(rows))
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
