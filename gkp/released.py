"""Costs with the last bits of the released code's, for `gkp.beam`.

The released search ranks sets by floating-point sums. One set reached in two orders has sums that differ
in the last place, and its ranks see that. To choose what it chooses, the additions are done in its order:
pair after pair of the kept kernels in the order in which they were taken, and pruned kernel after pruned
kernel in the order in which Python's set of them has them. Sets are worked on side by side, pairs are not:
such a sum cannot be continued from that of a smaller set, so that this costs O(keep^2) for each set.

The released code's own choice depends on its Python in one more way: since version 3.12 `sum` of floats
is compensated, which changes the ranks of smoothness that tie but for last bits. Here is Python 3.11's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

GOLDEN_RATIO = -7046029254386353131  # 2**64 divided by it, odd, as int64: multiplying by it scatters bits
BUCKETS = 16  # bits of a hash that are used


@dataclass(frozen=True)
class Sets:
    """Kernels of many sets, in the order in which they were taken; a row is one group and one start.

    Of the C sets of a row C / B neighbours extend the same one of B branches that the last truncation left.
    """

    group: Tensor  # (R,)
    head: Tensor  # (R, B, h) kernels of those branches
    tail: Tensor  # (R, C, t) kernels taken since
    near: tuple[Tensor, ...]  # per neighbour (R, B, n), ascending, what lies between any kernel and the head

    @property
    def size(self) -> int:
        return self.head.shape[-1] + self.tail.shape[-1]

    def extended(self, kernel: Tensor) -> Sets:
        """Each set with each of C' / C more kernels: kernel (R, C')."""
        tail = self.tail.repeat_interleave(kernel.shape[1] // self.tail.shape[1], 1)
        return replace(self, tail=torch.cat([tail, kernel[..., None]], -1))

    def pick(self, index: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Of the sets `index` (M,) among all R * C: group (M,), kernels (M, h + t), `near` (M, n) of them.

        apart (G, n, n).
        """
        rows, count, _ = self.tail.shape
        branch = index // (count // self.head.shape[1])
        group, tail = self.group[index // count], self.tail.flatten(0, 1)[index]
        near = [each.flatten(0, 1).index_select(0, branch) for each in self.near]
        for kernel in tail.unbind(1) if near else ():
            carried = apart.flatten(0, 1).index_select(0, group * apart.shape[-1] + kernel)
            for place, old in enumerate(near):
                near[place] = torch.minimum(old, carried)
                carried = torch.maximum(old, carried) if place + 1 < len(near) else carried
        return group, torch.cat([self.head.flatten(0, 1)[branch], tail], 1), near

    def survivors(self, chosen: Tensor, apart: Tensor) -> Sets:
        """What a truncation leaves that chose `chosen` (R, C') of each row's sets."""
        rows, count, _ = self.tail.shape
        _, kernels, near = self.pick((torch.arange(rows)[:, None] * count + chosen).flatten(), apart)
        head, *lists = (each.view(*chosen.shape, -1) for each in (kernels, *near))
        return Sets(self.group, head, self.tail.new_zeros(*chosen.shape, 0), tuple(lists))


def start(group: Tensor, first: Tensor, near: tuple[Tensor, ...]) -> Sets:
    """Sets of a single kernel: group (R,), first (R,), near (R, 1, n)."""
    return Sets(group, first[:, None, None], first.new_zeros(len(first), 1, 0), near)


def costs(sets: Sets, apart: Tensor, beta: float, outer: bool = True) -> Tensor:
    """Cost (R, C) of the sets: beta times what separates the pruned kernels from them, less `among`.

    apart (G, n, n) holds d - 1, so that the cost is the released one of similarities 1 - d.
    """
    inner = among(sets, apart)
    if not outer or not sets.near:
        return -inner
    # The first sum does not depend on the order in which a set was reached: once for each set will do.
    index, place = distinct(sets, apart.shape[-1])
    _, kernels, near = sets.pick(index, apart)
    near = near[: sets.size]
    far = sum(near[1:], near[0]).scatter_(1, kernels, 0)
    return over_pruned(far, kernels)[place].view_as(inner) * beta - inner


def distinct(sets: Sets, channels: int) -> tuple[Tensor, Tensor]:
    """One of each group's equal sets (M,) among all R * C, and the place among those of each (R * C,).

    By hashing, without a sort. Sets that share a bucket stay apart, so that some may be there twice.
    """
    count = sets.tail.shape[1]
    bits = torch.zeros(channels, -(-channels // 64), dtype=torch.int64)
    kernel = torch.arange(channels)
    bits[kernel, kernel // 64] = 1 << kernel % 64
    words = bits[sets.head].sum(2).repeat_interleave(count // sets.head.shape[1], 1) + bits[sets.tail].sum(2)
    group = sets.group[:, None, None].expand(-1, count, 1)
    words = torch.cat([group, words], -1).flatten(0, 1)
    mixed = torch.zeros(len(words), dtype=torch.int64)
    for word in words.unbind(1):
        mixed = (mixed + word) * GOLDEN_RATIO
        mixed ^= mixed >> 29
    bucket = (mixed * GOLDEN_RATIO >> 64 - BUCKETS) + (1 << BUCKETS - 1)
    own = torch.arange(len(words))
    taken = torch.empty(1 << BUCKETS, dtype=torch.int64)
    taken[bucket] = own
    same = taken[bucket]
    same = torch.where((words[same] == words).all(1), same, own)
    chosen = same == own
    return own[chosen], (chosen.cumsum(0) - 1)[same]


def among(sets: Sets, apart: Tensor) -> Tensor:
    """What separates a set's kernels, summed pair after pair as `itertools.combinations` lists them: (R, C).

    apart (G, n, n).
    """
    rows, branches, common = sets.head.shape
    siblings, recent = sets.tail.shape[1] // branches, sets.tail.shape[2]
    channels, table = apart.shape[-1], apart.flatten().numpy()
    # Kernels first and rows last, (siblings, rows * branches), so that an addition runs over long rows.
    head = sets.head.flatten(0, 1).t().contiguous().numpy()
    tail = sets.tail.view(rows, branches, siblings, recent).permute(3, 2, 0, 1).flatten(2).numpy()
    offset = (sets.group * channels).repeat_interleave(branches).numpy()
    total = np.zeros((siblings, rows * branches))
    for place in range(sets.size - 1):
        if place < common:
            line = (offset + head[place]) * channels
            for distance in table.take(line + head[place + 1 :], mode="clip"):
                total += distance
            following = tail
        else:
            line = (offset + tail[place - common]) * channels
            following = tail[place - common + 1 :]
        for distance in table.take(line + following, mode="clip"):
            total += distance
    return torch.from_numpy(total).view(siblings, rows, branches).permute(1, 2, 0).reshape(rows, -1)


def over_pruned(values: Tensor, kept: Tensor) -> Tensor:
    """Values (M, n), 0 at the kept kernels (M, k), summed in the released order of the others: (M,)."""
    channels, size = values.shape[-1], kept.shape[-1]
    if not ascends(channels, channels - size):
        everything = set(range(channels))
        order = [list(everything - set(one)) for one in kept.tolist()]
        values = values.gather(-1, torch.tensor(order, dtype=torch.int64))
    return values.cumsum(-1)[..., -1] if values.shape[-1] else values.sum(-1)  # sum adds in several lanes


def ascends(channels: int, pruned: int) -> bool:
    """Whether a set of `pruned` of the numbers below `channels` surely lists them in ascending order.

    So it is where CPython's hash table, in which a number stands at its own remainder, has a slot for each:
    8 slots at first, and four times the members rounded up to a power of 2 whenever 3/5 are taken.
    """
    slots = 8
    while pruned >= (members := -(-3 * (slots - 1) // 5)):  # with so many it grows
        slots = 1 << (4 * members).bit_length()
    return channels <= slots
