"""The pixels that an attack may reach, and the ascent of the loss inside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

SPACES = ("pixel", "normalized")
LOSSES = ("float32", "float64")


@dataclass(frozen=True)
class Box:
    """The allowed set in pixels. `scale` turns the user's units into pixels, per channel or as 1."""

    scale: Tensor | float
    radius: Tensor | float
    lowest: Tensor
    highest: Tensor

    def project(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.lowest), self.highest)


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


def ascend(
    model: nn.Module,
    start: Tensor,
    y: Tensor,
    box: Box,
    step: float,
    iterations: int,
    loss: str = LOSSES[0],
) -> Tensor:
    """`iterations` signed-gradient steps on the cross-entropy with `y`, each projected onto the box.

    The sign of the gradient is the same in pixels and in normalised units (std > 0), so that one loop serves
    both spaces.
    """
    adversarial = start.detach()
    for _ in range(iterations):
        adversarial = adversarial.requires_grad_()
        with torch.enable_grad():
            # The sum keeps every image's gradient independent of the batch it happens to be in.
            logits = model(adversarial).to(getattr(torch, loss))
            ascended = F.cross_entropy(logits, y, reduction="sum")
        (gradient,) = torch.autograd.grad(ascended, adversarial)
        adversarial = box.project(adversarial.detach() + step * box.scale * gradient.sign())
    return adversarial


def more_damaging(model: nn.Module, new: Tensor, old: Tensor, y: Tensor) -> Tensor:
    """(N,) bool: whether `new` hurts more than `old`; misclassification outranks any loss."""
    with torch.no_grad():
        logits = [model(x) for x in (new, old)]
    new_wrong, old_wrong = (z.argmax(1) != y for z in logits)
    new_loss, old_loss = (F.cross_entropy(z, y, reduction="none") for z in logits)
    return (new_wrong & ~old_wrong) | ((new_wrong == old_wrong) & (new_loss > old_loss))


def uniform(x: Tensor, generator: Generator | None) -> Tensor:
    """Of x's shape, uniform in [-1, 1], drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return (torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype) * 2 - 1).to(x.device)


def choose(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `allowed`; `what` names the argument."""
    if value not in allowed:
        raise ValueError(f"{what}={value!r}: choose one of {', '.join(map(repr, allowed))}")
