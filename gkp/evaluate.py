"""Accuracy without and under attack, and checks that an evaluation makes on itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor, nn

from gkp.attacks import Attack, frozen
from gkp.attacks.ascent import Trace
from gkp.attacks.linf import check_pixels
from gkp.attacks.masking import TWICE, masked, repeatable
from gkp.attacks.outcome import STRENGTH, Outcome
from gkp.nets.channels.copying import CopyError
from gkp.nets.deploy import folded
from gkp.utils.logits import (
    check_classes,
    check_network,
    class_labels,
    counted_from,
    device_of,
    forward,
    peaks,
    refuse_not_finite,
    weight_type,
)
from gkp.utils.whole import is_whole


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 500) -> float:
    """Fraction of images classified right, in eval mode; x float32 (N, C, H, W) in [0, 1], y integer (N,)."""
    return outcome(model, x, y, Attack("none"), batch_size=batch_size).accuracy


def outcome(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    batch_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
    fold: bool = True,
) -> Outcome:
    """Attack x batch by batch on the model's device and say which images are still classified right.

    `progress(done, total)` is called after every batch with numbers of images. One random generator
    serves all batches, so that a result depends on the seed and, for random starts, on the batch size.
    Random starts go on with the images that no start before got wrong; on predicted labels with all.

    fold: evaluate `quick(model, x)` in place of the model, in two thirds of the time. Rounding decides about
    one image in thousands under attack; False gives what the network itself answers, bit for bit. Who has
    many attacks calls `quick` once, and this with fold=False.
    Raises ValueError for no images, integer images, pixels outside [0, 1], unequal lengths, a batch size
    below 1, labels that are no classes of the model, and a model whose output is no finite logits
    (N, classes); TypeError for what is no network.
    """
    check_network(model)
    if not isinstance(attack, Attack):
        raise ValueError(f'attack={attack!r}: give a gkp.attacks.Attack("fgsm", eps=0.5 / 255)')
    _check_images(x, batch_size)
    y, device, generator = class_labels(y, len(x)), device_of(model, x), attack.generator()
    lowest, highest = int(y.min()), int(y.max())
    correct = torch.empty(len(x), dtype=torch.bool)
    zeros: int | None = None
    start = time.perf_counter()
    with frozen(model):
        repeats = repeatable(model, x[:batch_size].to(device))
        network = quick(model, x) if fold else model
        for first in range(0, len(x), batch_size):
            part, trace = slice(first, first + batch_size), Trace()
            images, labels = x[part].to(device), y[part].to(device)
            with counted_from(first):
                # On predicted labels an error of the attacked label may be a right answer: the worst counts.
                spare = attack.labels == "true"
                images = attack.perturb(
                    network, images, labels, generator=generator, trace=trace, spare_wrong=spare
                )
                with torch.no_grad():
                    logits = forward(network, images)
                check_classes(lowest, highest, logits.shape[1])
                right, zero = _judged(logits, labels, trace)
            correct[part] = right
            zeros = zero if zeros is None else zeros + (zero or 0)
            if progress:
                progress(min(first + batch_size, len(x)), len(x))
    return Outcome(attack.name, correct, time.perf_counter() - start, attack, zeros, repeats)


def quick(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the model that computes the same up to rounding with less work, for evaluations alone.

    `gkp.nets.deploy.folded`, known to agree on the first images of x, float (N, C, H, W). The network itself
    where it cannot be copied, or where a layer of grouped kernels was changed and cannot be made dense.
    ValueError for a network that fails on the images.
    """
    with frozen(model), torch.inference_mode(False), torch.no_grad():
        images = x[:TWICE].to(device_of(model, x), copy=True)
        forward(model, images)
        try:
            return folded(model, images.to(weight_type(model) or x.dtype))
        except CopyError:
            return model


def _check_images(x: Tensor, batch_size: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has type {kind}: give a tensor of float pixels in [0, 1], e.g. x.float() / 255")
    if x.is_meta:
        raise ValueError("x is on the meta device and has no values: give real images")
    if not is_whole(batch_size) or not len(x):
        raise ValueError(
            f"{len(x)} images, batch_size={batch_size}: give as many labels as images, at least one, and a "
            "batch size of at least 1"
        )
    if x.numel():
        check_pixels(x)


def _judged(logits: Tensor, labels: Tensor, trace: Trace) -> tuple[Tensor, int | None]:
    """bool (N,) on the CPU, right or wrong, and how many right ones had no gradient; a GPU is read once."""
    right, largest = logits.argmax(1) == labels, peaks(logits)
    zero = torch.zeros_like(right) if trace.zero_gradient is None else trace.zero_gradient & right
    right, finite, zero = torch.stack([right, torch.isfinite(largest), zero]).cpu()
    if not finite.all():
        refuse_not_finite(largest)
    return right, None if trace.zero_gradient is None else int(zero.sum())


def epsilon_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilons: Iterable[float],
    *,
    attack: Attack,
    batch_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
    fold: bool = True,
) -> list[Outcome]:
    """`attack` at every eps, with its step scaled alike (step / eps stays that of `attack`); as `outcome`."""
    ratio = attack.step / attack.eps if attack.eps else 0.0
    _check_images(x, batch_size)
    # `Attack` refuses a wrong eps, before the first takes its time.
    attacks = [replace(attack, eps=eps, step=ratio * eps or attack.step) for eps in epsilons]
    model = quick(model, x) if fold else model
    return [
        outcome(model, x, y, scaled, batch_size=batch_size, progress=progress, fold=False)
        for scaled in attacks
    ]


