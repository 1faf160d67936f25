"""What a checkpoint says about itself: one JSON entry beside the tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from gkp.nets import models
from gkp.nets.channels.copying import copied
from gkp.nets.files import foreign
from gkp.nets.grouped import GroupedKernelLinear

FORMAT = 1


class NeedsBase(ValueError):
    """A file or a network that says by name alone which network it is, and the name is one of the user's."""


def read_header(path: str | Path) -> dict[str, Any]:
    """What `path` says about itself: network, dataset, about, modules, ...; errors as `load_file`."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if foreign.reason(path):
        raise ValueError(f"{path} {foreign.reason(path)}")
    if foreign.is_torch(path):
        raise ValueError(
            f"{path} is a pickle of torch.save, which is never run: name the network whose weights it has, "
            f'as in gkp.load_model("resnet20", weights="{path}")'
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a checkpoint of gkp (safetensors): {error!r}") from error
    if "gkp" not in metadata:
        raise ValueError(
            f"{path} is not a checkpoint of gkp and does not say which network it is for: name it, as in "
            f'gkp.load_model("resnet20", weights="{path}")'
        )
    try:
        header = json.loads(metadata["gkp"])
        version = header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its header is {error!r}; copy it again") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT}: update gkp")
    if header.get("header", found := header_sha256(header)) != found:
        raise ValueError(f"{path} is damaged: its header is not the one that was saved; copy it again")
    return header


def header_sha256(header: dict[str, Any]) -> str:
    """SHA-256 over the JSON, its keys sorted, of what `read_header` gives, without its own entry "header"."""
    rest = {key: value for key, value in header.items() if key != "header"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def as_text(header: dict[str, Any]) -> str:
    try:
        return json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"about can hold numbers, texts, lists and dictionaries only: {error}") from error


def base_arguments(model: nn.Module) -> dict[str, Any]:
    """`base_network`'s arguments, read off the model."""
    normalize = getattr(model, "normalize", None)
    shortcuts = [m for m in model.modules() if isinstance(m, models.OptionAShortcut)]
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, GroupedKernelLinear))]
    arguments: dict[str, Any] = {
        "num_classes": linear[-1].out_features if linear else 10,
        "zeros": "around" if any(shortcut.padding[4] for shortcut in shortcuts) else "after",
    }
    if isinstance(normalize, models.Normalize):
        arguments |= {key: getattr(normalize, key).flatten().tolist() for key in ("mean", "std")}
    return arguments


def unpruned(header: dict[str, Any], given: nn.Module | None) -> nn.Module:
    """The unpruned network that `header` starts from; the random state of the caller is left alone."""
    if given is not None:
        return copied(given)
    name = header["network"]
    if name not in models.names() and not name.startswith(models.TORCHVISION):
        raise NeedsBase(
            f"unknown network {name!r}: choose one of {', '.join(models.names())}, torchvision:NAME; for "
            "your own give base=, an unpruned instance, to save_model and gkp.nets.checkpoint.load_file"
        )
    arguments = {key: header[key] for key in ("num_classes", "mean", "std", "zeros") if key in header}
    with torch.random.fork_rng(devices=[]):
        return models.base_network(header["network"], **arguments)
