"""AutoAttack (Croce & Hein 2020) with a resume that works, and RobustBench (Croce et al. 2021).

Both packages are imported where they are used: RobustBench takes many seconds. RobustBench 1.1.1 expects
AutoAttack under the module name `autoattack` and calls it with arguments that pyautoattack 0.2.0 renamed;
`_import_robustbench` and `_OldAutoAttack` bridge the two without changing either.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from gkp.attacks import Attack, frozen
from gkp.evaluate import Outcome, device_of
from gkp.files import atomic_write_text, sha256_bytes

ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}
NORMS = ("Linf", "L2", "L1")
CLEAN, ROBUST = 0, -1  # in `broken_by`: wrong without an attack; right under every attack


@dataclass(frozen=True)
class AutoAttackOutcome(Outcome):
    """`broken_by`: int64 (N,), ROBUST, CLEAN, or k for `attacks[k - 1]`, the first attack that worked.

    `flags`: AutoAttack's own warnings that its result may be unreliable, e.g. vanishing gradients.
    """

    attacks: tuple[str, ...] = ()
    broken_by: Tensor = torch.empty(0, dtype=torch.int64)
    flags: tuple[str, ...] = ()


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
    """Which images survive AutoAttack of radius eps in pixels, on the model's device.

    x: float32 (N, C, H, W) in [0, 1]; y: int64 (N,). version: "standard" (the one to report), "plus",
    "rand", or "custom" with `attacks` from ATTACKS. Images are done `batch_size` at a time, `progress(done,
    total)` is called after each batch, and with `state_path` (JSON) a batch is on disk before: a run that
    was killed continues there and gives the result of an undisturbed one. Random draws restart with `seed`
    for every batch; torch's global generators are left as they were.
    Raises ValueError for bad arguments and for a state that belongs to a different evaluation.
    """
    attacks = _check(x, y, eps, norm, version, attacks, batch_size)
    parts = [slice(first, first + batch_size) for first in range(0, len(x), batch_size)]
    settings = _settings(model, x, y, eps, norm, version, attacks, batch_size, seed)
    done = _load_state(state_path, settings)
    with frozen(model), _quiet_run(device_of(model, x)) as flags:
        for part in parts[len(done) :]:
            flags.clear()
            start = time.perf_counter()
            adversary = _adversary(model, device_of(model, x), eps, norm, version, attacks, seed)
            broken_by = _attack_batch(adversary, model, x[part], y[part], attacks, batch_size)
            seconds = round(time.perf_counter() - start, 3)
            done.append({"broken_by": broken_by.tolist(), "seconds": seconds, "flags": sorted(flags)})
            if state_path is not None:
                atomic_write_text(state_path, json.dumps({"settings": settings, "batches": done}))
            if progress:
                progress(min(part.stop, len(x)), len(x))
    return _outcome(done, settings, attacks)


def robustbench_benchmark(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str = "Linf", batch_size: int = 200, seed: int = 0
) -> tuple[float, float]:
    """(clean, robust) accuracy as fractions from `robustbench.benchmark`, run on these images.

    The package's own evaluation from start to end, except that its data loader hands out x and y instead
    of downloading a data set. It cannot resume and returns no per-image results: use `autoattack` for
    those. norm: "Linf" or "L2". Arguments and errors otherwise as in `autoattack`, standard version.
    """
    _check(x, y, eps, norm, "standard", None, batch_size)
    if norm not in ("Linf", "L2"):
        raise ValueError(f'norm={norm!r}: robustbench knows "Linf" and "L2"; gkp.autoattack.autoattack has L1')
    robustbench_eval = _import_robustbench("robustbench.eval")
    device = device_of(model, x)
    replaced = {
        "AutoAttack": lambda *args, **options: _OldAutoAttack(*args, seed=seed, **options),
        "load_clean_dataset": lambda *_: (x, y),
    }
    with frozen(model), _quiet_run(device), mock.patch.multiple(robustbench_eval, **replaced):
        return robustbench_eval.benchmark(
            model, n_examples=len(x), threat_model=norm, eps=eps, batch_size=batch_size, device=device
        )


def load_robustbench(
    name: str, threat_model: str = "Linf", *, dataset: str = "cifar10", folder: str | Path = "models"
) -> nn.Module:
    """A network of RobustBench's model zoo in eval mode, e.g. "Standard" or "Wong2020Fast": pixels in.

    Downloads into `folder` what is not there yet. Raises ValueError for an unknown name and
    FileNotFoundError when the weights are neither there nor to be had.
    """
    zoo = _import_robustbench("robustbench.model_zoo").model_dicts
    utils = _import_robustbench("robustbench.utils")
    known = {
        (d.value, t.value): sorted(networks) for d, by_threat in zoo.items() for t, networks in by_threat.items()
    }
    if (dataset, threat_model) not in known:
        choices = ", ".join(f"{d} {t}" for d, t in known)
        raise ValueError(f"RobustBench has no {dataset!r} with {threat_model!r}: choose one of {choices}")
    names = known[dataset, threat_model]
    if name not in names:
        close = ", ".join(get_close_matches(name, names, 3, 0.3)) or f"e.g. {', '.join(names[:3])}"
        raise ValueError(f"RobustBench has no {name!r} for {dataset} {threat_model}: did you mean {close}?")
    gdown_error = importlib.import_module("gdown.exceptions").FileURLRetrievalError
    try:
        return utils.load_model(name, model_dir=folder, dataset=dataset, threat_model=threat_model)
    except (OSError, gdown_error) as error:
        path = Path(folder) / dataset / threat_model / f"{name}.pt"
        raise FileNotFoundError(
            f"{path} is not there and could not be downloaded ({type(error).__name__}): "
            "connect to the internet, or put the weights of RobustBench's model zoo there"
        ) from error


# ---- one batch -----------------------------------------------------------------------------------


def _adversary(
    model: nn.Module, device: torch.device, eps: float, norm: str, version: str, attacks: tuple[str, ...], seed: int
) -> Any:
    from pyautoattack import AutoAttack

    custom = list(attacks) if version == "custom" else None
    return AutoAttack(model, norm=norm, eps=eps, version=version, attacks=custom, device=device, seed=seed)


def _attack_batch(
    adversary: Any, model: nn.Module, x: Tensor, y: Tensor, attacks: tuple[str, ...], batch_size: int
) -> Tensor:
    """`broken_by` of one batch. Each attack gets the images that those before it left right, as in the
    ensemble run, so that the images broken are the same and the attack that did it is known."""
    x, y = x.to(adversary.device), y.to(adversary.device)
    with torch.no_grad():
        logits = model(x)
    _limit_targets(adversary, logits.shape[1], attacks)
    broken_by = torch.where(logits.argmax(1) == y, ROBUST, CLEAN)
    for number, attack in enumerate(attacks, start=1):
        left = (broken_by == ROBUST).nonzero().flatten()
        if not len(left):
            break
        adversary.attacks_to_run = [attack]
        _, predicted = adversary.run_standard_evaluation(x[left], y[left], batch_size=batch_size)
        broken_by[left[predicted != y[left]]] = number
    return broken_by.cpu()


def _limit_targets(adversary: Any, classes: int, attacks: tuple[str, ...]) -> None:
    if classes < 4 and {"apgd-t", "apgd-dlr"} & set(attacks):
        raise ValueError(
            f"{classes} classes: the DLR loss of AutoAttack needs 4; "
            'use version="custom", attacks=("apgd-ce", "fab", "square")'
        )
    for targeted in (adversary.apgd_targeted, adversary.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)


@contextmanager
def _quiet_run(device: torch.device) -> Iterator[set[str]]:
    """Collect AutoAttack's warnings instead of printing them; restore generators and tracing after."""
    flags: set[str] = set()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: flags.add(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("auto-attack")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    # AutoAttack seeds the global generators, and its check for dynamic defences ends any tracing
    # (debuggers, coverage).
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield flags
    finally:
        sys.settrace(trace)
        logger.removeHandler(handler)
        logger.propagate = propagate


# ---- state ---------------------------------------------------------------------------------------


def _settings(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    version: str,
    attacks: tuple[str, ...],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that the result depends on, JSON-able."""
    weights = model.state_dict()
    return {
        "eps": eps,
        "norm": norm,
        "version": version,
        "attacks": list(attacks),
        "seed": seed,
        "batch_size": batch_size,
        "weights": sha256_bytes("".join(f"{k}:{_sha256(weights[k])}" for k in sorted(weights)).encode()),
        "images": _sha256(x),
        "labels": _sha256(y),
    }


def _sha256(tensor: Tensor) -> str:
    array = tensor.detach().cpu().contiguous().numpy()
    return sha256_bytes(f"{array.dtype}{array.shape}".encode() + array.tobytes())


def _load_state(path: str | Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The batches that are done; [] without a state."""
    if path is None or not Path(path).exists():
        return []
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        stored, batches = state["settings"], state["batches"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no AutoAttack state: delete it or give another state_path") from error
    different = sorted(key for key in settings if stored.get(key) != settings[key])
    if different:
        raise ValueError(
            f"{path} belongs to a different evaluation ({', '.join(different)} differ): "
            "give another state_path, or delete the file to start again"
        )
    return batches


def _outcome(done: list[dict[str, Any]], settings: dict[str, Any], attacks: tuple[str, ...]) -> AutoAttackOutcome:
    eps, norm = settings["eps"], settings["norm"]
    broken_by = torch.tensor([b for batch in done for b in batch["broken_by"]])
    described = Attack("autoattack", eps=eps, seed=settings["seed"])
    size = described.name.split("_")[2]
    return AutoAttackOutcome(
        name=f"autoattack_{settings['version']}_{norm}_{size}",
        correct=broken_by == ROBUST,
        seconds=sum(batch["seconds"] for batch in done),
        attack=described if norm == "Linf" else None,
        attacks=attacks,
        broken_by=broken_by,
        flags=tuple(sorted({flag for batch in done for flag in batch["flags"]})),
    )
