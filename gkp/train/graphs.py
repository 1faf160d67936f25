"""Forward and backward of a training step as a CUDA graph: recorded once, replayed with one launch.

A small network is so fast on a GPU that Python, which launches hundreds of kernels per step, is what takes
the time. The update stays outside: it is a few launches for all parameters, and its learning rate changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Compute = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # (images, labels) -> losses; leaves gradients
Record = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[tuple[Tensor, ...], Callable[[], None]]]

WARM_UP = 3  # runs before the recording, in which libraries choose algorithms and allocate


def record_cuda(run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """What `run` returns, and a function that computes it again into the same tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return outputs, graph.replay


def recordable(model: nn.Module) -> bool:
    """Whether nothing watches the forward pass: Python would call a hook when recording, and never again."""
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def places(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensors the parameters and buffers are, and where their numbers lie."""
    return [(id(tensor), tensor.data_ptr()) for tensor in (*model.parameters(), *model.buffers())]


class Replayed:
    """`compute` for batches of one shape, recorded on the first of them.

    compute must do the same operations every time, give each parameter a new gradient, and read nothing
    that is replaced later; the model's parameters and buffers may be changed in place between calls.
    """

    def __init__(
        self, model: nn.Module, compute: Compute, x: Tensor, y: Tensor, record: Record = record_cuda
    ) -> None:
        self.x, self.y = x.clone(), y.clone()
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            self.outputs, self.replay = record(lambda: compute(self.x, self.y))
        for buffer, before in buffers:  # the trial runs moved the statistics of batch norms
            buffer.copy_(before)
        self.gradients = [(p, p.grad) for p in model.parameters() if p.requires_grad]
        self.places = places(model)

    def of(self, model: nn.Module) -> bool:
        """Whether the recording reads the tensors that the model has now: none was replaced since."""
        return self.places == places(model)

    def fits(self, x: Tensor) -> bool:
        return x.shape == self.x.shape

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The losses, copied, with the gradients in place."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.replay()
        for parameter, gradient in self.gradients:  # a step without the graph has put its own there
            parameter.grad = gradient
        return tuple(output.clone() for output in self.outputs)
