"""How far a search is from the set of least cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gkp.search import exact
from gkp.search.exact import Optimum
from gkp.search.objective import Problem, grouped_kernel_distance, resolve_beta, set_cost
from gkp.search.selection import Selection, select


def gaps(weight: Tensor, *, seconds: float = 60.0, **options: Any) -> tuple[Tensor, Optimum]:
    """By how much the choice of a search costs more than the optimum of Eq. 3, relative to it: (groups,).

    weight: (O, I, kh, kw); options: of `gkp.search.select`, whatever they search for: what they choose is
    valued by Eq. 3 with its own beta. seconds: for the proof of each group. And the optimum: where it is not
    `proved`, the gap is to the best set known, and the true one larger by `gap` at most.
    """
    selection = select(weight, **options)
    problem = eq3_problem(weight, selection)
    optimum = exact.solve(problem, seconds)
    return (set_cost(problem, selection.kept) - optimum.cost) / optimum.cost.abs(), optimum


def eq3_problem(weight: Tensor, selection: Selection) -> Problem:
    """Eq. 3 with its own beta for the groups of a selection from `weight` (O, I, kh, kw)."""
    order, keep = selection.filter_order.view(selection.groups, -1), selection.kept.shape[1]
    distance = grouped_kernel_distance(weight.detach().double().cpu(), order)
    channels = distance.shape[1]
    beta = resolve_beta("exact", channels, keep, keep, 1)
    return Problem(distance, distance.new_zeros(len(order), channels), keep, beta, 1)
