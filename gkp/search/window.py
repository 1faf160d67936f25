"""A few steps of the beam in a wide group, by the few of its kernels that may be taken in them.

Between two truncations a branch takes some of the kernels that are farthest from all it has. So the tree of
branches is grown on these columns of the group's distances alone, and only what survives is carried out on
all. Whether the columns held every kernel that should have been taken is proved afterwards, by a bound on how
far the others can have come: what survives is always what survives of all columns.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gkp.search import beam as beams
from gkp.search.beam import Beam, Rule
from gkp.search.objective import Problem

SLACK = 1e-9  # relative, more than what rounding does to a bound


def extended(beam: Beam, problem: Problem, steps: int, rule: Rule, count: int) -> tuple[Beam, int]:
    """`beam.extended` of one group by some `count` kernels, and a count for the next steps."""
    channels = problem.channels
    if 2 * count > channels:
        return beams.extended(beam, problem, steps, rule), channels // 2
    top = beam.total.amax(1)
    # How near to the top of its set a kernel may stand: a step adds no more than its largest distance.
    bound = (beam.total - top[:, None]).amax(0) + torch.arange(steps)[:, None] * problem.apart[0].amax(0)
    order = bound[-1].sort(descending=True).indices
    # Row t, column c: in step t no kernel stands higher than this but for the first c.
    rest = bound[:, order].flip(1).cummax(1).values.flip(1) + SLACK * top.amax()
    found, least = grown(beam, problem, steps, rule, order[:count].sort().values, top)
    if not (least > rest[:, count]).all():
        return beams.extended(beam, problem, steps, rule), 2 * count
    needed = int((rest >= least[:, None]).sum(1).max())
    return carried_out(beam, problem, found), 4 + needed + needed // 4


def grown(
    beam: Beam, problem: Problem, steps: int, rule: Rule, columns: Tensor, top: Tensor
) -> tuple[Beam, Tensor]:
    """The beam after `steps` extensions by the kernels `columns`, of which alone it has the totals.

    And for each step the smallest total of a kernel that was proposed, less `top` of its root: (steps,).
    """
    table = problem.apart[0].index_select(1, columns)
    place = torch.zeros(problem.channels, dtype=torch.int64).scatter_(0, columns, torch.arange(len(columns)))
    beam = replace(beam, total=beam.total.index_select(1, columns))
    least = []
    for step in range(1, steps + 1):
        kernel, gain = beams.farthest(beam.total, min(rule.width, problem.channels - beam.size))
        least.append((gain[:, -1] - top[beam.root]).min())
        children = beams.offspring(beam, problem, columns[kernel], gain)
        children = beams.distinct(children, problem, beam.group[children.parent])
        if step == rule.check_step:
            children = beams.truncate(beam, problem, children, rule)
        total = beams.added(beam.total, children.parent, table, children.kernel)
        total[torch.arange(len(total)), place[children.kernel]] = -math.inf
        beam = beams.successor(beam, children, total)
    return beam, torch.stack(least)


def carried_out(beam: Beam, problem: Problem, found: Beam) -> Beam:
    """`found` with the totals of all kernels, added to those of `beam` in the order of the path."""
    total, parent, every = beam.total, found.root, torch.arange(len(found.root))
    for kernel in found.path.unbind(1):
        total = beams.added(total, parent, problem.apart[0], kernel)
        total[every, kernel] = -math.inf
        parent = every
    return beams.rooted(replace(found, total=total), problem)
