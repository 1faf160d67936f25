"""FGSM and PGD in the maximum norm: pixels in, adversarial pixels out.

Goodfellow et al. 2015 (FGSM) and Madry et al. 2018 (PGD). A model maps pixels in [0, 1], shape
(N, C, H, W), to logits (N, classes). Every attack is a box-constrained ascent on the cross-entropy;
`space` says in which units the box is measured:

* `"pixel"`: |x' - x| <= eps and x' in [0, 1].
* `"normalized"`: eps counts after `model.normalize`, and the result is clipped to one scalar range for
  all channels, [min over channels of (0 - mean)/std, max over channels of (1 - mean)/std]. This is what
  the released code does. In pixels the radius is eps * std of the channel, and a channel whose own range
  is narrower than the scalar one may leave [0, 1].

The loss is float32's, as in the released code, ART and torchattacks. Where a prediction is nearly certain
its rounding decides the sign of the gradient and weakens a single large step: on 600 images and a public
ResNet-20, FGSM at 8/255 leaves 14.7 % right, and 8.5 % with the cross-entropy of the same logits taken in
float64. At 0.5/255 the two differ by 0.2 points. `loss="float64"` takes it so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gkp.attacks.ascent import (
    LOSSES,
    Box,
    Draws,
    Trace,
    allowed_box,
    ascend,
    choose,
    more_damaging,
    predicted,
    uniform,
)
from gkp.utils.logits import class_labels
from gkp.utils.precision import full_precision
from gkp.utils.whole import is_number, is_whole

LABELS = ("true", "predicted")
STARTS = ("image", "random")
NO_LABELS = (0, -1)  # lowest and highest of none, which every network has
OUTSIDE = "x leaves [0, 1]: give pixels, not normalised images (the model normalises)"


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    space: str = "pixel",
    labels: str = "true",
    loss: str = "float32",
    trace: Trace | None = None,
) -> Tensor:
    """One signed-gradient step of length eps: clip(x + eps * sign(grad of the loss at x)).

    x: float32 (N, C, H, W) in [0, 1]; y: integer (N,). `labels="predicted"` replaces y by the model's
    own clean predictions, as the released evaluation does; `loss` is the type in which the cross-entropy
    of the logits is taken, "float32" or "float64". trace: filled with what the attack met. Returns float32
    of x's shape. Raises ValueError for arguments out of range, for labels that are none of the network's
    classes, and for a network whose output is no finite logits (N, classes) with a gradient.
    """
    trace = trace or Trace()
    y, span = check_inputs(x, y, eps, labels, deferred=trace.deferred, in_pixels=space == "pixel")
    x = x.detach()
    choose("loss", loss, LOSSES)
    box = allowed_box(model, x, eps, space)
    with frozen(model):
        targets = y if labels == "true" else None
        adversarial, _ = ascend(
            model, x, targets, box, step=eps, iterations=1, loss=loss, labels=span, trace=trace
        )
    trace.check()
    return adversarial


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float,
    iterations: int,
    restarts: int = 0,
    space: str = "pixel",
    labels: str = "true",
    start: str = "image",
    generator: Draws | None = None,
    trace: Trace | None = None,
    spare_wrong: bool = False,
) -> Tensor:
    """`iterations` signed-gradient steps of length `step`, each projected back onto the box.

    `restarts=0` starts at x, or with `start="random"` at a uniformly random point of the box. `restarts=R`
    runs R more random starts and keeps for every image the most damaging result: misclassified first, then
    highest loss, both with respect to the labels attacked. More restarts therefore never help the
    defender. `generator` draws the random starts (default: torch's global one) or iterates over their draws,
    (N, C, H, W) in [-1, 1] each. Arguments, result and errors otherwise as in `fgsm`; `step` is in the units
    of `space`, iterations >= 1 and restarts >= 0 are ints.

    spare_wrong: attack an image no further once one start ended in a misclassification, which is then the
    result. The same starts are drawn, so that the same images end misclassified, in less time; only a higher
    loss of those that are already wrong is not looked for.
    """
    trace = trace or Trace()
    y, span = check_inputs(x, y, eps, labels, deferred=trace.deferred, in_pixels=space == "pixel")
    x = x.detach()
    check_steps(step, iterations, restarts)
    choose("start", start, STARTS)
    box = allowed_box(model, x, eps, space)
    first = x if start == "image" else _random_point(x, box, generator)
    with frozen(model):
        targets = y if labels == "true" else None  # None: those predicted where the ascent starts
        if targets is None and start == "random":
            targets = predicted(model, x, trace).argmax(1)
        best, y = ascend(model, first, targets, box, step, iterations, labels=span, trace=trace)
        answers = predicted(model, best, trace) if restarts else best
        for _ in range(restarts):
            again = _random_point(x, box, generator)
            rows = (answers.argmax(1) == y).nonzero().flatten() if spare_wrong else slice(None)
            if not len(y[rows]):
                continue  # and not break: the generator also serves the batches that follow
            inside, part, targets = box.of(rows), Trace(), y[rows]
            adversarial, _ = ascend(
                model, again[rows], targets, inside, step, iterations, labels=span, trace=part
            )
            new = predicted(model, adversarial, part)
            worse = more_damaging(new, answers[rows], targets)
            best[rows] = torch.where(worse.view(-1, 1, 1, 1), adversarial, best[rows])
            answers[rows] = torch.where(worse[:, None], new, answers[rows])
            trace.took(part, rows)
    trace.check()
    return best


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters without gradients and products in full precision inside.

    Every flag is restored outside, also on error.
    """
    training = [(module, module.training) for module in model.modules()]
    # What was made in inference mode has no gradient, and cannot be told to have one.
    gradients = [(p, p.requires_grad) for p in model.parameters() if not p.is_inference()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        with full_precision():
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


def _random_point(x: Tensor, box: Box, generator: Draws | None) -> Tensor:
    return box.project(x + box.radius * uniform(x, generator))


def check_inputs(
    x: Tensor,
    y: Tensor,
    eps: float,
    labels: str = "true",
    *,
    deferred: bool = False,
    in_pixels: bool = True,
) -> tuple[Tensor, tuple[int, int]]:
    """y as int64, and its lowest and highest label. Waits for a GPU once.

    ValueError unless x is float32 (N, C, H, W) in [0, 1], y of an integer type (N,), eps right for
    `check_eps`. deferred: look at no pixel and no label, so that nothing waits. in_pixels: of `check_eps`.
    """
    check_eps(eps, in_pixels=in_pixels)
    choose("labels", labels, LABELS)
    if not isinstance(x, Tensor):
        raise ValueError(f"x is a {type(x).__name__}: give a float32 tensor of pixels, (N, C, H, W)")
    if x.ndim != 4 or x.dtype != torch.float32:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}: give float32 pixels of shape (N, C, H, W)"
        )
    y = class_labels(y, len(x))
    if deferred or not x.numel():
        return y, NO_LABELS
    # The images' device may be a GPU and the labels' not, or the other way round.
    inside = ((x >= 0) & (x <= 1)).all().to(y.device, y.dtype)
    valid, lowest, highest = torch.stack([inside, *y.aminmax()]).tolist()
    if not valid:
        raise ValueError(OUTSIDE)
    return y, (lowest, highest)


