"""Checkpoints of networks, pruned ones too: safetensors, never pickle.

A file holds the tensors of the state_dict and one JSON entry that says which network to start from
and which of its modules to replace by what, so that nothing but data is ever read from it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gkp import files, models
from gkp.grouped import GroupedKernelConv2d, GroupedKernelLinear
from gkp.grouped_base import GroupedKernels

FORMAT = 1
TORCHVISION = "torchvision:"

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
# The modules a file can describe, with the constructor arguments that are also attributes.
KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv2d": (nn.Conv2d, (*_CONV, "groups", "bias", "padding_mode")),
    "GroupedKernelConv2d": (GroupedKernelConv2d, (*_CONV, "bias", "execution", "padding_mode")),
    "GroupedKernelLinear": (GroupedKernelLinear, ("in_features", "out_features", "bias", "execution")),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm2d": (nn.BatchNorm2d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    "Identity": (nn.Identity, ()),
    "ReLU": (nn.ReLU, ("inplace",)),
}
_KIND_OF = {kind: name for name, (kind, _) in KINDS.items()}


def base_network(
    network: str,
    *,
    num_classes: int = 10,
    mean: Sequence[float] = models.CIFAR_MEAN,
    std: Sequence[float] = models.CIFAR_STD,
    zeros: str = "after",
) -> nn.Module:
    """`models.create`, and torchvision's classifiers as "torchvision:resnet18", pixels in.

    A torchvision network stands as `network` behind a `normalize` of its own; not GoogLeNet and Inception,
    which preprocess differently with pretrained weights. ValueError for unknown names.
    """
    if not network.startswith(TORCHVISION):
        return models.create(network, num_classes=num_classes, mean=mean, std=std, zeros=zeros)
    import torchvision

    name = network.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(torchvision.models, exclude=("googlenet", "inception_v3"))
    if name not in known:
        raise ValueError(f"unknown torchvision network {name!r}: choose one of {', '.join(known)}")
    inner = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return nn.Sequential(OrderedDict(normalize=models.Normalize(mean, std), network=inner))


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    network: str,
    dataset: str,
    about: dict[str, Any] | None = None,
    base: nn.Module | None = None,
) -> str:
    """Write `model` to `path` atomically and return the file's SHA-256.

    network: the name the model was made from ("resnet20", "torchvision:resnet18", ...). For a network of
    one's own choose any name and give as `base` an unpruned instance, here and to `load_file`. about: JSON
    values to keep beside it. ValueError, before anything is written, when the model holds something that
    a file cannot describe: modules not in KINDS in place of the network's own, hooks, masks.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    header = {
        "format": FORMAT,
        "network": network,
        "dataset": dataset,
        **_base_arguments(model),
        "about": about or {},
        "tensors": tensors_sha256(tensors),
    }
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{name or network} has forward hooks, which a file cannot hold: remove them first"
            )
    header["modules"] = _differences(model, _base(header, base))
    try:
        text = json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"about can hold numbers, texts, lists and dictionaries only: {error}") from error
    # Proof that the file will load: what it describes takes exactly these tensors.
    try:
        _rebuild(json.loads(text), tensors, base)
    except RuntimeError as error:
        raise ValueError(f"this {network} cannot be described in a file: {error}") from error
    data = safetensors.torch.save(tensors, {"gkp": text})
    files.atomic_write_bytes(path, data)
    return files.sha256_bytes(data)


