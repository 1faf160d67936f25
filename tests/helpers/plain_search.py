"""The released method in plain Python, written from the paper's description: slow, and easy to check.

Sections 3.2.1 and 3.2.2 and appendix C.3.1 of the paper, and what is known of the order in which the
released code adds and sorts: similarities pair after pair of the kernels in the order in which they were
taken, pruned kernels in the order of a Python set, smoothness position by position; three stable sorts one
after the other. Every addition is written out, because `sum` of floats is compensated since Python 3.12;
`add` may be another sum, to see what that does to the choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

Grid = list[list[float]]
Add = Callable[[Iterable[float]], float]


def one_by_one(values: Iterable[float]) -> float:
    """Sum from left to right, rounded after every addition."""
    total = 0.0
    for value in values:
        total = total + value
    return total


def roughness_of_position(kernel: Grid, row: int, column: int) -> float:
    """Eq. 1's inner sum: the position against its neighbours, row by row."""
    here, total = kernel[row][column] * kernel[row][column], 0.0
    for r in range(row - 1, row + 2):
        for c in range(column - 1, column + 2):
            inside = 0 <= r < len(kernel) and 0 <= c < len(kernel[0])
            if inside and (r, c) != (row, column):
                total = total + abs(kernel[r][c] * kernel[r][c] - here)
    return total


def smoothness(kernels: list[Grid]) -> float:
    """Eq. 1 of several kernels together."""
    return one_by_one(
        roughness_of_position(kernel, row, column)
        for kernel in kernels
        for row in range(len(kernel))
        for column in range(len(kernel[0]))
    )


def distance(a: list[float], b: list[float]) -> float:
    """Euclidean."""
    return math.sqrt(one_by_one((x - y) * (x - y) for x, y in zip(a, b, strict=True)))


def snake(filters: list[list[Grid]], groups: int) -> list[list[int]]:
    """Filters sorted by smoothness and dealt 0..n-1, n-1..0, 0..n-1 and so on."""
    dealt: list[list[int]] = [[] for _ in range(groups)]
    for place, index in enumerate(sorted(range(len(filters)), key=lambda i: smoothness(filters[i]))):
        turn, seat = divmod(place, groups)
        dealt[seat if turn % 2 == 0 else groups - 1 - seat].append(index)
    return [sorted(group) for group in dealt]


class Costs:
    """Cost of a kept tuple; beta is None until it is first needed, and frozen then."""

    def __init__(self, similarity: Grid, neighbours: int, beta: float | None) -> None:
        self.similarity, self.neighbours, self.beta = similarity, neighbours, beta

    def inner(self, kept: tuple[int, ...]) -> float:
        return one_by_one(self.similarity[u][v] for u, v in itertools.combinations(kept, 2))

    def whole(self, kept: tuple[int, ...]) -> float:
        inner = self.inner(kept)
        if self.neighbours == 0:
            return inner
        pruned = list(set(range(len(self.similarity))) - set(kept))
        nearest = [sorted((self.similarity[p][u] for u in kept), reverse=True) for p in pruned]
        outer = one_by_one(one_by_one(each[: self.neighbours]) for each in nearest)
        if self.beta is None:
            pairs = len(pruned) * self.neighbours
            self.beta = math.comb(len(kept), 2) / pairs if pairs else 0.0
        return inner - outer * self.beta


def best_branches(
    branches: list[tuple[int, ...]],
    cost: Callable[[tuple[int, ...]], float],
    smooth: Callable[[tuple[int, ...]], float],
    alpha: float,
) -> list[tuple[int, ...]]:
    """All branches, the best weighted rank first (Eq. 2): ranks are places in descending order."""
    by_cost = sorted(branches, key=cost, reverse=True)
    by_smoothness = sorted(enumerate(by_cost), key=lambda entry: smooth(entry[1]), reverse=True)
    scored = [
        (alpha * of_cost + (1 - alpha) * of_smoothness, branch)
        for of_smoothness, (of_cost, branch) in enumerate(by_smoothness)
    ]
    return [branch for _, branch in sorted(scored, key=lambda entry: entry[0], reverse=True)]


def keep_in_group(
    columns: list[list[Grid]],
    keep: int,
    *,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: float | None = None,
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
    starts: Iterable[int] | None = None,
    add: Add = one_by_one,
) -> list[int]:
    """Sorted input channels that one group keeps; columns[j]: the kernels of channel j, filter by filter."""
    flat = [[x for kernel in column for row in kernel for x in row] for column in columns]
    similarity = [[1 - distance(a, b) for b in flat] for a in flat]
    rough = [smoothness(column) for column in columns]
    costs = Costs(similarity, neighbours, beta)

    def smooth(kept: tuple[int, ...]) -> float:
        return add(rough[j] for j in kept)

    arena: list[tuple[int, ...]] = []
    for start in range(len(columns)) if starts is None else starts:
        branches = [(start,)]
        for extension in range(1, keep):
            grown = []
            for kept in branches:
                others = [j for j in range(len(columns)) if j not in kept]
                others.sort(key=lambda j: one_by_one(similarity[u][j] for u in kept))  # noqa: B023
                grown += [(*kept, j) for j in others[:beam_width]]
            branches = grown
            if extension % check_step == 0:
                cost = costs.whole if outer_in_beam else costs.inner
                branches = best_branches(branches, cost, smooth, alpha)[:beam_width]
        arena += branches
    return sorted(min(arena, key=costs.whole if decision == "cost" else smooth))


def plain_select(
    weight: torch.Tensor,
    *,
    groups: int = 8,
    rate: float = 0.4375,
    beta: str | float = "reference",
    **options: Any,
) -> tuple[list[int], list[list[int]]]:
    """(filter order, kept channels of each group) of a weight (O, I, kh, kw), as `gkp.search.select`."""
    filters, channels = weight.double().tolist(), weight.shape[1]
    keep = min(int((1 - rate) * (channels + 1)), channels)
    if beta == "exact":
        pairs = (channels - keep) * options.get("neighbours", 1)
        beta = math.comb(keep, 2) / pairs if pairs else 0.0
    order = snake(filters, groups)
    kept = [
        keep_in_group(
            [[filters[i][j] for i in group] for j in range(channels)],
            keep,
            beta=None if beta == "reference" else float(beta),
            **options,
        )
        for group in order
    ]
    return [i for group in order for i in group], kept
