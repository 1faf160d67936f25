"""The pixels that an attack may reach, and the ascent of the loss inside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gkp.utils.logits import (
    NO_GRADIENT,
    check_classes,
    forward,
    peaks,
    refuse_not_finite,
    told_of_in_place_changes,
    usable,
)

SPACES = ("pixel", "normalized")
LOSSES = ("float32", "float64")
AT_ONCE = 64  # images that go through a network together on a CPU, whose caches hold no more
Rows = Tensor | slice  # which images of a batch: int64 (K,), or all
# What random starts come from, or they themselves, in the units of the box: (N, C, H, W) in [-1, 1] each.
Draws = Generator | Iterator[Tensor]


@dataclass(frozen=True)
class Box:
    """The allowed set in pixels. `scale` turns the user's units into pixels, per channel or as 1."""

    scale: Tensor | float
    radius: Tensor | float
    lowest: Tensor
    highest: Tensor

    def project(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.lowest), self.highest)

    def of(self, rows: Rows) -> Box:
        """The box of some of the images."""
        return replace(self, lowest=self.lowest[rows], highest=self.highest[rows])


def allowed_box(model: nn.Module, x: Tensor, eps: float, space: str) -> Box:
    """The pixels within eps of x, (N, C, H, W), in the units of `space`; see `gkp.attacks`."""
    choose("space", space, SPACES)
    if space == "pixel":
        return Box(1.0, eps, (x - eps).clamp(min=0.0), (x + eps).clamp(max=1.0))
    normalize = getattr(model, "normalize", None)
    if normalize is None or not hasattr(normalize, "mean") or not hasattr(normalize, "std"):
        raise ValueError(
            'space="normalized" needs model.normalize with the buffers mean and std: '
            'wrap the network so that normalisation is its first layer, or use space="pixel"'
        )
    mean, std = (t.to(x.device, x.dtype).view(1, -1, 1, 1) for t in (normalize.mean, normalize.std))
    # The scalar range, brought back to pixels channel by channel; rounding must not cut [0, 1] itself.
    low = ((0 - mean) / std).min() * std + mean
    high = ((1 - mean) / std).max() * std + mean
    radius = eps * std
    lowest = torch.maximum(x - radius, low.clamp(max=0.0))
    return Box(std, radius, lowest, torch.minimum(x + radius, high.clamp(min=1.0)))


@dataclass
class Trace:
    """What the attack on one batch met. `zero_gradient`: bool (N,), where its first gradient was exactly
    zero, taken where the ascent starts: at the images, or with start="random" at a random point of each
    box; None before there was one. `deferred`: nothing may wait for a GPU; pixels and labels are taken to
    be sound, and whoever gave the trace looks at `finite` later."""

    zero_gradient: Tensor | None = None
    deferred: bool = False
    logits: list[Tensor] = field(
        default_factory=list
    )  # `peaks` (N,) of every forward pass, not looked at yet
    gradients: list[Tensor] = field(default_factory=list)

    def took(self, part: Trace, rows: Rows) -> None:
        """Take over what an attack on some of the images met."""
        for mine, seen in ((self.logits, part.logits), (self.gradients, part.gradients)):
            for values in seen:
                mine.append(torch.zeros_like(mine[0]))
                mine[-1][rows] = values

    def join(self, parts: Sequence[Trace]) -> None:
        """Take over what the same attack met on successive parts of the batch."""
        self.logits += [torch.cat(seen) for seen in zip(*(part.logits for part in parts), strict=True)]
        self.gradients += [torch.cat(seen) for seen in zip(*(part.gradients for part in parts), strict=True)]
        if self.zero_gradient is None:
            self.zero_gradient = self.gradients[0] == 0

    def saw(self, logits: Tensor, gradient: Tensor | None = None) -> None:
        self.logits.append(peaks(logits))
        if gradient is not None:
            self.gradients.append(peaks(gradient))
            if self.zero_gradient is None:
                self.zero_gradient = self.gradients[0] == 0

    def finite(self) -> Tensor:
        """Whether all logits and gradients were, a scalar on their device."""
        return torch.isfinite(torch.stack([*self.logits, *self.gradients])).all()

    def check(self) -> None:
        """NotFinite where logits or gradients were, whose sign PyTorch gives as 0. Waits for a GPU once."""
        if self.deferred:
            return
        logits, gradients = (torch.stack(seen).amax(0) for seen in (self.logits, self.gradients))
        if not torch.isfinite(logits + gradients).all():
            refuse_not_finite(logits)
            refuse_not_finite(gradients, "the gradients at the pixels")


