"""Checkpoints of networks, pruned ones too: safetensors, never pickle.

A file holds the tensors of the state_dict, the buffers that are not persistent, and one JSON entry that
says which network to start from and which of its modules to replace by what, so that nothing but data is
ever read from it. Tensors and entry have a hash each; files of before the entry had one still load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from gkp.nets.files import attributes, description, foreign
from gkp.nets.files.attributes import COMPILED
from gkp.nets.files.header import (
    FORMAT,
    NeedsBase,
    as_text,
    base_arguments,
    header_sha256,
    read_header,
    unpruned,
)
from gkp.nets.files.tensors import state_of, tensors_sha256, tie, ties, unlisted
from gkp.utils import files

__all__ = ["NeedsBase", "load_file", "read_header", "save_model"]


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
    values to keep beside it. What torch.compile puts around a network is left out.

    ValueError, before anything is written, when the path ends otherwise than in .safetensors, and when the
    model holds something that a file cannot describe: modules not in KINDS in place of the network's own,
    hooks, masks, an extra state (get_extra_state), functions and settings unlike those of `base`. Other
    attributes unlike those of `base`, which may be results of running, are named in an `UnlikeBaseWarning`.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: give a name that ends in .safetensors, as only those load")
    model, base = _uncompiled(model), None if base is None else _uncompiled(base)
    state = state_of(model)
    if any(value.is_meta for value in state.values()):
        raise ValueError(f"this {network} is on the meta device: load its weights before saving")
    tied = ties(state)
    tensors = {name: value.cpu().clone().contiguous() for name, value in state.items() if name not in tied}
    header = {
        "format": FORMAT,
        "network": network,
        "dataset": dataset,
        **base_arguments(model),
        "about": about or {},
        "tensors": tensors_sha256(tensors),
    }
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{name or network} has forward hooks, which a file cannot hold: remove them first"
            )
    header["modules"] = description.differences(model, unpruned(header, base))
    # What most networks lack is not mentioned, so that their files stay the same.
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    optional = {
        "tied": tied,
        "frozen": frozen,
        "buffers": list(unlisted(model)),
        "names": _new_aliases(model, header, tensors | state, base),
        "base": {} if base is None else attributes.settings(base),
    }
    header |= {key: value for key, value in optional.items() if value}
    header = json.loads(as_text(header))
    _prove(model, header, tensors, base)
    header["header"] = header_sha256(header)
    data = safetensors.torch.save(tensors, {"gkp": as_text(header)})
    files.atomic_write_bytes(path, data)
    return files.sha256_bytes(data)


def _uncompiled(model: nn.Module) -> nn.Module:
    """The network inside torch.compile."""
    while COMPILED in model._modules:
        model = model.get_submodule(COMPILED)
    return model


def _new_aliases(
    model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module | None
) -> dict[str, str]:
    """Second names of modules that the network in `header` does not give by itself."""
    names = description.aliases(model)
    if not names:
        return {}
    rebuilt = description.rebuild(unpruned(header, base), header["modules"], {}, tensors)
    return {
        name: original
        for name, original in names.items()
        if rebuilt.get_submodule(name) is not rebuilt.get_submodule(original)
    }


def _prove(
    model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module | None
) -> None:
    """ValueError unless what `header` describes takes exactly these tensors and is built like `model`."""
    network = header["network"]
    try:
        rebuilt = _rebuild(header, tensors, base)
    except RuntimeError as error:
        raise ValueError(f"this {network} cannot be described in a file: {error}") from error
    state, saved = state_of(rebuilt), state_of(model)
    moved = [name for name, tensor in tensors.items() if state[name].data_ptr() != tensor.data_ptr()]
    if moved or list(state) != list(saved) or ties(state).keys() != ties(saved).keys():
        raise ValueError(
            f"this {network} cannot be described in a file: it shares {moved[0] if moved else 'tensors'} "
            "otherwise than the network it is to be saved as"
        )
    for name, entry in header["modules"].items():
        if entry["kind"] == description.CHANGED:
            ours, theirs = repr(model.get_submodule(name)), repr(rebuilt.get_submodule(name))
            if ours != theirs:
                raise ValueError(f"{name or network} cannot be described in a file: {ours} would be {theirs}")
    attributes.must_agree(model, rebuilt)


def load_file(path: str | Path, *, base: nn.Module | None = None) -> nn.Module:
    """The network in `path`, as saved bit for bit, in eval mode on the CPU.

    base: for networks that were saved with one; an `UnlikeBaseWarning` names modules of it that are of
    another class or have other settings than those of the base at saving. ValueError names a file that is
    damaged or was not written by `save_model`; FileNotFoundError one that is not there.
    """
    header = read_header(path)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if header.get("tensors") != tensors_sha256(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were saved; copy it again")
    if base is not None and not all(name.startswith(f"{COMPILED}.") for name in tensors):
        base = _uncompiled(base)  # older files may hold the network with what torch.compile puts around it
    if base is not None and "base" in header:
        attributes.warn_of_other_base(header["base"], base, path)
    try:
        return _rebuild(header, tensors, base).eval()
    except NeedsBase as error:
        raise NeedsBase(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        remedy = "" if base is None else "; give the base that it was saved with"
        why = " ".join(str(error).split())
        raise ValueError(f"{path} describes a network that cannot be rebuilt{remedy}: {why}") from error


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor], given: nn.Module | None) -> nn.Module:
    """The network that `header` describes, with `tensors`: those of the file."""
    tied = header.get("tied", {})
    tensors = tensors | {name: tensors[original] for name, original in tied.items()}
    model = description.rebuild(unpruned(header, given), header["modules"], header.get("names", {}), tensors)
    # assign: the parameters become these tensors, whatever their type
    unlisted = header.get("buffers", ())
    listed = {name: tensor for name, tensor in tensors.items() if name not in unlisted}
    model.load_state_dict(foreign.as_state_of(model, listed), assign=True)
    for name in unlisted:
        module, _, own = name.rpartition(".")
        buffers = model.get_submodule(module)._buffers
        if own not in buffers:
            raise ValueError(f"the unpruned network has no buffer {name}: register it there too")
        buffers[own] = tensors[name]
    for name, original in tied.items():
        tie(model, name, original)
    for name in header.get("frozen", ()):
        model.get_parameter(name).requires_grad_(False)
    return model
