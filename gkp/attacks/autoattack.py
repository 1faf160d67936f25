"""AutoAttack (Croce & Hein 2020) with a resume that works and the attack that broke each image.

pyautoattack's own resume never accepts its stored state; here the images are done in batches and each
finished batch is kept. The package is imported where it is used.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.attacks.description import Attack, length_text
from gkp.attacks.linf import check_inputs, frozen
from gkp.attacks.masking import repeatable, zero_gradient
from gkp.attacks.outcome import Outcome
from gkp.utils.files import atomic_write_text, sha256_bytes
from gkp.utils.logits import check_classes, counted_from, device_of, forward, peaks, refuse_not_finite, usable
from gkp.utils.whole import is_whole

ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
NORMS = ("Linf", "L2", "L1")
ROBUST, CLEAN = -1, 0  # in `broken_by`: right under every attack; wrong without any

Settings = dict[str, Any]


@dataclass(frozen=True)
class AutoAttackOutcome(Outcome):
    """`broken_by`: int64 (N,), ROBUST, CLEAN, or k for `attacks[k - 1]`, the first attack that worked."""

    attacks: tuple[str, ...] = ()
    broken_by: Tensor = torch.empty(0, dtype=torch.int64)

    @property
    def may_be_weak(self) -> bool:
        """Whether another attack may find more: these are of one's own choice, or against random defences."""
        return self.attacks not in (VERSIONS["standard"], VERSIONS["plus"])


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    batch_size: int = 200,
    state_path: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AutoAttackOutcome:
    """Which images stay right under AutoAttack of radius eps in pixels, run on the model's device.

    norm: "Linf", whose eps is at most 1, "L2" or "L1", whose radii may be larger.
    x: float32 (N, C, H, W) in [0, 1]; y: integer (N,). version: "standard" (the one to report), "plus",
    "rand", or "custom" with `attacks` out of ATTACKS. The images are done `batch_size` at a time. With
    `state_path` (JSON) every finished batch is on disk before `progress(done, total)` is called: a run
    that was killed continues there and gives the result of an undisturbed one. Random draws start from
    `seed` in every batch; torch's global generators are left as they were.
    Raises ValueError for bad arguments, for a state that belongs to a different evaluation, and for a model
    whose output, also of an attacked image, is no finite logits (N, classes).
    """
    attacks = _attacks(version, attacks)
    y, labels = _check(x, y, eps, norm, batch_size)
    settings: Settings = {"eps": eps, "norm": norm, "version": version, "attacks": list(attacks)}
    settings |= {"seed": seed, "batch_size": batch_size, **_fingerprints(model, x, y)}
    done = _load_state(state_path, settings, len(x))
    device = device_of(model, x)
    with torch.inference_mode(False), frozen(model), quiet(device) as flags:
        x, y = usable(x), usable(y)
        repeats = repeatable(model, x[:batch_size].to(device))
        for first in range(len(done) * batch_size, len(x), batch_size):
            part = slice(first, first + batch_size)
            flags.clear()
            start = time.perf_counter()
            with counted_from(first):
                broken_by, zeros = _attack_batch(
                    model, x[part].to(device), y[part].to(device), settings, labels
                )
            seconds = round(time.perf_counter() - start, 3)
            batch = {"broken_by": broken_by.tolist(), "zero_gradient": zeros}
            done.append(batch | {"seconds": seconds, "flags": sorted(flags)})
            if state_path is not None:
                atomic_write_text(state_path, json.dumps({"settings": settings, "batches": done}))
            if progress:
                progress(min(part.stop, len(x)), len(x))
    return _outcome(done, settings, repeats)


