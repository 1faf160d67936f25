"""RobustBench (Croce et al. 2021): its benchmark on our own images, and its model zoo.

RobustBench 1.1.1 imports AutoAttack under the name `autoattack` and calls it with arguments that
pyautoattack 0.2.0 renamed. Both are bridged here without changing either package. Importing takes many
seconds, so it happens where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import warnings
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from gkp.attacks.autoattack import Checked, quiet
from gkp.attacks.linf import check_inputs, frozen
from gkp.utils.logits import check_classes, device_of, logits
from gkp.utils.whole import is_whole

FEWEST_CLASSES = 10  # of its targeted attacks, which aim at nine others


def benchmark(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    threat_model: str = "Linf",
    batch_size: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """(clean, robust) accuracy as fractions, from `robustbench.benchmark` itself on these images.

    Everything is the package's own (standard AutoAttack), but its data loader hands out x and y instead
    of downloading a data set. There is no resume and no per-image result: `gkp.attacks.autoattack.autoattack`
    has both. x: float32 (N, C, H, W) in [0, 1]; y: integer (N,); threat_model: "Linf" or "L2"; the model
    needs 10 classes or more. Raises ValueError for bad arguments and for a model whose output is no finite
    logits (N, classes), ImportError for a damaged installation.
    """
    if threat_model not in ("Linf", "L2"):
        raise ValueError(f'threat_model={threat_model!r}: choose "Linf" or "L2"')
    y, labels = check_inputs(x, y, eps, in_pixels=threat_model == "Linf")
    if not len(x) or eps == 0:
        raise ValueError(f"{len(x)} images, eps={eps}: give at least one image and an eps above 0")
    if not is_whole(batch_size):
        raise ValueError(f"batch_size={batch_size!r}: give a whole number, 1 or more")
    evaluation = _module("eval")
    device = device_of(model, x)
    auto_attack = functools.partial(_OldAutoAttack, seed=seed)
    checked = Checked(model)
    with (
        frozen(model),
        quiet(device),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(evaluation, "AutoAttack", auto_attack),
        mock.patch.object(evaluation, "load_clean_dataset", return_value=(x, y)),
    ):
        with torch.no_grad():
            classes = logits(model, x[:1].to(device)).shape[1]
            check_classes(*labels, classes)
            if classes < FEWEST_CLASSES:
                raise ValueError(
                    f"the model has {classes} classes, and this AutoAttack needs {FEWEST_CLASSES}: call "
                    "gkp.attacks.autoattack.autoattack"
                )
        accuracies: tuple[float, float] = evaluation.benchmark(
            checked.eval(), len(x), threat_model=threat_model, eps=eps, batch_size=batch_size, device=device
        )
    checked.check()
    return accuracies


def load_model(
    name: str, threat_model: str = "Linf", *, dataset: str = "cifar10", folder: str | Path = "models"
) -> nn.Module:
    """A network of RobustBench's zoo in eval mode, e.g. "Standard" or "Wong2020Fast"; pixels in, logits out.

    Looks in `folder` and downloads what is not there. Raises ValueError for an unknown name and
    FileNotFoundError when the weights are neither there nor to be had.
    """
    networks = {
        (data.value, threat.value): list(by_name)
        for data, by_threat in _module("model_zoo").model_dicts.items()
        for threat, by_name in by_threat.items()
    }
    if (dataset, threat_model) not in networks:
        choices = "; ".join(" ".join(key) for key in networks)
        raise ValueError(f"RobustBench has nothing for {dataset} {threat_model}: choose one of {choices}")
    names = networks[dataset, threat_model]
    if name not in names:
        close = get_close_matches(name, names, 3, 0.3) or names[:3]
        raise ValueError(f"RobustBench has no {name!r} for {dataset} {threat_model}: try {', '.join(close)}")
    failures = (OSError, importlib.import_module("gdown.exceptions").FileURLRetrievalError)
    try:
        model: nn.Module = _module("utils").load_model(name, folder, dataset, threat_model)
    except failures as error:
        raise FileNotFoundError(
            f"{Path(folder) / dataset / threat_model / name}.pt is not there and the download failed "
            f"({type(error).__name__}): connect to the internet or put RobustBench's weights there"
        ) from error
    return model


class _OldAutoAttack:
    """pyautoattack 0.2.0 behind the arguments that robustbench 1.1.1 uses."""

    def __init__(self, model: nn.Module, *, log_path: str | None, seed: int, **options: Any) -> None:
        from pyautoattack import AutoAttack

        self._attack = AutoAttack(model, seed=seed, **options)

    def run_standard_evaluation(
        self, x: Tensor, y: Tensor, bs: int, state_path: Path | None = None
    ) -> Tensor:
        results = self._attack.run_standard_evaluation(x, y, batch_size=bs, state_path=state_path)
        adversarial: Tensor = results[0]
        return adversarial


def _module(name: str) -> ModuleType:
    """`robustbench.<name>`, imported with pyautoattack standing in for `autoattack`."""
    aliases = {old: importlib.import_module(f"py{old}") for old in ("autoattack", "autoattack.state")}
    before = {old: sys.modules.get(old) for old in aliases}
    sys.modules.update(aliases)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources and old timm paths, none of them ours to mend
            package = importlib.import_module("robustbench")
            module = importlib.import_module(f"robustbench.{name}")
    finally:
        for old, module_before in before.items():
            if module_before is None:
                del sys.modules[old]
            else:
                sys.modules[old] = module_before
    if not hasattr(package, "benchmark"):
        raise ImportError(
            "robustbench is damaged: torchattacks ships an old copy and overwrote its files; "
            "run: pip install --force-reinstall --no-deps robustbench==1.1.1"
        )
    return module
