"""Which kernels each group keeps: the released beam search, plain greedy and exact enumeration.

In a group of filters, "kernel" j is the grouped kernel GK_j: the slice (O/groups, kh, kw) of input
channel j. With Euclidean distances d between grouped kernels and similarity 1 - d, a kept set V
has the cost

    cost(V) = sum_{u<v in V} sim(u, v) - beta * sum_{p not in V} sum_{m nearest u in V} sim(p, u)

and the search looks for the smallest: kept kernels far from one another, every pruned kernel
close to a kept one (Eq. 3 of the paper with its sign turned). The whole search works on tensors
over all groups and all start kernels at once. Its rows (one per group and start) that have arrived
at the same sets are merged, because they have the same future.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gkp import grouping as groupings
from gkp.smoothness import smoothness

STRATEGIES = ("beam", "greedy", "exact")
GROUPINGS = ("snaking", "random", "contiguous")
MAX_SETS = 3_000_000  # exact enumeration holds a few seconds per group up to here
TIE = 1e9  # values closer than one part in this many count as equal in a rank
MAX_ELEMENTS = 1 << 23  # of a beam's state tensors, so that a 512-channel layer fits in memory


@dataclass(frozen=True)
class Selection:
    """What a layer keeps.

    filter_order: (O,) original filter index at each position; consecutive runs of O/groups form a group.
    kept: (groups, keep) input channels each group keeps, ascending.
    cost: (groups,) cost of the kept sets, float64.
    """

    filter_order: Tensor
    kept: Tensor
    cost: Tensor

    @property
    def groups(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class Problem:
    """One layer's groups as the search sees them: distances (G, n, n), smoothness (G, n), the knobs."""

    distance: Tensor
    smooth: Tensor
    keep: int
    beta: float
    neighbours: int

    @property
    def channels(self) -> int:
        return self.distance.shape[-1]


def select(
    weight: Tensor,
    *,
    groups: int = 8,
    rate: float = 0.4375,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: str | float = "reference",
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
    strategy: str = "beam",
    grouping: str | Tensor = "snaking",
    variant: str = "squared",
    generator: torch.Generator | None = None,
) -> Selection:
    """Group the filters of a convolution and choose the input channels that each group keeps.

    weight: (O, I, kh, kw), O divisible by `groups`. rate: fraction of kernels to remove, in (0, 1);
    each group keeps int((1 - rate) * (I + 1)), as the released code does. beam_width: branches kept
    per start kernel. check_step: extensions between two truncations of the beam. alpha: weight of
    the cost rank against the smoothness rank (Eq. 2). beta: "reference" (fixed by the sizes at its
    first use, as in the released code), "exact" (Eq. 3) or a number. neighbours: how many nearest
    kept kernels a pruned one is compared with; 0 drops the term. outer_in_beam: whether that term
    counts while the beam is truncated. decision: "cost", or "smoothness" alone, picks the final set.
    strategy: "beam"; "greedy" (one branch per start); "exact" (all sets, up to 3 million).
    grouping: "snaking", "random" (needs `generator`), "contiguous", or (groups, O/groups) indices.
    variant: of the smoothness, see `gkp.smoothness`.

    Returns a `Selection` on the CPU. ValueError for anything out of range.
    """
    _check(weight, rate, beam_width, check_step, alpha, neighbours, decision, strategy, beta)
    weight = weight.detach().double().cpu()
    order = _group(weight, groups, grouping, variant, generator)
    channels = weight.shape[1]
    keep = kept_count(channels, rate)
    first_use = 1 + check_step if strategy == "beam" and outer_in_beam and check_step < keep else keep
    problem = Problem(
        distance=grouped_kernel_distance(weight, order),
        smooth=smoothness(weight, variant)[order].sum(1),
        keep=keep,
        beta=resolve_beta(beta, channels, keep, first_use, neighbours),
        neighbours=neighbours,
    )
    if strategy == "exact":
        kept, cost = _enumerate(problem, decision)
    else:
        width = 1 if strategy == "greedy" else beam_width
        kept, cost = _search(problem, width, check_step, alpha, outer_in_beam, decision)
    return Selection(order.flatten(), kept, cost)


