"""Costs with the last bits of the released code's, for `gkp.search.beam`.

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
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

GOLDEN_RATIO = -7046029254386353131  # 2**64 divided by it, as int64: multiplying by it scatters bits
BUCKETS = 16  # bits of a hash that are used


@dataclass(frozen=True)
class Sets:
    """Kernels of many sets, in the order in which they were taken; a row is one group and one start.

    Of the C sets of a row C / B neighbours extend the same one of B branches that the last truncation left.
    """

    apart: Tensor  # (G, n, n) distances d - 1, the negatives of the released similarities 1 - d
    group: Tensor  # (R,)
    head: Tensor  # (R, B, h) kernels of those branches
    tail: Tensor  # (R, C, t) kernels taken since
    near: tuple[Tensor, ...]  # per neighbour (R, B, n), ascending, from any kernel to the nearest of the head

    @property
    def size(self) -> int:
        return self.head.shape[-1] + self.tail.shape[-1]

    def branch(self, index: Tensor) -> Tensor:
        """(M,) which of the R * B branches the sets `index` (M,) of the R * C extend."""
        return index // (self.tail.shape[1] // self.head.shape[1])

    def kernels(self, index: Tensor) -> Tensor:
        """(M, h + t) of the sets `index` (M,) of the R * C."""
        head = self.head.flatten(0, 1).index_select(0, self.branch(index))
        return torch.cat([head, self.tail.flatten(0, 1).index_select(0, index)], 1)

    @cached_property
    def outer(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """(R * C,) place of each set among M different ones; (M, n) per neighbour, and sums (M,), of those.

        Neither `near` nor the sum over the pruned kernels depends on the order in which a set was reached:
        once for each set will do.
        """
        index, place = distinct(self)
        kept, branch, lines = self.kernels(index), self.branch(index), self.apart.flatten(0, 1)
        offset = self.group[index // self.tail.shape[1]] * self.apart.shape[-1]
        near = [distances.flatten(0, 1).index_select(0, branch) for distances in self.near]
        for kernel in kept[:, self.head.shape[-1] :].unbind(1):
            carried = lines.index_select(0, offset + kernel)
            for order, old in enumerate(near):
                least = torch.minimum(old, carried)
                carried = torch.maximum(old, carried, out=old) if order + 1 < len(near) else carried
                near[order] = least
        far = sum(near[1 : self.size], near[0])
        return place, tuple(near), over_pruned(far.scatter(1, kept, 0), kept)

    def extended(self, kernel: Tensor) -> Sets:
        """Each set with each of C' / C more kernels: kernel (R, C')."""
        tail = repeated(self.tail, kernel.shape[1] // self.tail.shape[1])
        return replace(self, tail=torch.cat([tail, kernel[..., None]], -1))

    def survivors(self, chosen: Tensor) -> Sets:
        """What a truncation leaves that chose `chosen` (R, C') of each row's sets."""
        rows, count, _ = self.tail.shape
        index = (torch.arange(rows)[:, None] * count + chosen).flatten()
        near: tuple[Tensor, ...] = ()
        if self.near:
            place, lists, _ = self.outer
            near = tuple(d.index_select(0, place[index]).view(rows, -1, d.shape[1]) for d in lists)
        head = self.kernels(index).view(rows, -1, self.size)
        return replace(self, head=head, tail=head[..., :0], near=near)


def repeated(state: Tensor, times: int) -> Tensor:
    """state (R, B, ...) with each branch `times` times in a row: (R, B * times, ...)."""
    return state.unsqueeze(2).expand(-1, -1, times, *state.shape[2:]).flatten(1, 2)


def start(apart: Tensor, group: Tensor, first: Tensor, near: tuple[Tensor, ...]) -> Sets:
    """Sets of a single kernel: apart (G, n, n), group (R,), first (R,), near (R, 1, n)."""
    head = first[:, None, None]
    return Sets(apart, group, head, head[..., :0], near)


def costs(sets: Sets, beta: float, outer: bool = True) -> Tensor:
    """Cost (R, C): beta times what separates the pruned kernels from the kept ones, less `among`."""
    inner = among(sets)
    if not outer or not sets.near:
        return -inner
    place, _, far = sets.outer
    return far[place].view_as(inner) * beta - inner


def distinct(sets: Sets) -> tuple[Tensor, Tensor]:
    """One of each group's equal sets (M,) among all R * C, and the place among those of each (R * C,).

    By hashing, without a sort. Sets that share a bucket stay apart, so that some may be there twice.
    """
    rows, count, _ = sets.tail.shape
    words = [sets.group[:, None].expand(-1, count).flatten()]
    for bits in bit_sets(sets.apart.shape[-1]).unbind():
        head, tail = (bits.take(kernels).sum(2) for kernels in (sets.head, sets.tail))
        words.append((repeated(head, count // head.shape[1]) + tail).flatten())
    mixed = torch.zeros(rows * count, dtype=torch.int64)
    for word in words:
        mixed = (mixed + word) * GOLDEN_RATIO
        mixed ^= mixed >> 29
    bucket = (mixed * GOLDEN_RATIO >> 64 - BUCKETS) + (1 << BUCKETS - 1)
    index = torch.arange(rows * count)
    same = torch.empty(1 << BUCKETS, dtype=torch.int64).scatter_(0, bucket, index).take(bucket)
    for word in words:
        same = torch.where(word.take(same) == word, same, index)
    different = same == index
    return index[different], (different.cumsum(0) - 1).take(same)


@lru_cache(maxsize=8)
def bit_sets(channels: int) -> Tensor:
    """(words, n) int64: the kernel's bit in the words of 64 that tell a set."""
    kernel, word = torch.arange(channels), torch.arange(-(-channels // 64))
    return torch.where(kernel // 64 == word[:, None], 1 << kernel % 64, 0)


def among(sets: Sets) -> Tensor:
    """What separates a set's kernels, pair after pair as `itertools.combinations` lists them: (R, C)."""
    rows, branches, common = sets.head.shape
    siblings, recent = sets.tail.shape[1] // branches, sets.tail.shape[2]
    channels, table = sets.apart.shape[-1], sets.apart.flatten().numpy()
    # Kernels first and rows last, (siblings, rows * branches), so that an addition runs over long rows.
    head = sets.head.flatten(0, 1).t().contiguous().numpy()
    tail = sets.tail.view(rows, branches, siblings, recent).permute(3, 2, 0, 1).flatten(2).numpy()
    offset = (sets.group * channels).repeat_interleave(branches).numpy()
    total = np.zeros((siblings, rows * branches))

    def add(pairs: np.ndarray) -> None:
        for distance in table.take(pairs, mode="clip"):
            np.add(total, distance, out=total)

    for place in range(sets.size - 1):
        if place < common:
            line = (offset + head[place]) * channels
            add(line + head[place + 1 :])
            add(line + tail)
        else:
            line = (offset + tail[place - common]) * channels
            add(line + tail[place - common + 1 :])
    return torch.from_numpy(total).view(siblings, rows, branches).permute(1, 2, 0).reshape(rows, -1)


def over_pruned(values: Tensor, kept: Tensor) -> Tensor:
    """Values (M, n), 0 at the kept kernels (M, k), summed in the released order of the others: (M,)."""
    channels, size = values.shape[-1], kept.shape[-1]
    if not ascends(channels, channels - size):
        everything = set(range(channels))
        order = [list(everything - set(kernels)) for kernels in kept.tolist()]
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
