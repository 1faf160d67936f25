"""The kept set of least cost, proved: Eq. 3 with one neighbour as an integer program.

With x_u = 1 for a kept kernel u and z_pu = 1 where u is the kept kernel nearest to p, the cost is, but for a
constant,

    beta * sum_pu d(p, u) z_pu - 1/2 sum_u w_u,    w_u = x_u * sum_v d(u, v) x_v

The product w_u stays linear by two bounds: it is at most x_u times the largest sum of `keep` - 1 distances,
and at most sum_v d(u, v) x_v, less the smallest sum of `keep` distances where u is not kept. HiGHS does the
rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gkp.search.objective import Problem, set_cost

PROVED = 1e-6  # relative gap at which a set counts as optimal


@dataclass(frozen=True)
class Optimum:
    """What is known of the least cost of each group: all (G,) but `kept`.

    kept: (G, keep) the best set found, ascending. cost: its cost. bound: no set of the group costs less.
    proved: whether the set is optimal, to a relative `PROVED`; else the time ran out.
    """

    kept: Tensor
    cost: Tensor
    bound: Tensor
    proved: Tensor

    @property
    def gap(self) -> Tensor:
        """(G,) how much less than `cost` the least cost may be, relative to it."""
        return (self.cost - self.bound) / self.cost.abs().clamp_min(1e-12)


def solve(problem: Problem, seconds: float = 60.0) -> Optimum:
    """The best set of every group within so many seconds for each; ValueError for what Eq. 3 is not.

    A group of 32 kernels takes about a second, one of 64 may take minutes.
    """
    if problem.neighbours != 1 or problem.beta < 0:
        raise ValueError(
            f"neighbours={problem.neighbours} and beta={problem.beta:g}: the integer program compares with "
            "one neighbour and weighs by 0 or more; beyond, only sets that can be listed are searched exactly"
        )
    if not seconds > 0:
        raise ValueError(f"seconds={seconds}: give the time for a group, more than 0")
    solutions = [
        _solved(distance.numpy(), problem.keep, problem.beta, seconds) for distance in problem.distance
    ]
    kept = torch.stack([kernels for kernels, _ in solutions])
    cost = set_cost(problem, kept)
    pruned = problem.channels - problem.keep
    constant = math.comb(problem.keep, 2) - problem.beta * pruned  # the ones of the similarities 1 - d
    bound = torch.tensor([least for _, least in solutions], dtype=torch.float64) + constant
    # Both stand for the same number once the solver is done, but for its tolerances.
    return Optimum(kept, cost, bound.minimum(cost), cost - bound <= PROVED * cost.abs().clamp_min(1.0))


def _solved(distance: np.ndarray, keep: int, beta: float, seconds: float) -> tuple[Tensor, float]:
    """The best set (keep,) of one group, distance (n, n), and the bound on the cost less its constant."""
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(distance)
    ascending = np.sort(distance, 1)
    most, least = ascending[:, n - keep + 1 :].sum(1), ascending[:, :keep].sum(1)
    identity, wide_zeros = sparse.eye_array(n), sparse.coo_array((n, n * n))
    nearest = sparse.kron(identity, np.ones((1, n)))  # sum_u z_pu of each p
    kept_ones = sparse.kron(np.ones((n, 1)), identity)  # x_u of each pair p, u
    to_itself = sparse.coo_array((np.ones(n), (np.arange(n), np.arange(n) * (n + 1))), (n, n * n))  # z_uu
    zeros = sparse.coo_array((n, n))

    def rows(*blocks: sparse.sparray) -> sparse.csc_array:
        return sparse.csc_array(sparse.hstack(blocks))

    constraints = [
        LinearConstraint(np.repeat((1.0, 0.0), (n, n + n * n))[None], keep, keep),
        LinearConstraint(rows(-sparse.diags_array(most), identity, wide_zeros), ub=0),
        LinearConstraint(rows(sparse.coo_array(-distance - np.diag(least)), identity, wide_zeros), ub=-least),
        LinearConstraint(rows(zeros, zeros, nearest), 1, 1),
        LinearConstraint(rows(-kept_ones, wide_zeros.T, sparse.eye_array(n * n)), ub=0),
        LinearConstraint(rows(-identity, zeros, to_itself), 0, 0),  # a kept kernel is nearest to itself
    ]
    solution = milp(
        np.concatenate([np.zeros(n), np.full(n, -0.5), beta * distance.ravel()]),
        integrality=np.repeat((1, 0), (n, n + n * n)),
        bounds=Bounds(0, np.concatenate([np.ones(n), most, np.ones(n * n)])),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": PROVED / 10},
    )
    # Out of time before there was any set: the kernels that are farthest from all others.
    score = distance.sum(1) if solution.x is None else solution.x[:n]
    kept = torch.from_numpy(np.sort(np.argsort(-score, kind="stable")[:keep]))
    return kept, -math.inf if solution.mip_dual_bound is None else solution.mip_dual_bound
