"""The beam search of `gkp.search.beam`, one start kernel after another.

The same branches in the same order, ranked alike. A set costs a pass over its n kernels to grow and one to
be valued, with nothing in between; the branches of a start are few, so that its sets stay in a core's cache.
Nothing is shared between starts but this: where the branches of one are those of an earlier one, it has the
same future and ends.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gkp.search.compiled.how import compiled
from gkp.search.compiled.ranks import rank, ranking

BLOCK = 64  # values among which the largest is looked for


class Sets(NamedTuple):
    """M sets of one size among n kernels; k neighbours count."""

    total: np.ndarray  # (M, n) summed distance to the kept kernels, -inf at the kept ones
    near: np.ndarray  # (M, k, n) ascending distances to the nearest kept kernels
    mark: np.ndarray  # (M,) int64 number that tells sets apart
    inner: np.ndarray  # (M,) summed distance among the kept kernels
    smooth: np.ndarray  # (M,) summed smoothness of the kept kernels


class Children(NamedTuple):
    """What sets may become, C of them; all (C,)."""

    parent: np.ndarray  # which set grows
    kernel: np.ndarray  # by which kernel
    mark: np.ndarray  # of the set afterwards, as inner and smooth
    inner: np.ndarray
    smooth: np.ndarray
    cost: np.ndarray
    place: np.ndarray  # of the set afterwards among those that are kept


@compiled
def search(
    distance: np.ndarray,
    smooth: np.ndarray,
    marks: np.ndarray,
    starts: np.ndarray,
    keep: int,
    beta: float,
    neighbours: int,
    width: int,
    check_step: int,
    shares: np.ndarray,
    outer: bool,
    by_cost: bool,
    tie: float,
) -> np.ndarray:
    """Kernels (keep,) that one group keeps, ascending: of all branches the first of least cost.

    distance (n, n); smooth (n,); marks (n,) int64 whose sums tell sets apart; starts (m,) kernels to start
    from; beta and neighbours of `gkp.search.objective.Problem`, width, check_step and outer of
    `gkp.search.beam.Rule`; shares of `gkp.search.compiled.ranks.rank_shares`; tie of `gkp.search.beam`.
    """
    most = shares.shape[1] // width  # sets, before the last of the extensions between two truncations
    sets, others = _sets(most, neighbours, len(smooth)), _sets(most, neighbours, len(smooth))
    children, order = _children(most * width), ranking(most * width)
    child = np.empty((most, width), np.int64)  # of each set and extension
    # Of each branch the set, and the child; of each truncation and start what the branches had.
    branch, longer = np.zeros(most * width, np.int64), np.zeros(most * width, np.int64)
    seen = np.empty((keep // check_step + 1, len(starts)), np.int64)
    times = np.zeros(len(seen), np.int64)
    least, kept = math.inf, np.arange(keep)
    for first in starts:
        count, branches, size, truncations, known = 1, 1, 1, 0, False
        _start(sets, distance[first], first, smooth[first], marks[first])
        branch[0] = 0
        while size < keep and not known:
            steps = min(check_step, keep - size)
            for step in range(1, steps + 1):
                taken = min(width, len(smooth) - size)
                different = _proposed(sets, count, taken, child, children, smooth, marks)
                for b in range(branches):
                    for turn in range(taken):
                        longer[b * taken + turn] = child[branch[b], turn]
                branches *= taken
                if step == check_step:
                    _valued(sets, children, different, distance, size, beta, neighbours if outer else 0)
                    rank(children.cost, children.smooth, longer, branches, shares, tie, order)
                    branches = min(width, branches)
                for b in range(branches):
                    branch[b] = longer[order.best[b]] if step == check_step else longer[b]
                count = _grown(sets, others, children, different, branch, branches, distance)
                sets, others = others, sets
                size += 1
            if steps == check_step:
                have = 0
                for b in range(branches):
                    have += sets.mark[branch[b]] * (2 * b + 1)
                for earlier in range(times[truncations]):
                    known = known or seen[truncations, earlier] == have
                seen[truncations, times[truncations]] = have
                times[truncations] += 1
                truncations += 1
        for b in range(0 if known else branches):
            value = sets.smooth[branch[b]]
            if by_cost:
                value = _cost(sets, branch[b], size, beta, neighbours)
            if value < least:
                least, kept = value, np.flatnonzero(sets.total[branch[b]] == -math.inf)
    return kept


@compiled
def _sets(count: int, neighbours: int, channels: int) -> Sets:
    total, near = np.empty((count, channels)), np.empty((count, neighbours, channels))
    return Sets(total, near, np.empty(count, np.int64), np.empty(count), np.empty(count))


@compiled
def _children(count: int) -> Children:
    parent, kernel, mark = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    inner, smooth, cost = np.empty(count), np.empty(count), np.empty(count)
    return Children(parent, kernel, mark, inner, smooth, cost, np.empty(count, np.int64))


@compiled
def _start(sets: Sets, distance: np.ndarray, first: int, smooth: float, mark: int) -> None:
    """Make the first of the sets the one that holds a single kernel."""
    for other in range(len(distance)):
        sets.total[0, other] = distance[other] if other != first else -math.inf
        for order in range(sets.near.shape[1]):
            sets.near[0, order, other] = distance[other] if order == 0 else math.inf
    sets.mark[0], sets.inner[0], sets.smooth[0] = mark, 0.0, smooth


@compiled
def _proposed(
    sets: Sets,
    count: int,
    taken: int,
    child: np.ndarray,
    children: Children,
    smooth: np.ndarray,
    marks: np.ndarray,
) -> int:
    """Of the first `count` sets, the extensions by the `taken` farthest kernels: how many different ones."""
    different, kernels, gains = 0, np.empty(taken, np.int64), np.empty(taken)
    for parent in range(count):
        row = sets.total[parent]
        for turn in range(taken):
            kernels[turn] = _first_largest(row)
            gains[turn] = row[kernels[turn]]
            row[kernels[turn]] = -math.inf
        for turn in range(taken):
            kernel = kernels[turn]
            row[kernel] = gains[turn]
            mark, at = sets.mark[parent] + marks[kernel], 0
            while at < different and children.mark[at] != mark:
                at += 1
            if at == different:
                children.parent[at], children.kernel[at], children.mark[at] = parent, kernel, mark
                children.inner[at] = sets.inner[parent] + gains[turn]
                children.smooth[at] = sets.smooth[parent] + smooth[kernel]
                different += 1
            child[parent, turn] = at
    return different


@compiled
def _first_largest(row: np.ndarray) -> int:
    largest, at = -math.inf, 0
    for block in range(0, len(row), BLOCK):  # loops without a branch run many values at a time
        here = -math.inf
        for place in range(block, min(block + BLOCK, len(row))):
            here = max(here, row[place])
        if here > largest:
            largest, at = here, block
    for place in range(at, len(row)):
        if row[place] == largest:
            return place
    return at


@compiled
def _valued(
    sets: Sets,
    children: Children,
    different: int,
    distance: np.ndarray,
    size: int,
    beta: float,
    neighbours: int,
) -> None:
    """The cost of every child, less what all sets of its size have in common."""
    for at in range(different):
        children.cost[at] = -children.inner[at]
        if neighbours == 0:
            continue
        parent, kernel, far = children.parent[at], children.kernel[at], 0.0
        line = distance[kernel]
        if neighbours == 1:  # a kept kernel adds nothing, being at distance 0 of itself
            nearest = sets.near[parent, 0]
            for other in range(len(line)):
                far += min(nearest[other], line[other])
        else:
            total, near, held = sets.total[parent], sets.near[parent], min(size, neighbours)
            for other in range(len(line)):
                if total[other] == -math.inf or other == kernel:
                    continue
                for order in range(held):
                    far += near[order, other]
                far += line[other] if held < neighbours else min(line[other] - near[held - 1, other], 0.0)
        children.cost[at] += beta * far


@compiled
def _cost(sets: Sets, index: int, size: int, beta: float, neighbours: int) -> float:
    """The cost of a set, less what all sets of its size have in common."""
    far = 0.0
    for order in range(min(size, neighbours)):
        for other in range(sets.total.shape[1]):
            if sets.total[index, other] != -math.inf:
                far += sets.near[index, order, other]
    cost: float = beta * far - sets.inner[index]
    return cost


@compiled
def _grown(
    sets: Sets,
    others: Sets,
    children: Children,
    different: int,
    branch: np.ndarray,
    branches: int,
    distance: np.ndarray,
) -> int:
    """Write those children that a branch has into `others`, renumber the branches, say how many there are."""
    count, place = 0, children.place
    for at in range(different):
        place[at] = -1
    for b in range(branches):
        at = branch[b]
        if place[at] < 0:
            place[at] = count
            parent, kernel = children.parent[at], children.kernel[at]
            line = distance[kernel]
            before, after = sets.total[parent], others.total[count]
            for other in range(len(line)):
                after[other] = before[other] + line[other]
            after[kernel] = -math.inf
            if sets.near.shape[1] == 1:
                nearest, nearer = sets.near[parent, 0], others.near[count, 0]
                for other in range(len(line)):
                    nearer[other] = min(nearest[other], line[other])
            elif sets.near.shape[1]:
                for other in range(len(line)):
                    carried = line[other]
                    for order in range(sets.near.shape[1]):
                        old = sets.near[parent, order, other]
                        others.near[count, order, other] = min(old, carried)
                        carried = max(old, carried)
            others.mark[count], others.inner[count] = children.mark[at], children.inner[at]
            others.smooth[count] = children.smooth[at]
            count += 1
        branch[b] = place[at]
    return count