class Checked(nn.Module):
    """A network whose output is looked at on its way to a package that takes what comes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.largest: Tensor | None = None  # of all logits so far; read once, in `check`

    def forward(self, x: Tensor) -> Tensor:
        logits = forward(self.model, x)
        largest = peaks(logits).amax()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        return logits

    def check(self) -> None:
        """ValueError where logits were NaN or infinite, of the images or of attacked ones."""
        if self.largest is not None and not torch.isfinite(self.largest):
            raise ValueError(
                "the logits of an attacked image are NaN or infinite: look for divisions by zero, overflows "
                "and half precision in the forward pass; such an image counts neither as right nor as wrong"
            )


def _attack_batch(
    model: nn.Module, x: Tensor, y: Tensor, settings: Settings, labels: tuple[int, int]
) -> tuple[Tensor, int | None]:
    """`broken_by` of one batch, and how many images that stay right have a gradient of exactly zero.

    None where no attack takes a gradient.

    Each attack gets the images that those before it left right. That is what the package does for the
    whole ensemble, so that the same images break, but here the attack that did it is known.
    """
    checked = Checked(model)
    with torch.no_grad():
        logits = checked(x)
    refuse_not_finite(peaks(logits))
    check_classes(*labels, logits.shape[1])
    by_gradient = set(settings["attacks"]) != {"square"}
    zeros = zero_gradient(model, x, y) if by_gradient else None
    adversary = _adversary(checked, x.device, settings, classes=logits.shape[1])
    broken_by = torch.where(logits.argmax(1) == y, ROBUST, CLEAN)
    for number, attack in enumerate(settings["attacks"], start=1):
        left = (broken_by == ROBUST).nonzero().flatten()
        if not len(left):
            break
        adversary.attacks_to_run = [attack]
        _, predicted = adversary.run_standard_evaluation(x[left], y[left], batch_size=len(left))
        checked.check()
        broken_by[left[predicted != y[left]]] = number
    return broken_by, None if zeros is None else int((zeros & (broken_by == ROBUST)).sum())


def _adversary(model: nn.Module, device: torch.device, settings: Settings, classes: int) -> Any:
    from pyautoattack import AutoAttack

    if classes < 4 and {"apgd-t", "apgd-dlr"} & set(settings["attacks"]):
        raise ValueError(
            f"the model has {classes} classes and AutoAttack's DLR loss needs 4: "
            'use version="custom", attacks=("apgd-ce", "fab-t", "square")'
        )
    adversary = AutoAttack(
        model,
        norm=settings["norm"],
        eps=settings["eps"],
        version=settings["version"],
        attacks=settings["attacks"] if settings["version"] == "custom" else None,
        seed=settings["seed"],
        device=device,
    )
    # The package aims at 9 other classes whether there are as many or not.
    for targeted in (adversary.apgd_targeted, adversary.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    return adversary


@contextmanager
def quiet(device: torch.device) -> Iterator[set[str]]:
    """Collect AutoAttack's warnings instead of printing them, and undo what it does to the process.

    It seeds torch's global generators, and its check for dynamic defences ends any tracing (debuggers,
    coverage).
    """
    flags: set[str] = set()
    collector = logging.Handler(logging.WARNING)
    collector.emit = lambda record: flags.add(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("auto-attack")
    propagate, trace = logger.propagate, sys.gettrace()
    logger.addHandler(collector)
    logger.propagate = False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield flags
    finally:
        sys.settrace(trace)
        logger.removeHandler(collector)
        logger.propagate = propagate


# ---- arguments, state, result --------------------------------------------------------------------


def _attacks(version: str, attacks: Sequence[str] | None) -> tuple[str, ...]:
    if version != "custom" and version not in VERSIONS:
        raise ValueError(f"version={version!r}: choose one of {', '.join(VERSIONS)}, custom")
    if (version == "custom") != bool(attacks):
        raise ValueError(f'version={version!r}, attacks={attacks}: give attacks with version="custom" only')
    names = tuple(attacks or VERSIONS[version])
    if unknown := set(names) - set(ATTACKS):
        raise ValueError(f"no attack {', '.join(sorted(unknown))}: choose out of {', '.join(ATTACKS)}")
    return names


def _check(x: Tensor, y: Tensor, eps: float, norm: str, batch_size: int) -> tuple[Tensor, tuple[int, int]]:
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: choose one of {', '.join(NORMS)}")
    checked = check_inputs(x, y, eps, in_pixels=norm == "Linf")
    if not len(x) or eps == 0 or not is_whole(batch_size):
        raise ValueError(
            f"{len(x)} images, eps={eps}, batch_size={batch_size}: give at least one image, eps > 0 in "
            "pixels (8/255), and a batch size of at least 1"
        )
    return checked


def _fingerprints(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
    weights = "".join(f"{name} {_sha256(tensor)}\n" for name, tensor in model.state_dict().items())
    return {"weights": sha256_bytes(weights.encode()), "images": _sha256(x), "labels": _sha256(y)}


def _sha256(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:  # a type that NumPy does not have
        values = values.view(torch.int16)
    array = values.numpy()
    return sha256_bytes(f"{array.dtype} {array.shape} ".encode() + array.tobytes())


def _load_state(path: str | Path | None, settings: Settings, images: int) -> list[dict[str, Any]]:
    """The batches that are done of so many images; [] without a state."""
    if path is None or not Path(path).exists():
        return []
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        different = [key for key in settings if state["settings"].get(key) != settings[key]]
        batches: list[dict[str, Any]] = state["batches"]
        sizes = [len(batch["broken_by"]) for batch in batches]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no state of AutoAttack: give another state_path") from error
    if different:
        raise ValueError(
            f"{path} belongs to a different evaluation ({', '.join(different)}): give another state_path, "
            "or delete the file to start again"
        )
    whole = settings["batch_size"]
    if sizes != [min(whole, images - first) for first in range(0, images, whole)][: len(sizes)]:
        raise ValueError(f"{path} is damaged: its batches are not of these images; delete it to start again")
    return batches


def _outcome(done: list[dict[str, Any]], settings: Settings, repeats: bool) -> AutoAttackOutcome:
    eps = settings["eps"]
    broken_by = torch.tensor([number for batch in done for number in batch["broken_by"]])
    zeros = [batch["zero_gradient"] for batch in done if batch.get("zero_gradient") is not None]
    return AutoAttackOutcome(
        name=f"autoattack_{settings['version']}_{settings['norm']}_{length_text(eps)}",
        correct=broken_by == ROBUST,
        seconds=sum(batch["seconds"] for batch in done),
        # An L2 or L1 radius does not compare with those of the other attacks.
        attack=Attack("autoattack", eps=eps, seed=settings["seed"]) if settings["norm"] == "Linf" else None,
        attacks=tuple(settings["attacks"]),
        broken_by=broken_by,
        zero_gradient=sum(zeros) if zeros else None,
        repeatable=repeats,
        flags=tuple(sorted({flag for batch in done for flag in batch["flags"]})),
    )
