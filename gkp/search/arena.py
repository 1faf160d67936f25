"""The whole search: beams from many kernels of every group, and the best of all they end with."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gkp.search import beam, window
from gkp.search.beam import Beam, Rule
from gkp.search.objective import Problem, set_cost

CHUNK = 1 << 20  # elements of a state tensor that are searched together
WIDE = 96  # channels from which on a group is searched alone, by the kernels that matter


def search(problem: Problem, rule: Rule, decision: str, starts: int | None = None) -> tuple[Tensor, Tensor]:
    """Beam search from kernels of every group; returns kept (G, keep) and cost (G,).

    starts: from how many kernels, spread evenly over the channels; None for all of them.
    """
    groups, channels = problem.smooth.shape
    wide = channels >= WIDE and not problem.released
    if wide and groups > 1:
        alone = [
            replace(problem, distance=problem.distance[g, None], smooth=problem.smooth[g, None])
            for g in range(groups)
        ]
        kept, cost = zip(*(search(each, rule, decision, starts) for each in alone), strict=True)
        return torch.cat(kept), torch.cat(cost)
    count = min(starts or channels, channels)
    group = torch.arange(groups).repeat_interleave(count)
    first = (torch.arange(count) * channels // count).repeat(groups)
    branches = rule.width ** min(rule.check_step, problem.keep) if problem.released else rule.width
    finals = []
    for chunk in torch.split(torch.arange(len(first)), max(1, CHUNK // (channels * branches))):
        state, columns = beam.start(problem, group[chunk], first[chunk]), channels // 4
        while state.size < problem.keep:
            steps = min(rule.check_step, problem.keep - state.size)
            if wide:
                state, columns = window.extended(state, problem, steps, rule, columns)
            else:
                state = beam.extended(state, problem, steps, rule)
        finals.append(state)
    return decide(finals, problem, decision)


def decide(finals: list[Beam], problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The final arena: of all branches of a group, the first of least cost (or smoothest)."""
    branches = [state.rows.flatten() for state in finals]
    value = [beam.cost(state, problem) if decision == "cost" else state.smooth for state in finals]
    values = torch.cat([each[own] for each, own in zip(value, branches, strict=True)])
    group = torch.cat([state.group[own] for state, own in zip(finals, branches, strict=True)])
    kept = torch.cat([state.roots.kept[own] for state, own in zip(finals, branches, strict=True)])
    best = torch.stack(
        [torch.where(group == g, values, math.inf).argmin() for g in range(len(problem.distance))]
    )
    chosen = kept[best].nonzero()[:, 1].view(len(best), problem.keep)
    return chosen, set_cost(problem, chosen)