def kept_count(channels: int, rate: float) -> int:
    """How many input channels a group keeps: int((1 - rate) * (channels + 1)), at most all of them."""
    keep = min(int((1 - rate) * (channels + 1)), channels)
    if keep < 1:
        raise ValueError(f"rate={rate} keeps no kernel of {channels} input channels: choose a smaller rate")
    return keep


def resolve_beta(beta: str | float, channels: int, keep: int, first_use: int, neighbours: int) -> float:
    """The weight of the pruned-kernel term: the number of pairs in the first sum over that in the second.

    "exact" counts them for the final set, C(keep, 2) / pruned with one neighbour (Eq. 3). "reference"
    counts them for the first sets that the released code evaluates (`first_use` kernels kept), and
    stays frozen from then on.
    """
    if isinstance(beta, (int, float)):
        return float(beta)
    size = keep if beta == "exact" else first_use
    pairs = (channels - size) * min(neighbours, size)
    return math.comb(size, 2) / pairs if pairs else 0.0


def grouped_kernel_distance(weight: Tensor, order: Tensor) -> Tensor:
    """Euclidean distances between the grouped kernels: weight (O, I, kh, kw), order (G, O/G) -> (G, I, I)."""
    vectors = weight[order].transpose(1, 2).flatten(2)
    # Differences, not the matrix-multiplication shortcut: two equal kernels are at distance 0 exactly.
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def set_cost(problem: Problem, kept: Tensor) -> Tensor:
    """Cost of one kept set per group, kept (G, keep) -> (G,). Written directly from the definition."""
    rows = torch.arange(len(kept))[:, None]
    chosen = torch.zeros_like(problem.smooth, dtype=torch.bool)
    chosen[rows, kept] = True
    similarity = 1 - problem.distance
    among = similarity[rows[..., None], kept[:, :, None], kept[:, None, :]]
    inner = torch.triu(among, 1).sum((1, 2))
    if problem.neighbours == 0 or problem.beta == 0:
        return inner
    to_kept = similarity.masked_fill(~chosen[:, None, :], -math.inf)
    nearest = to_kept.topk(min(problem.neighbours, kept.shape[1]), dim=2).values.sum(2)
    return inner - problem.beta * nearest.masked_fill(chosen, 0).sum(1)


@dataclass(frozen=True)
class _Beam:
    """State of every branch. Leading dimensions (rows, branches); a row is one group and one start."""

    group: Tensor  # (R,) group of each row
    total: Tensor  # (R, B, n) summed distance to the kept kernels, -inf at the kept ones
    near: tuple[Tensor, ...]  # per neighbour, (R, B, n) ascending distances to the nearest kept kernels
    inner: Tensor  # (R, B) summed distance among the kept kernels
    smooth: Tensor  # (R, B) summed smoothness of the kept kernels
    size: int  # kept kernels

    def cost(self, problem: Problem, outer: bool) -> Tensor:
        cost = math.comb(self.size, 2) - self.inner
        if not outer or not self.near or problem.beta == 0:
            return cost
        used = self.near[: self.size]
        pruned = self.total != -math.inf
        pairs = (problem.channels - self.size) * len(used)
        return cost - problem.beta * (pairs - torch.where(pruned, sum(used[1:], used[0]), 0).sum(-1))

    def take(self, branch: Tensor) -> _Beam:
        """The branches (R, B') of each row."""
        wide = branch[..., None].expand(-1, -1, self.total.shape[-1])
        return replace(
            self,
            total=self.total.gather(1, wide),
            near=tuple(near.gather(1, wide) for near in self.near),
            inner=self.inner.gather(1, branch),
            smooth=self.smooth.gather(1, branch),
        )

    def distinct(self) -> _Beam:
        """One row for each group and tuple of kept sets: equal sets have equal futures."""
        kept = (self.total == -math.inf).flatten(1)
        weights = torch.tensor([1 << bit for bit in range(32)])
        words = torch.nn.functional.pad(kept, (0, -kept.shape[1] % 32)).view(len(kept), -1, 32)
        keys = torch.cat([self.group[:, None], (words * weights).sum(-1)], 1)
        _, label = torch.unique(keys, dim=0, return_inverse=True)
        rows = torch.arange(len(keys))
        first = torch.full((int(label.max()) + 1,), len(keys)).scatter_reduce(0, label, rows, "amin")
        first = first.sort().values
        return replace(
            self,
            group=self.group[first],
            total=self.total[first],
            near=tuple(near[first] for near in self.near),
            inner=self.inner[first],
            smooth=self.smooth[first],
        )


