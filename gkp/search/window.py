"""A few steps of the beam in a wide group, by the few of its kernels that matter to them.

Between two truncations a branch takes some of the kernels that are farthest from all it has, and these come
nearest to a few of the pruned ones. So the tree of branches is grown on these columns of the group's
distances alone, and only what survives is carried out on all. Whether the columns did contain every kernel
that could have been taken is checked afterwards: the choice is always the one that all columns give.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gkp.search import beam as beams
from gkp.search.beam import Beam, Rule
from gkp.search.objective import Problem

WIDE = 96  # channels from which on it is worth it
SLACK = 1e-9  # relative, more than what rounding does to a bound


def extended(beam: Beam, problem: Problem, steps: int, rule: Rule, count: int) -> tuple[Beam, int]:
    """`beam.extended` for a beam of one group, by some `count` kernels to take; and a count for the next steps."""
    alone, beam = of_group(problem, int(beam.group[0])), beam.rooted()
    assert beam.top is not None
    # How near to the top of its set a kernel may be: a step adds no more than its largest distance.
    bound = (beam.total - beam.top[:, None]).amax(0) + torch.arange(steps)[:, None] * alone.apart[0].amax(0)
    order = bound[-1].sort(descending=True).indices
    # Row t, column c: no kernel but the first c stands higher in step t.
    rest = bound[:, order].flip(1).cummax(1).values.flip(1) + SLACK * beam.top.amax()
    if count < problem.channels:
        columns = mattering(beam, alone, order[:count], rule.outer)
        if 2 * len(columns) < problem.channels:
            found = beams.extended(*narrowed(beam, alone, columns, rule.outer), steps, rule)
            if (torch.tensor(found.least, dtype=torch.float64) > rest[:, count]).all():
                return carried_out(beam, problem, columns, found), enough(rest, found)
    found = beams.extended(beam, problem, steps, rule)
    return found, enough(rest, found)


def enough(rest: Tensor, found: Beam) -> int:
    """How many kernels would have done, and some more, because the next steps differ a little."""
    needed = (rest >= torch.tensor(found.least, dtype=torch.float64)[:, None]).sum(1).max()
    return min(rest.shape[1], 4 + int(1.25 * int(needed)))


def of_group(problem: Problem, group: int) -> Problem:
    """The problem of one group alone."""
    return replace(problem, distance=problem.distance[group, None], smooth=problem.smooth[group, None])


def mattering(beam: Beam, alone: Problem, candidates: Tensor, outer: bool) -> Tensor:
    """The candidates, and the kernels to which one of them comes nearer than a set's kept ones: ascending."""
    matters = torch.zeros(alone.channels, dtype=torch.bool)
    if beam.near and outer:
        matters = alone.apart[0, candidates].amin(0) < beam.near[-1].amax(0)
    return matters.index_fill(0, candidates, True).nonzero()[:, 0]


def narrowed(beam: Beam, alone: Problem, columns: Tensor, outer: bool) -> tuple[Beam, Problem]:
    """What the `columns` show of the beam and its group."""
    near = tuple(each.index_select(1, columns) for each in beam.near) if outer else ()
    total, beyond = beam.total.index_select(1, columns), None
    if near:
        size = beam.size
        beyond = beams.separation(beam.near[:size], beam.total) - beams.separation(near[:size], total)
    shown = replace(beam, group=torch.zeros_like(beam.group), total=total, near=near, beyond=beyond)
    part = replace(
        alone,
        distance=alone.distance[:, columns[:, None], columns],
        smooth=alone.smooth[:, columns],
        names=columns,
        hidden=alone.channels - len(columns),
    )
    return shown, part


def carried_out(beam: Beam, problem: Problem, columns: Tensor, found: Beam) -> Beam:
    """`beam` after the extensions by which `found` was reached."""
    root, *kernels = found.path.unbind(1)
    group = beam.group[root]
    state = replace(beam, group=group)
    for step, kernel in enumerate(kernels):
        parent = torch.arange(len(root)) if step else root
        lines = group * problem.channels + columns[kernel]
        state = replace(
            state,
            near=beams.neighbours(state, problem, parent, lines),
            total=beams.with_parents(torch.add, state.total, parent, problem, lines),
        )
        state.total[torch.arange(len(root)), columns[kernel]] = -math.inf
    return replace(found, group=group, total=state.total, near=state.near, beyond=None)
