"""The whole search: beams from many kernels of every group, and the best of all they end with.

By loops that Numba compiles, where it is installed and last bits do not count, else by tensors.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gkp.search import beam, objective
from gkp.search.beam import Beam, Rule
from gkp.search.objective import Problem, set_cost

CHUNK = 1 << 19  # elements of a state tensor that are searched together


def search(
    problem: Problem, rule: Rule, decision: str, starts: int | None = None, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """Beam search from kernels of every group; returns kept (G, keep) and cost (G,).

    starts: from how many kernels, spread evenly over the channels; None for all of them. threads: how many
    groups compiled loops search at a time, which do not wait for one another.
    """
    groups, channels = problem.smooth.shape
    count = min(starts or channels, channels)
    first = torch.arange(count) * channels // count
    if objective.compiles() and not problem.released:
        return _compiled(problem, rule, decision, first, threads)
    group, first = torch.arange(groups).repeat_interleave(count), first.repeat(groups)
    branches = rule.width ** min(rule.check_step, problem.keep) if problem.released else rule.width
    finals = []
    for chunk in torch.split(torch.arange(len(first)), max(1, CHUNK // (channels * branches))):
        state = beam.start(problem, group[chunk], first[chunk])
        while state.size < problem.keep:
            steps = min(rule.check_step, problem.keep - state.size)
            state = beam.extended(state, problem, steps, rule)
        finals.append(state)
    return decide(finals, problem, decision)


def _compiled(
    problem: Problem, rule: Rule, decision: str, first: Tensor, threads: int
) -> tuple[Tensor, Tensor]:
    """`search` by `gkp.search.compiled`, from the kernels `first` (m,) of each group."""
    from gkp.search.compiled.branches import search as search_group
    from gkp.search.compiled.ranks import rank_shares

    steps = min(rule.check_step, max(problem.keep - 1, 1))
    shares = rank_shares(rule.alpha, rule.width ** (steps + 1))
    marks, starts, apart, smooth = (
        tensor.numpy() for tensor in (problem.marks, first, problem.apart, problem.smooth)
    )

    def kernels(group: int) -> np.ndarray:
        return search_group(
            apart[group],
            smooth[group],
            marks,
            starts,
            problem.keep,
            float(problem.beta),
            problem.neighbours,
            rule.width,
            rule.check_step,
            shares,
            rule.outer,
            decision == "cost",
            beam.TIE,
        )

    with ThreadPoolExecutor(threads) as pool:
        kept = torch.from_numpy(np.stack(list(pool.map(kernels, range(len(apart))))))
    return kept, set_cost(problem, kept)


def decide(finals: list[Beam], problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The final arena: of all branches of a group, the first of least cost (or smoothest)."""
    indices = [state.rows.flatten() for state in finals]
    valued = [beam.cost(state, problem) if decision == "cost" else state.smooth for state in finals]
    values = torch.cat([value[index] for value, index in zip(valued, indices, strict=True)])
    group = torch.cat([state.group[index] for state, index in zip(finals, indices, strict=True)])
    kept = torch.cat([state.roots.kept[index] for state, index in zip(finals, indices, strict=True)])
    best = torch.stack(
        [torch.where(group == g, values, math.inf).argmin() for g in range(len(problem.distance))]
    )
    chosen = kept[best].nonzero()[:, 1].view(len(best), problem.keep)
    return chosen, set_cost(problem, chosen)
