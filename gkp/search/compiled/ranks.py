"""Branches from the best to the worst weighted rank (Eq. 2), the order of `gkp.search.beam.best_first`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gkp.search.compiled.how import as_written

RUN = 32  # values that are sorted by insertion


class Ranking(NamedTuple):
    """Room for the intermediate results of C branches: to ask for it anew takes as long as to use it."""

    value: np.ndarray
    smooth: np.ndarray
    score: np.ndarray
    by_value: np.ndarray
    rank: np.ndarray
    best: np.ndarray  # (C,) the result: places of the branches, best first
    merged: np.ndarray


@as_written
def ranking(count: int) -> Ranking:
    value, smooth, score = np.empty(count), np.empty(count), np.empty(count)
    by_value, rank = np.empty(count, np.int64), np.empty(count, np.int64)
    best, merged = np.empty(count, np.int64), np.empty(count, np.int64)
    return Ranking(value, smooth, score, by_value, rank, best, merged)


@as_written
def rank(
    cost: np.ndarray,
    smooth: np.ndarray,
    child: np.ndarray,
    branches: int,
    shares: np.ndarray,
    tie: float,
    order: Ranking,
) -> None:
    """Leave in order.best how the branches rank by the cost and smoothness of their child (C,)."""
    for b in range(branches):
        order.value[b], order.score[b] = cost[child[b]], smooth[child[b]]
    _round(order.value, branches, tie)
    _round(order.score, branches, tie)
    _descending(order.value, branches, order.by_value, order.merged)
    for b in range(branches):
        order.smooth[b] = order.score[order.by_value[b]]
    _descending(order.smooth, branches, order.rank, order.merged)
    for b in range(branches):
        order.score[b] = shares[0, order.rank[b]] + shares[1, b]
    _descending(order.score, branches, order.best, order.merged)
    for b in range(branches):
        order.best[b] = order.by_value[order.rank[order.best[b]]]


@as_written
def _round(value: np.ndarray, count: int, tie: float) -> None:
    largest = 1e-300
    for place in range(count):
        largest = max(largest, abs(value[place]))
    for place in range(count):
        value[place] = np.rint(value[place] / largest * tie)


@as_written
def _descending(value: np.ndarray, count: int, order: np.ndarray, merged: np.ndarray) -> None:
    """The stable descending order of the first values, by insertion into runs that are merged."""
    for place in range(count):
        at = place
        while at % RUN and value[order[at - 1]] < value[place]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = place
    length = RUN
    while length < count:
        for low in range(0, count, 2 * length):
            left, middle, high = low, min(low + length, count), min(low + 2 * length, count)
            right = middle
            for place in range(low, high):
                if left < middle and (right == high or value[order[left]] >= value[order[right]]):
                    merged[place] = order[left]
                    left += 1
                else:
                    merged[place] = order[right]
                    right += 1
        for place in range(count):
            order[place] = merged[place]
        length *= 2


def rank_shares(alpha: float, count: int) -> np.ndarray:
    """(2, count): what a rank adds to the score (Eq. 2), of smoothness and of cost.

    Computed here because compiled code may round a product and a sum at once, and scores tie by last bits.
    """
    return np.outer([alpha, 1 - alpha], np.arange(count))
