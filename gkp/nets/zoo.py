"""Networks with weights: public checkpoints, those of this repository, torchvision's.

Every file is checked against a SHA-256 and none is unpickled: code in a checkpoint never runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.nets import checkpoint, models
from gkp.nets.files import foreign, published
from gkp.utils import files
from gkp.utils.nearest import shown, unknown


def load_model(
    name: str | os.PathLike[str],
    *,
    dataset: str = "cifar10",
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """A network in eval mode: pixels (N, 3, H, W) in [0, 1] in, logits out.

    name: a network of `models.names()`, "torchvision:" and a network of torchvision's, the id
    "suite/run" of a checkpoint shipped with this repository, or the path of a file of `save_model`.
    dataset: what an untrained or public network should be for: it sets the number of classes.
    weights: None for the usual public ones (the authors' for ResNet-20, akamaster's for deeper ResNets,
    torchvision's for ImageNet), "authors", "akamaster", "random" (torch's global seed decides), or the
    path of a file: one of `save_model`, or the state_dict of another tool in safetensors or a file of
    torch.save (then a warning says which normalisation was taken; nothing is unpickled).

    Public files are looked for in GKP_CHECKPOINTS, then in the cache, then downloaded. ValueError:
    unknown names (it lists the choices) or a damaged file (named, with expected and found hash).
    FileNotFoundError: a file is not there and cannot be downloaded.
    """
    if foreign.is_path(name):
        if weights is not None:
            raise ValueError(f"{name} has its own weights: name a network with weights={str(weights)!r}")
        return checkpoint.load_file(foreign.path_of(name))
    name = str(name)
    if "/" in name:
        return checkpoint.load_file(published.shipped_file(name))
    file = foreign.path_of(weights) if weights is not None and foreign.is_path(weights) else None
    if file is not None and foreign.is_ours(file):
        return _own(name, file)
    if dataset not in models.CLASSES:
        raise ValueError(unknown("data set", dataset, models.CLASSES))
    if file is not None:
        return _theirs(name, dataset, file)
    if weights == "random":
        return published.untrained(name, models.CLASSES[dataset]).eval()
    if name.startswith(models.TORCHVISION):
        return published.torchvision(name, weights)
    return _public(name, dataset, weights)


def named_model(
    name: str, dataset: str | None = None, *, shipped: Path | None = None
) -> tuple[str, nn.Module, str]:
    """(what it was made from, the network, its data set) for a `name` of `load_model`; errors as there.

    dataset: as in `load_model`. shipped: the folder of checkpoints with manifest.json where "suite/run" is
    looked for, by default this repository's. A file of this tool says what it was made from and for;
    torchvision's weights are for ImageNet, other public ones for CIFAR-10. ValueError when `dataset` is none
    of models.CLASSES or another than that, and for weights that are not finite numbers.
    """
    if dataset is not None and dataset not in models.CLASSES:
        raise ValueError(unknown("data set", dataset, models.CLASSES))
    path, network = _path_of(name, shipped), name
    made_for = "imagenet" if name.startswith(models.TORCHVISION) else dataset or "cifar10"
    if path is not None:
        loaded, header = own_file(path)
        network, made_for = header["network"], str(header.get("dataset"))
    if dataset is None and made_for not in models.CLASSES:
        raise ValueError(
            f"{name} is for {shown(made_for)}: give --dataset, one of {', '.join(models.CLASSES)}"
        )
    if dataset is not None and made_for in models.CLASSES and made_for != dataset:
        raise ValueError(f"{name} is for {made_for}, not for {dataset}: leave --dataset out")
    if path is None:
        loaded = load_model(name, dataset=made_for)
    damaged = [key for key, value in loaded.state_dict().items() if not value.isfinite().all()]
    if damaged:
        raise ValueError(
            f"{name} has weights that are no finite numbers in {damaged[0]}"
            f"{f' and {len(damaged) - 1} more' if len(damaged) > 1 else ''}: its training diverged, or the "
            "file is damaged; give another"
        )
    return network, loaded, dataset or made_for


def own_file(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file of this tool, and what the file says of itself; errors say what to give."""
    try:
        return checkpoint.load_file(files.readable_file(path)), checkpoint.read_header(path)
    except checkpoint.NeedsBase:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; give a file that gkp.nets.checkpoint.save_model wrote") from error


def _path_of(name: str, shipped: Path | None) -> Path | None:
    """The file behind a name that is a path, or the id of a shipped checkpoint; None for a network's name."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if os.path.lexists(name) and name not in models.names() or path.suffix in foreign.SUFFIXES:
        raise ValueError(
            f"{shown(name)} is no .safetensors file of this tool: load it in Python and save it with "
            "gkp.nets.checkpoint.save_model"
        )
    return published.shipped_file(name, shipped) if "/" in name else None


def _theirs(name: str, dataset: str, path: Path) -> nn.Module:
    """The network `name` with the weights of another tool's file."""
    model = published.to_fill(name, models.CLASSES[dataset])
    inner = model.get_submodule("network") if name.startswith(models.TORCHVISION) else model
    tensors = foreign.read_tensors(path)
    foreign.fitted(inner, tensors, path, models.CLASSES)
    if not any(key.endswith("normalize.mean") for key in tensors):
        foreign.warn_about_normalisation(path, model.get_submodule("normalize"))
    return model.eval()


def _public(name: str, dataset: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    if name not in models.names():
        others = ("torchvision:...", "a suite/run of checkpoints/", "a .safetensors file")
        raise ValueError(unknown("network", name, models.names(), also=others))
    weights = weights or ("authors" if name == "resnet20" else "akamaster")
    available = {"authors": ("resnet20",), "akamaster": tuple(published.AKAMASTER)}
    if weights not in available:
        raise ValueError(
            f"unknown weights {str(weights)!r}: choose authors, akamaster, random or a .safetensors file"
        )
    if name not in available[weights] or dataset != "cifar10":
        raise ValueError(
            f"{weights} published no {name} for {dataset}, only {', '.join(available[weights])} for cifar10: "
            f'choose weights="random" or a .safetensors file'
        )
    return published.authors() if weights == "authors" else published.akamaster(name)


def _own(name: str, path: str | Path) -> nn.Module:
    network = checkpoint.read_header(path)["network"]
    if network != name:
        raise ValueError(
            f"{path} holds a {network}, not a {name}: ask for load_model({network!r}, weights=...)"
        )
    return checkpoint.load_file(path)


def check_fits(network: nn.Module, example: Tensor, name: str, dataset: str) -> None:
    """ValueError unless the network takes images of the data set and has a logit for each of its classes."""
    size, classes = f"{example.shape[-2]}x{example.shape[-1]}", models.CLASSES[dataset]
    try:
        with torch.no_grad():
            logits = network.eval()(example)
    except RuntimeError as error:  # what PyTorch raises for shapes that do not go together
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{shown(name)} does not take images of {dataset} (3 channels, {size}): {reason}; "
            "give another --dataset or network"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{shown(name)} gives {found} for one image, and {dataset} has {classes} classes: "
            "give another --dataset or network"
        )