# ---- checks --------------------------------------------------------------------------------------


def self_check(outcomes: Iterable[Outcome]) -> list[str]:
    """What is wrong with these evaluations of one model, one sentence each; [] when nothing is.

    Each is about the first n images of one list. The rules: eps = 0 changes no prediction; no attack beats
    none, and accuracy does not rise with eps; more iterations or restarts, PGD instead of FGSM and
    AutoAttack instead of PGD never help the defender; step times iterations reaches eps; no attack repairs
    wrong predictions, which those on predicted labels do; nothing hides the gradient, see
    `gkp.attacks.masking`.
    """
    attacks = [(o, o.attack) for o in outcomes if o.attack is not None and o.attack.kind != "highpass"]
    rules = (_unreached, _changed_at_zero, _out_of_order, _repaired, masked)
    return [sentence for rule in rules for sentence in rule(attacks)]


_Known = list[tuple[Outcome, Attack]]


def _unreached(known: _Known) -> Iterable[str]:
    for o, attack in known:
        if attack.kind == "pgd" and not _reaches(attack):
            share = attack.step * attack.iterations / attack.eps
            yield f"{o.name}: step times iterations is {share:.2f} eps, so that it cannot reach its own eps"


def _changed_at_zero(known: _Known) -> Iterable[str]:
    for benign, b in known:
        for o, attack in known:
            if b.kind == "none" and attack.kind != "none" and attack.eps == 0:
                n, (before, after) = _common(benign, o)
                if changed := int((before != after).sum()):
                    yield f"{o.name}: {changed} of {n} images change from right to wrong or back at eps = 0"


def _out_of_order(known: _Known) -> Iterable[str]:
    worst: dict[tuple[str, str], tuple[int, str]] = {}
    for (strong, s), (weak, w) in permutations(known, 2):
        n, (left, more) = _common(weak, strong)
        gain = int(more.sum()) - int(left.sum())
        if gain > 0 and not getattr(strong, "may_be_weak", False) and (reason := _why_stronger(s, w)):
            sentence = f"{strong.name} leaves {gain} of {n} images more right than {weak.name}, {reason}"
            worst[strong.name, reason] = max((gain, sentence), worst.get((strong.name, reason), (0, "")))
    return [sentence for _, sentence in worst.values()]


def _repaired(known: _Known) -> Iterable[str]:
    for benign, b in known:
        for o, attack in known:
            if b.kind == "none" and attack.labels == "predicted":
                n, (before, after) = _common(benign, o)
                if repaired := int((after & ~before).sum()):
                    yield f"{o.name}: {repaired} of {n} images are wrong when clean and right when attacked"


def _why_stronger(strong: Attack, weak: Attack) -> str | None:
    """Why `strong` may not leave more images right than `weak`; None where nothing says so."""
    if strong.kind == "none":
        return None
    if weak.kind == "none":
        return "which is no attack"
    if strong.space != weak.space or strong.labels not in ("true", weak.labels):
        return None
    if _equal(strong.eps, weak.eps):
        if STRENGTH[strong.kind] > STRENGTH[weak.kind]:
            return "a weaker attack at the same eps"
        return "which takes fewer iterations or restarts" if _works_harder(strong, weak) else None
    if strong.kind != weak.kind:
        return None
    alike = replace(strong, eps=weak.eps, step=weak.step, seed=weak.seed) == weak
    same_step = _equal(strong.step, weak.step) or _equal(strong.step * weak.eps, weak.step * strong.eps)
    return "although its eps is larger" if alike and same_step and strong.eps > weak.eps else None


def _works_harder(strong: Attack, weak: Attack) -> bool:
    efforts = [(a.iterations, a.restarts) for a in (strong, weak)]
    no_less = all(s >= w for s, w in zip(*efforts, strict=True))
    comparable = _equal(strong.step, weak.step) or (_reaches(strong) and _reaches(weak))
    same = strong.kind == weak.kind == "pgd" and strong.start == weak.start
    return same and no_less and efforts[0] != efforts[1] and comparable


def _reaches(attack: Attack) -> bool:
    reach = attack.step * attack.iterations
    return reach > attack.eps or _equal(reach, attack.eps)


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9)


def _common(a: Outcome, b: Outcome) -> tuple[int, tuple[Tensor, Tensor]]:
    """The images that both saw: each saw the first n of the same list."""
    n = min(a.n, b.n)
    return n, (a.correct[:n], b.correct[:n])
