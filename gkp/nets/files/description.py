"""A network in words: which one to start from, and what in it differs, as JSON values.

Nothing but data goes in, and nothing but data comes out: layers are made by the constructors in KINDS, and
of other modules only plain values change that the network itself has already.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from gkp.nets.channels.replacement import replace_module
from gkp.nets.files import attributes
from gkp.nets.files.attributes import is_plain
from gkp.nets.grouped import GroupedKernelConv2d, GroupedKernelLinear
from gkp.nets.grouped_base import GroupedKernels
from gkp.nets.models import Nothing

_WINDOW = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
_CONV = (*_WINDOW, "groups", "bias", "padding_mode")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
# The modules a file can describe, with the constructor arguments that are also attributes.
KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv1d": (nn.Conv1d, _CONV),
    "Conv2d": (nn.Conv2d, _CONV),
    "Conv3d": (nn.Conv3d, _CONV),
    "ConvTranspose2d": (nn.ConvTranspose2d, (*_CONV, "output_padding")),
    "GroupedKernelConv2d": (GroupedKernelConv2d, (*_WINDOW, "bias", "execution", "padding_mode")),
    "GroupedKernelLinear": (GroupedKernelLinear, ("in_features", "out_features", "bias", "execution")),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
    "BatchNorm3d": (nn.BatchNorm3d, _NORM),
    "InstanceNorm2d": (nn.InstanceNorm2d, _NORM),
    "GroupNorm": (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "PReLU": (nn.PReLU, ("num_parameters",)),
    "Identity": (nn.Identity, ()),
    "ReLU": (nn.ReLU, ("inplace",)),
    "Nothing": (Nothing, ("out_channels", "kernel_size", "stride", "padding", "dilation")),
}
CHANGED = "changed"  # a module of the network's own, with other values and sizes
_KIND_OF = {kind: name for name, (kind, _) in KINDS.items()}


def differences(model: nn.Module, base: nn.Module, path: str = "") -> dict[str, Any]:
    """Entries, by module path, for everything in `model` that is not as in `base`.

    ValueError names what cannot be described.
    """
    if _kind(model) != _kind(base):
        return _replaced(model, path)
    if type(model) in _KIND_OF:
        arguments = KINDS[_KIND_OF[type(model)]][1]
        if _arguments(model, arguments) != _arguments(base, arguments):
            return _replaced(model, path)
    if list(_children(model)) != list(_children(base)):
        return _replaced(model, path)
    values = attributes.changed(model, base)
    resized = _sizes(model) != _sizes(base)
    entries: dict[str, Any] = {path: {"kind": CHANGED, "values": values}} if values or resized else {}
    if not entries and not _children(model) and repr(model) != repr(base):
        return _replaced(model, path)
    others = _children(base)
    for name, child in _children(model).items():
        entries |= differences(child, others[name], f"{path}.{name}" if path else name)
    return entries


def _kind(module: nn.Module) -> Any:
    """Its class, or what stands for those that PyTorch makes for a single instance."""
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule, module.code
    return parametrize.type_before_parametrizations(module)


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """All modules right below, also those that stand there twice."""
    return {name: child for name, child in module._modules.items() if child is not None}


def _replaced(module: nn.Module, path: str) -> dict[str, Any]:
    if not path:
        raise ValueError(
            f"the model is a {type(module).__name__}, unlike the network it is to be saved as: give a base "
            "of its class, and of its code if torch.fx made it; of a DataParallel save model.module"
        )
    return {path: _describe(module, path)}


def _sizes(module: nn.Module) -> dict[str, torch.Size]:
    own = {**module._parameters, **module._buffers}
    return {name: tensor.shape for name, tensor in own.items() if tensor is not None}


def _arguments(module: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    arguments = {name: module.bias is not None if name == "bias" else getattr(module, name) for name in names}
    if isinstance(module, GroupedKernelConv2d) and module.padding_mode == "zeros":
        del arguments["padding_mode"]  # files of before it was an argument stay as they are
    return arguments


def _describe(module: nn.Module, path: str) -> dict[str, Any]:
    """The entry from which `_build` makes a module like this one."""
    if type(module) is nn.Sequential:
        children = [[name, _describe(child, f"{path}.{name}")] for name, child in _children(module).items()]
        return {"kind": "Sequential", "children": children}
    kind = _KIND_OF.get(type(module))
    if kind is None:
        raise ValueError(
            f"{path} is a {type(module).__name__}, which a file cannot describe: {', '.join(KINDS)} can"
        )
    return {"kind": kind, **_arguments(module, KINDS[kind][1])}


def aliases(model: nn.Module) -> dict[str, str]:
    """Second and further names of modules: {name: first name}, without what lies below such a name."""
    first: dict[nn.Module, str] = {}
    later: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in first:
            first[module] = name
        elif name.rpartition(".")[0] not in later and not any(name.startswith(f"{each}.") for each in later):
            later[name] = first[module]
    return later


def rebuild(
    base: nn.Module, entries: dict[str, Any], names: dict[str, str], tensors: dict[str, Tensor]
) -> nn.Module:
    """`base`, changed in place as `entries` and `names` (`aliases`) say, its tensors not loaded yet."""
    with torch.random.fork_rng(devices=[]):
        for path, entry in entries.items():
            if entry["kind"] == CHANGED:
                _change(base.get_submodule(path), entry["values"], path, tensors)
            else:
                _put(base, path, _build(entry, path, tensors))
    for name, original in names.items():
        _put(base, name, base.get_submodule(original))
    return base


def _put(network: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at `path`, and for what stood there alone into plain lists of modules, too."""
    old = network.get_submodule(path)
    if sum(module is old for _, module in network.named_modules(remove_duplicate=False)) == 1:
        replace_module(network, old, new)
    else:
        network.set_submodule(path, new)


def _change(module: nn.Module, values: dict[str, Any], path: str, tensors: dict[str, Tensor]) -> None:
    """Plain values of `module`, and places of the right size for its own tensors."""
    for name, value in values.items():
        before = attributes.held(module, name)
        if not is_plain(before) or not is_plain(value):
            raise ValueError(f"{path}.{name} is no plain value, so that a file cannot change it")
        setattr(module, name, tuple(value) if isinstance(before, tuple) else copy.copy(value))
    for name, tensor in {**module._parameters, **module._buffers}.items():
        saved = tensors.get(f"{path}.{name}" if path else name)
        if tensor is None or saved is None or saved.shape == tensor.shape:
            continue
        place = torch.empty_like(saved)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(place, tensor.requires_grad)
        else:
            module._buffers[name] = place


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
