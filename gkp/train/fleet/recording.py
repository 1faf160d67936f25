"""A piece of work as one CUDA graph, and trials of which nothing remains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gkp.train.graphs import WARM_UP

Job = Callable[[], object]


def recorded(job: Job, rewind: Job, stream: torch.cuda.Stream) -> Job:
    """What does `job` again, as a graph; called on the stream. rewind: what goes before every trial."""
    for _ in range(WARM_UP):
        rewind()
        job()
    rewind()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        job()
    return graph.replay


@contextmanager
def unchanged(tensors: Sequence[Tensor], refresh: Job, device: torch.device) -> Iterator[None]:
    """What runs inside, on whatever stream, leaves these tensors as they were; refresh: what follows them."""
    before = [tensor.clone() for tensor in tensors]
    wait(device)
    try:
        yield
    finally:
        wait(device)
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        refresh()
        wait(device)


def wait(device: torch.device) -> None:
    """Until everything launched on all streams is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