def check_pixels(x: Tensor) -> None:
    """ValueError unless all of x, which is not empty, lies in [0, 1]. Waits for a GPU."""
    lowest, highest = torch.stack(x.aminmax()).tolist()
    if not (lowest >= 0 and highest <= 1):  # also where they are NaN
        raise ValueError(OUTSIDE)


def check_eps(eps: float, *, in_pixels: bool = True) -> None:
    """ValueError unless eps is finite and >= 0, and at most 1 where it counts pixels in the maximum norm.

    in_pixels: whether it does so; in normalised units, and in the norms L1 and L2, a radius may be larger.
    """
    if not is_number(eps) or not 0 <= eps < float("inf"):
        raise ValueError(f"eps={eps!r}: give a finite radius >= 0 as a number, e.g. 0.5/255 in pixels")
    if in_pixels and eps > 1:
        raise ValueError(f"eps={eps:g} is for pixels in [0, 1]: {eps:g} grey levels are {eps:g}/255")


def check_steps(step: float, iterations: int, restarts: int) -> None:
    """ValueError unless step is finite and > 0, iterations an int >= 1 and restarts an int >= 0."""
    if not is_number(step) or not 0 < step < float("inf"):
        raise ValueError(f"step={step!r}: give a step length > 0 as a number, e.g. eps/4")
    if not is_whole(iterations):
        raise ValueError(f"iterations={iterations!r}: give a whole number, at least 1")
    if not is_whole(restarts, 0):
        raise ValueError(f"restarts={restarts!r}: give 0 (start at x) or a whole number of random starts")
