"""The released search written out in plain Python loops: an independent reference, slow and easy to check."""

from __future__ import annotations

import itertools
import math

import numpy as np


def kept_by_plain_search(
    vectors: np.ndarray,
    smooth: np.ndarray,
    keep: int,
    *,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: float | None = None,
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
) -> list[int]:
    """Sorted kernels one group keeps; vectors (n, d), smooth (n,). beta None: frozen at its first use."""
    n = len(vectors)
    distance = [[math.dist(a, b) for b in vectors] for a in vectors]
    frozen = {"beta": beta}

    def cost(kept: list[int], outer: bool) -> float:
        total = sum(1 - distance[u][v] for u, v in itertools.combinations(sorted(kept), 2))
        if not outer or neighbours == 0:
            return total
        pruned = [p for p in range(n) if p not in kept]
        nearest = [sorted((1 - distance[p][u] for u in kept), reverse=True)[:neighbours] for p in pruned]
        if frozen["beta"] is None:
            pairs = sum(len(each) for each in nearest)
            frozen["beta"] = math.comb(len(kept), 2) / pairs if pairs else 0.0
        return total - frozen["beta"] * sum(map(sum, nearest))

    def smoothness_of(kept: list[int]) -> float:
        return sum(smooth[j] for j in sorted(kept))

    def survivors(branches: list[list[int]]) -> list[list[int]]:
        ranks = []
        for measure in (lambda kept: cost(kept, outer_in_beam), smoothness_of):
            values = [round(measure(kept), 9) for kept in branches]
            descending = sorted(range(len(values)), key=lambda i: -values[i])
            ranks.append([descending.index(i) for i in range(len(values))])
        score = [alpha * a + (1 - alpha) * b for a, b in zip(*ranks, strict=True)]
        return [branches[i] for i in sorted(range(len(score)), key=lambda i: -score[i])[:beam_width]]

    arena = []
    for start in range(n):
        branches = [[start]]
        for step in range(1, keep):
            grown = []
            for kept in branches:
                far = {c: sum(distance[c][u] for u in kept) for c in range(n) if c not in kept}
                best = sorted(far, key=lambda c: -far[c])[:beam_width]
                grown += [[*kept, c] for c in best]
            branches = survivors(grown) if step % check_step == 0 else grown
        arena += branches
    final = (lambda kept: cost(kept, True)) if decision == "cost" else smoothness_of
    return sorted(min(arena, key=final))