def _start(problem: Problem, group: Tensor, start: Tensor) -> _Beam:
    """Branches of a single kernel: group (R,), start (R,)."""
    distance = problem.distance[group, start][:, None, :]
    total = distance.clone()
    total[torch.arange(len(start)), 0, start] = -math.inf
    unset = torch.full_like(distance, math.inf)
    near = (distance, *(unset for _ in range(problem.neighbours - 1))) if problem.neighbours else ()
    zeros = torch.zeros(len(start), 1, dtype=distance.dtype)
    return _Beam(group, total, near, zeros, problem.smooth[group, start][:, None], 1)


def _extend(beam: _Beam, problem: Problem, width: int) -> _Beam:
    """Every branch grows by the `width` kernels farthest from its kept ones (summed distance)."""
    width = min(width, problem.channels - beam.size)
    rest, picks, gains = beam.total, [], []
    for turn in range(width):
        gain, pick = rest.max(-1)
        picks.append(pick)
        gains.append(gain)
        if turn + 1 < width:
            rest = rest.scatter(-1, pick[..., None], -math.inf)
    pick, gain = (torch.stack(each, -1).flatten(1) for each in (picks, gains))

    def repeat(state: Tensor) -> Tensor:
        return state.repeat_interleave(width, 1) if width > 1 else state

    distance = problem.distance[beam.group[:, None], pick]
    near, carried = [], distance
    for old in beam.near:
        old = repeat(old)
        near.append(torch.minimum(old, carried))
        if len(beam.near) > 1:
            carried = torch.maximum(old, carried)
    return _Beam(
        group=beam.group,
        total=(repeat(beam.total) + distance).scatter_(-1, pick[..., None], -math.inf),
        near=tuple(near),
        inner=repeat(beam.inner) + gain,
        smooth=repeat(beam.smooth) + problem.smooth[beam.group[:, None], pick],
        size=beam.size + 1,
    )


def _truncate(beam: _Beam, problem: Problem, width: int, alpha: float, outer: bool) -> _Beam:
    """Keep the `width` branches of each row with the best weighted rank (Eq. 2).

    Ranks are positions in descending order, so that the lowest cost has the largest rank; equal
    values take different positions in the order in which the branches stand.
    """

    def rank(value: Tensor) -> Tensor:
        # The same set reached in two orders must tie, whatever the last bits of its sums are.
        value = (value / value.abs().amax().clamp_min(1e-300) * TIE).round()
        return value.sort(dim=1, descending=True, stable=True).indices.argsort(1).double()

    score = alpha * rank(beam.cost(problem, outer)) + (1 - alpha) * rank(beam.smooth)
    return beam.take(score.sort(dim=1, descending=True, stable=True).indices[:, :width])


