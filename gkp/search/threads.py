"""How many threads of PyTorch a computation on small tensors uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """Inside, PyTorch computes with one thread; the number comes back as it was, also after an error.

    Gives that number, for what does better than PyTorch with several.

    An operation of microseconds gains nothing from a second thread, and next to other work on the same cores
    each one waits until the slower thread has had its turn.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