def ascend(
    model: nn.Module,
    start: Tensor,
    y: Tensor | None,
    box: Box,
    step: float,
    iterations: int,
    loss: str = LOSSES[0],
    *,
    labels: tuple[int, int],
    trace: Trace,
) -> tuple[Tensor, Tensor]:
    """`iterations` signed-gradient steps on the cross-entropy with `y`, each projected onto the box; and y.

    The sign of the gradient is the same in pixels and in normalised units (std > 0), so that one loop serves
    both spaces. y: None for the predictions at `start`, which the first step needs anyway. labels: the
    lowest and the highest of `y`, for which no GPU is asked here; ValueError where the network has no such
    class, or gives no gradient. trace: takes note of what is checked at the end. A large batch on a CPU is
    done part by part, which is sooner.
    """
    if start.device.type == "cpu" and len(start) > AT_ONCE:
        results, traces = [], []
        for first in range(0, len(start), AT_ONCE):
            rows = slice(first, first + AT_ONCE)
            own, inside = None if y is None else y[rows], box.of(rows)
            traces.append(Trace())
            results.append(
                ascend(
                    model, start[rows], own, inside, step, iterations, loss, labels=labels, trace=traces[-1]
                )
            )
        trace.join(traces)
        images, targets = zip(*results, strict=True)
        return torch.cat(images), torch.cat(targets)
    with torch.inference_mode(False):
        adversarial, y = usable(start.detach()), None if y is None else usable(y)
        for _ in range(iterations):
            adversarial = adversarial.requires_grad_()
            with torch.enable_grad():
                logits = forward(model, adversarial)
                check_classes(*labels, logits.shape[1])
                y = logits.argmax(1) if y is None else y
                gradient = cross_entropy_gradient(logits.to(getattr(torch, loss)), adversarial, y)
            trace.saw(logits, gradient)
            adversarial = box.project(adversarial.detach() + step * box.scale * gradient.sign())
    assert y is not None  # there is one step or more
    return adversarial, y


def cross_entropy_gradient(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of the cross-entropy at the pixels x; ValueError where the logits do not depend on them."""
    # The sum keeps every image's gradient independent of the batch it happens to be in.
    ascended = F.cross_entropy(logits, y, reduction="sum")
    if not ascended.requires_grad:
        raise ValueError(NO_GRADIENT)
    with told_of_in_place_changes():
        (gradient,) = torch.autograd.grad(ascended, x, allow_unused=True)
    if gradient is None:
        raise ValueError(NO_GRADIENT)
    return gradient


def predicted(model: nn.Module, x: Tensor, trace: Trace) -> Tensor:
    """Logits (N, classes) of results of an attack."""
    with torch.no_grad():
        logits = forward(model, x)
    trace.saw(logits)
    return logits


def more_damaging(new: Tensor, old: Tensor, y: Tensor) -> Tensor:
    """(N,) bool: whether logits `new` hurt more than `old`; misclassification outranks any loss."""
    new_wrong, old_wrong = (z.argmax(1) != y for z in (new, old))
    new_loss, old_loss = (F.cross_entropy(z, y, reduction="none") for z in (new, old))
    return (new_wrong & ~old_wrong) | ((new_wrong == old_wrong) & (new_loss > old_loss))


def uniform(x: Tensor, generator: Draws | None) -> Tensor:
    """Of x's shape, uniform in [-1, 1], drawn on the generator's device; or the next that is given."""
    if isinstance(generator, Iterator):
        return next(generator)
    device = x.device if generator is None else generator.device
    return (torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype) * 2 - 1).to(x.device)


def choose(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `allowed`; `what` names the argument."""
    if value not in allowed:
        raise ValueError(f"{what}={value!r}: choose one of {', '.join(map(repr, allowed))}")
