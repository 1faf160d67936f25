"""The released beam search, over all groups and all start kernels at once.

From every start kernel each branch grows by the kernels most distant from what it keeps; every
`check_step` extensions the branches of a start are ranked by cost and smoothness (Eq. 2) and the
best few survive. Nothing loops over candidates: a step is a handful of tensor operations. In the fast
arithmetic rows (one per group and start) that have arrived at the same sets are merged, because they
have the same future but for last bits; `gkp.released` says what the released arithmetic does instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gkp import released
from gkp.objective import Problem, set_cost

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
    inner: Tensor  # (R, B) summed distance among the kept kernels, in the fast arithmetic
    smooth: Tensor  # (R, B) summed smoothness of the kept kernels
    size: int  # kept kernels
    kept: Tensor  # (R, B, size) kept kernels in the order in which they were taken, released arithmetic only
    shared: tuple[int, int]  # branches after the last truncation, and how many kernels they kept

    def rows(self, index: Tensor) -> Beam:
        """The rows `index` (R',)."""
        tensors = ("group", "total", "inner", "smooth", "kept")
        picked = {name: getattr(self, name)[index] for name in tensors}
        return replace(self, **picked, near=tuple(near[index] for near in self.near))


@dataclass(frozen=True)
class Children:
    """Extensions of a beam's branches by one kernel each, not yet carried out; all (R, C)."""

    branch: Tensor | None  # which branch grows; None: of B branches child c extends the c // (C / B)th
    kernel: Tensor  # by which kernel
    inner: Tensor  # summed distance among the kept kernels afterwards
    smooth: Tensor  # summed smoothness afterwards


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
    for chunk in torch.arange(len(first)).split(rows):
        beam = start(problem, group[chunk], first[chunk])
        for step in range(1, problem.keep):
            children = propose(beam, problem, width)
            if step % check_step:
                beam = grow(beam, problem, children)
            else:
                beam = grow(beam, problem, truncate(beam, problem, children, width, alpha, outer))
                beam = replace(beam, shared=(beam.inner.shape[1], beam.size))
                beam = beam if problem.released else distinct(beam)
        finals.append(beam)
    return decide(finals, problem, decision)


def start(problem: Problem, group: Tensor, first: Tensor) -> Beam:
    """Branches that keep a single kernel: group (R,), first (R,)."""
    distance = problem.apart[group, first][:, None, :]
    unset = torch.full_like(distance, math.inf)
    return Beam(
        group=group,
        total=distance.scatter(-1, first[:, None, None], -math.inf),
        near=(distance, *[unset] * (problem.neighbours - 1)) if problem.neighbours else (),
        inner=torch.zeros(len(first), 1, dtype=distance.dtype),
        smooth=problem.smooth[group, first][:, None],
        size=1,
        kept=first[:, None, None][..., : int(problem.released)],
        shared=(1, 1),
    )


def propose(beam: Beam, problem: Problem, width: int) -> Children:
    """Of every branch, the `width` extensions by the kernels farthest from its kept ones."""
    width = min(width, problem.channels - beam.size)
    rest, kernels, gains = beam.total, [], []
    for turn in range(width):  # repeated maximum: faster than a sort for the few that are wanted
        gain, kernel = rest.max(-1)
        kernels.append(kernel)
        gains.append(gain)
        if turn + 1 < width:
            rest = rest.scatter(-1, kernel[..., None], -math.inf)
    kernel, gain = (torch.stack(each, -1).flatten(1) for each in (kernels, gains))
    return Children(
        branch=None,
        kernel=kernel,
        inner=beam.inner.repeat_interleave(width, 1) + gain,
        smooth=beam.smooth.repeat_interleave(width, 1) + problem.smooth[beam.group[:, None], kernel],
    )


def grow(beam: Beam, problem: Problem, children: Children) -> Beam:
    """Carry the extensions out."""
    distance = distances(beam, problem, children.kernel)
    total = with_parents(torch.add, beam.total, children, distance)
    total.scatter_(-1, children.kernel[..., None], -math.inf)
    near, carried = [], distance
    for old in beam.near:  # insert the new distance into the ascending list of the nearest ones
        near.append(with_parents(torch.minimum, old, children, carried))
        if len(beam.near) > 1:
            carried = with_parents(torch.maximum, old, children, carried)
    return replace(
        beam,
        total=total,
        near=tuple(near),
        inner=children.inner,
        smooth=children.smooth,
        size=beam.size + 1,
        kept=taken(beam, problem, children),
    )


def taken(beam: Beam, problem: Problem, children: Children) -> Tensor:
    """(R, C, size + 1) kernels that the children keep, in the order in which they were taken."""
    if not problem.released:
        return beam.kept[:, :1].expand(-1, children.kernel.shape[1], 0)
    kernel = children.kernel[..., None]
    kept = with_parents(lambda old, _: old, beam.kept, children, kernel.expand(-1, -1, beam.size))
    return torch.cat([kept, kernel], -1)


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
    near = beam.near[: beam.size]
    if not near:
        return -inner_sum(problem, beam, beam.inner, beam.kept)
    far = sum(near[1:], near[0])
    if problem.released or len(near) > 1:  # else a kept kernel adds nothing, being at distance 0 of itself
        far = far.masked_fill(beam.total == -math.inf, 0)
    return outer_sum(problem, far, beam.kept) - inner_sum(problem, beam, beam.inner, beam.kept)


def children_cost(beam: Beam, problem: Problem, children: Children) -> Tensor:
    """Cost (R, C) of every child's kept set, where possible without building its state."""
    if len(beam.near) != 1:
        return cost(grow(beam, problem, children), problem)
    distance = distances(beam, problem, children.kernel)
    far = with_parents(torch.minimum, beam.near[0], children, distance)
    kept = taken(beam, problem, children)
    if problem.released:
        far.view(*beam.total.shape[:2], -1, problem.channels).masked_fill_(
            (beam.total == -math.inf)[:, :, None], 0
        )
        far.scatter_(-1, children.kernel[..., None], 0)
    return outer_sum(problem, far, kept) - inner_sum(problem, beam, children.inner, kept)


def outer_sum(problem: Problem, far: Tensor, kept: Tensor) -> Tensor:
    """beta times the distances (R, C, n) of the pruned kernels, summed; 0 stands at the kept ones."""
    return (released.over_pruned(far, kept) if problem.released else far.sum(-1)) * problem.beta


def inner_sum(problem: Problem, beam: Beam, running: Tensor, kept: Tensor) -> Tensor:
    """Distances among the kernels of sets (R, C) that extend the beam's last survivors, summed."""
    return released.among(problem.apart, beam.group, kept, beam.shared) if problem.released else running


def truncate(
    beam: Beam, problem: Problem, children: Children, width: int, alpha: float, outer: bool
) -> Children:
    """The `width` children of each row with the best weighted rank (Eq. 2)."""
    if outer and beam.near:
        value = children_cost(beam, problem, children)
    else:
        value = -inner_sum(problem, beam, children.inner, taken(beam, problem, children))
    smooth = children.smooth
    if not problem.released:
        value, smooth = rounded(value), rounded(smooth)
    best = best_first(value, smooth, alpha)[:, :width]
    siblings = value.shape[1] // beam.inner.shape[1]
    return Children(
        best // siblings, *(x.gather(1, best) for x in (children.kernel, children.inner, children.smooth))
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
