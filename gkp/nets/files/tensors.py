"""The tensors that a file holds of a network: which, their hash, and who shares one."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from gkp.nets.grouped_base import GroupedKernels


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of CPU tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the state_dict, and the buffers that it leaves out.

    ValueError names a module that puts something else than tensors into it.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            module = name.rpartition(".")[0] or "the network"
            raise ValueError(
                f"{module} puts a {type(value).__name__} into the state_dict (get_extra_state), which a file "
                "cannot hold: keep it in a buffer instead"
            )
    return {name: value.detach() for name, value in (state | unlisted(model)).items()}


def unlisted(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not persistent, but for those that layers of grouped kernels derive from others."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, GroupedKernels)
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }


def ties(state: dict[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is that of an earlier name: {name: earlier name}."""
    first: dict[Any, str] = {}
    tied = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
        first.setdefault(place, name)
    return tied


def tie(model: nn.Module, name: str, original: str) -> None:
    """Give the tensor called `name` the place in memory of `original`."""
    (owner, own), (source, theirs) = (each.rpartition(".")[::2] for each in (name, original))
    module, other = model.get_submodule(owner), model.get_submodule(source)
    for table in ("_parameters", "_buffers"):
        if theirs in getattr(other, table):
            getattr(module, table)[own] = getattr(other, table)[theirs]
