"""Sums with the last bits of the released code, for `gkp.beam`.

The released search ranks sets by floating-point sums. One set reached in two orders has sums that differ
in the last place, and its ranks see that. To choose what it chooses, the additions are done in its order:
pair after pair of the kept kernels in the order in which they were taken, and pruned kernel after pruned
kernel in the order in which Python's set of them has them. Sets are worked on side by side, pairs are not:
such a sum cannot be continued from that of a smaller set, so that this costs O(keep^2) for each set.

The released code's own choice depends on its Python in one more way: since version 3.12 `sum` of floats
is compensated, which changes the ranks of smoothness that tie but for last bits. Here is Python 3.11's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def among(apart: Tensor, group: Tensor, kept: Tensor, shared: tuple[int, int]) -> Tensor:
    """Distances among kept kernels, summed pair after pair as `itertools.combinations` lists them: (R, C).

    apart (G, n, n); group (R,); kept (R, C, k) kernels in the order in which they were taken.
    shared = (branches, size): of C / branches neighbouring sets the first `size` kernels are the same, so
    that their distances are looked up once.
    """
    rows, _, size = kept.shape
    branches, common = shared
    channels, table = apart.shape[-1], apart.flatten()
    # Kernels first and rows last: (k, siblings, rows * branches), so that an addition runs over long rows.
    sets = kept.view(rows, branches, -1, size).permute(3, 2, 0, 1).flatten(2)
    head, tail = sets[:common, 0].contiguous(), sets[common:].contiguous()
    offset = (group * channels).repeat_interleave(branches)
    total = apart.new_zeros(sets.shape[1:])
    for place in range(size - 1):
        if place < common:
            line = (offset + head[place]) * channels
            for distance in table.take(line + head[place + 1 :]).unbind():
                total += distance
            following = tail
        else:
            line = (offset + tail[place - common]) * channels
            following = tail[place - common + 1 :]
        for distance in table.take(line + following).unbind():
            total += distance
    return total.view(-1, rows, branches).permute(1, 2, 0).reshape(rows, -1)


def over_pruned(values: Tensor, kept: Tensor) -> Tensor:
    """Values (R, C, n), 0 at the kept kernels (R, C, k), summed in the released order: (R, C)."""
    channels, size = values.shape[-1], kept.shape[-1]
    if not ascends(channels, channels - size):
        everything = set(range(channels))
        order = [list(everything - set(one)) for one in kept.flatten(0, 1).tolist()]
        values = values.gather(-1, torch.tensor(order, dtype=torch.int64).view(*kept.shape[:2], -1))
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