def _search(
    problem: Problem, width: int, check_step: int, alpha: float, outer: bool, decision: str
) -> tuple[Tensor, Tensor]:
    """Beam search from every kernel of every group; returns kept (G, keep) and cost (G,)."""
    groups, channels = problem.smooth.shape
    group = torch.arange(groups).repeat_interleave(channels)
    start = torch.arange(channels).repeat(groups)
    rows = max(1, MAX_ELEMENTS // (channels * width ** (check_step + 1)))
    finals = []
    for chunk in torch.arange(len(start)).split(rows):
        beam = _start(problem, group[chunk], start[chunk])
        for step in range(1, problem.keep):
            beam = _extend(beam, problem, width)
            if step % check_step == 0:
                beam = _truncate(beam, problem, width, alpha, outer).distinct()
        finals.append(beam)
    return _decide(finals, problem, decision)


def _decide(finals: list[_Beam], problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The final arena: of all branches of a group, the one of least cost (or smoothest)."""
    cost = torch.cat([beam.cost(problem, outer=True).flatten() for beam in finals])
    smooth = torch.cat([beam.smooth.flatten() for beam in finals])
    group = torch.cat([beam.group.repeat_interleave(beam.inner.shape[1]) for beam in finals])
    kept = torch.cat([(beam.total == -math.inf).flatten(0, 1) for beam in finals])
    value = cost if decision == "cost" else smooth
    best = torch.stack(
        [torch.where(group == g, value, math.inf).argmin() for g in range(len(problem.distance))]
    )
    return kept[best].nonzero()[:, 1].view(len(best), problem.keep), cost[best]


def _enumerate(problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The best of all C(n, keep) sets of every group."""
    sets = math.comb(problem.channels, problem.keep)
    if sets > MAX_SETS:
        raise ValueError(
            f'strategy="exact" would enumerate {sets:,} sets of {problem.keep} among {problem.channels} '
            f'kernels (limit {MAX_SETS:,}): use strategy="beam" for this layer'
        )
    combinations = itertools.combinations(range(problem.channels), problem.keep)
    flat = torch.tensor(list(itertools.chain.from_iterable(combinations)), dtype=torch.int64)
    candidates = flat.view(-1, problem.keep)
    kept, cost = [], []
    for group in range(len(problem.distance)):
        alone = replace(problem, distance=problem.distance[group][None], smooth=problem.smooth[group][None])
        costs = torch.cat([_costs_of_sets(alone, chunk) for chunk in candidates.split(1 << 14)])
        smooth = problem.smooth[group][candidates].sum(1)
        best = (costs if decision == "cost" else smooth).argmin()
        kept.append(candidates[best])
        cost.append(costs[best])
    return torch.stack(kept), torch.stack(cost)


def _costs_of_sets(alone: Problem, candidates: Tensor) -> Tensor:
    """Costs (M,) of many sets (M, keep) of a problem of one group."""
    many = replace(
        alone,
        distance=alone.distance.expand(len(candidates), -1, -1),
        smooth=alone.smooth.expand(len(candidates), -1),
    )
    return set_cost(many, candidates)


def _group(
    weight: Tensor, groups: int, grouping: str | Tensor, variant: str, generator: torch.Generator | None
) -> Tensor:
    if isinstance(grouping, Tensor):
        if not torch.equal(grouping.flatten().sort().values, torch.arange(len(weight))):
            raise ValueError(f"grouping must hold each of the {len(weight)} filters once")
        return grouping.view(groups, -1)
    if grouping == "random":
        if generator is None:
            raise ValueError('grouping="random" needs generator=torch.Generator().manual_seed(...)')
        return groupings.random(weight, groups, generator=generator)
    if grouping == "contiguous":
        return groupings.contiguous(weight, groups)
    if grouping == "snaking":
        return groupings.snaking(weight, groups, variant=variant)
    raise ValueError(f"grouping {grouping!r}: choose one of {', '.join(GROUPINGS)} or give the indices")


def _check(
    weight: Tensor,
    rate: float,
    beam_width: int,
    check_step: int,
    alpha: float,
    neighbours: int,
    decision: str,
    strategy: str,
    beta: str | float,
) -> None:
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape (O, I, kh, kw), got {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError(
            "weight holds NaN or infinite values: the checkpoint is damaged or training diverged"
        )
    check_rate(rate)
    if beam_width < 1 or check_step < 1 or neighbours < 0:
        raise ValueError(
            f"beam_width={beam_width} and check_step={check_step} must be at least 1, "
            f"neighbours={neighbours} at least 0"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: the weight of the cost rank lies in [0, 1]")
    for name, value, choices in (
        ("decision", decision, ("cost", "smoothness")),
        ("strategy", strategy, STRATEGIES),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")
    if isinstance(beta, str) and beta not in ("reference", "exact"):
        raise ValueError(f'beta {beta!r}: choose "reference", "exact" or a number')


def check_rate(rate: float) -> None:
    """ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(
            f"rate={rate}: the fraction to remove lies strictly between 0 and 1, for example 0.4375"
        )