def load_file(path: str | Path, *, base: nn.Module | None = None) -> nn.Module:
    """The network in `path`, as saved bit for bit, in eval mode on the CPU.

    base: for networks that were saved with one. ValueError names a file that is damaged or was not
    written by `save_model`; FileNotFoundError one that is not there.
    """
    header = read_header(path)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if header.get("tensors") != tensors_sha256(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were saved; copy it again")
    try:
        return _rebuild(header, tensors, base).eval()
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} describes a network that cannot be rebuilt: {error}") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """What `path` says about itself: network, dataset, about, modules, ...; errors as `load_file`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["gkp"])
            version = header["format"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint of gkp (safetensors): {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT}: update gkp")
    return header


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of CPU tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _base_arguments(model: nn.Module) -> dict[str, Any]:
    """`base_network`'s arguments, read off the model."""
    normalize = getattr(model, "normalize", None)
    shortcuts = [m for m in model.modules() if isinstance(m, models.OptionAShortcut)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    arguments: dict[str, Any] = {
        "num_classes": linear[-1].out_features if linear else 10,
        "zeros": "around" if any(shortcut.padding[4] for shortcut in shortcuts) else "after",
    }
    if isinstance(normalize, models.Normalize):
        arguments |= {key: getattr(normalize, key).flatten().tolist() for key in ("mean", "std")}
    return arguments


def _base(header: dict[str, Any], given: nn.Module | None) -> nn.Module:
    """The unpruned network that `header` starts from; the random state of the caller is left alone."""
    if given is not None:
        return copy.deepcopy(given)
    arguments = {key: header[key] for key in ("num_classes", "mean", "std", "zeros") if key in header}
    with torch.random.fork_rng(devices=[]):
        return base_network(header["network"], **arguments)


def _arguments(module: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: module.bias is not None if name == "bias" else getattr(module, name) for name in names}
    if isinstance(module, GroupedKernelConv2d) and module.padding_mode == "zeros":
        del found["padding_mode"]  # files of before it was an argument stay as they are
    return found


def _describe(module: nn.Module, path: str) -> dict[str, Any]:
    """The entry from which `_build` makes a module like this one."""
    if type(module) is nn.Sequential:
        children = [[name, _describe(child, f"{path}.{name}")] for name, child in module.named_children()]
        return {"kind": "Sequential", "children": children}
    kind = _KIND_OF.get(type(module))
    if kind is None:
        raise ValueError(
            f"{path} is a {type(module).__name__}, which a file cannot describe: {', '.join(KINDS)} can"
        )
    return {"kind": kind, **_arguments(module, KINDS[kind][1])}


def _differences(model: nn.Module, base: nn.Module, path: str = "") -> dict[str, Any]:
    """Entries, by module path, for everything in `model` that is not as in `base`."""
    same_type = type(model) is type(base)
    if same_type and type(model) in _KIND_OF:
        arguments = KINDS[_KIND_OF[type(model)]][1]
        if _arguments(model, arguments) == _arguments(base, arguments):
            return {}
    elif same_type:
        children, others = dict(model.named_children()), dict(base.named_children())
        if list(children) == list(others) and (children or repr(model) == repr(base)):
            entries: dict[str, Any] = {}
            for name, child in children.items():
                entries |= _differences(child, others[name], f"{path}.{name}" if path else name)
            return entries
    if not path:
        raise ValueError(f"the model is a {type(model).__name__}, unlike the network it is to be saved as")
    return {path: _describe(model, path)}


def _build(entry: dict[str, Any], path: str, tensors: dict[str, Tensor]) -> nn.Module:
    """A module of the kind and arguments that `entry` says."""
    entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    kind = entry.pop("kind")
    if kind == "Sequential":
        named = [(name, _build(child, f"{path}.{name}", tensors)) for name, child in entry["children"]]
        return nn.Sequential(OrderedDict(named))
    if kind not in KINDS:
        raise ValueError(f"{path} is of unknown kind {kind!r}")
    if issubclass(KINDS[kind][0], GroupedKernels):
        entry |= {name: tensors[f"{path}.{name}"] for name in ("filter_order", "kept")}
    return KINDS[kind][0](**entry)


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor], given: nn.Module | None) -> nn.Module:
    model = _base(header, given)
    with torch.random.fork_rng(devices=[]):
        for path, entry in header["modules"].items():
            model.set_submodule(path, _build(entry, path, tensors))
    # assign: the parameters become these tensors, whatever their type
    model.load_state_dict(tensors, assign=True)
    return model
