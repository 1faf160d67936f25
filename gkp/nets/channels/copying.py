"""A deep copy of any network, or the name of what cannot be copied; runs that leave a network alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from gkp.utils.functions import rebound

Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value", bound=Tensor)


class CopyError(ValueError):
    """No copy can be made of a network."""


def copied(model: Network) -> Network:
    """A deep copy of `model`, also where it keeps tensors that were computed.

    copy.deepcopy refuses those: masked weights of torch.nn.utils, features kept from the last forward. They
    are copied as values; whatever computes them does so again. Attributes of parameters stay. It takes
    functions as they are, too: hooks and lambdas over `self` here mean the copy. Of programs of
    torch.fx it forgets modes, hooks and attributes, which are set again. CopyError names what else cannot
    be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors(vars(module)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    seen = dict(memo)
    try:
        new = copy.deepcopy(model, seen)
    except Exception as error:  # whatever the classes of a user raise
        raise CopyError(f"the network cannot be copied: {_culprit(model, memo) or error}") from error
    for old, parameter in zip(model.parameters(), new.parameters(), strict=False):
        with_attributes(parameter, old)
    pairs = list(zip(model.modules(), new.modules(), strict=False))
    for old_module, module in pairs:
        if isinstance(old_module, fx.GraphModule):
            _complete(module, old_module, seen)
    known = _counterparts(pairs)
    for _, module in pairs:
        for name, value in vars(module).items():
            vars(module)[name] = rebound(value, known)
    return new


def _complete(new: nn.Module, old: fx.GraphModule, memo: dict[int, Any]) -> None:
    """Give `new`, a copy of a program, what the program does not copy of itself. memo: of copy.deepcopy."""
    for name, value in vars(old).items():
        if name not in vars(new) or "_hook" in name:
            vars(new)[name] = copy.deepcopy(value, memo)
    modes = {name: module.training for name, module in old.named_modules(remove_duplicate=False)}
    if new.training != old.training:
        new.train(old.training)  # which may exchange its graph
    for name, module in new.named_modules():
        module.training = modes.get(name, module.training)


def with_attributes(new: Value, old: Tensor) -> Value:
    """`new` itself with the attributes that a user set on the parameter `old`: copy.deepcopy forgets them."""
    for name, value in vars(old).items():
        if name not in vars(new):
            setattr(new, name, value)
    return new


def _counterparts(pairs: list[tuple[nn.Module, nn.Module]]) -> dict[int, Any]:
    """id of a module of the network, a tensor or a container in it -> what stands for it in the copy."""
    known: dict[int, Any] = {}
    for old, new in pairs:
        known[id(old)] = new
        for place in (vars, lambda module: module._parameters, lambda module: module._buffers):
            ours, theirs = place(old), place(new)
            for name, value in ours.items():
                if isinstance(value, (Tensor, list, dict, set)) and name in theirs:
                    known[id(value)] = theirs[name]
    return known


def _tensors(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Tensors in plain containers, some levels deep."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each, depth - 1)
    elif depth and isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each, depth - 1)


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """The attribute of a module that deepcopy refuses, and what to do."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute == "_modules":  # each is asked itself
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as error:
                place = f"{name}.{attribute}" if name else attribute
                return (
                    f"{place} is a {type(value).__name__} that copy.deepcopy refuses ({error}); "
                    "take it out of the network, or give its class a __deepcopy__"
                )
    return ""


# ---- runs that leave a network alone -----------------------------------------------------------------------


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Afterwards the network's buffers and attributes are as before: a forward may count, average or keep.

    For networks that cannot be copied. Parameters and what lies deeper in objects are not put back.
    """
    own = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in own]
    tensors = [
        (tensor, tensor.detach().clone())
        for _, attributes, buffers in before
        for tensor in (*attributes.values(), *buffers.values())
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and not _without_values(tensor)
    ]
    containers = [
        (value, copy.copy(value))
        for _, attributes, _ in before
        for name, value in attributes.items()
        if type(value) in (list, dict, set) and not name.startswith("_")
    ]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, old in tensors:
            if not torch.equal(tensor, old):
                tensor.data.copy_(old)
        for value, old in containers:
            if isinstance(value, list):
                value[:] = old
            else:
                value.clear()
                value.update(old)


def _without_values(tensor: Tensor) -> bool:
    return tensor.is_meta or is_lazy(tensor) or tensor.is_quantized


@contextmanager
def not_called(model: nn.Module) -> Iterator[None]:
    """CopyError, naming it, when a module of `model` is called within the block, which runs a copy of it."""

    def refuse(name: str) -> None:
        raise CopyError(
            f"a function that the network keeps runs {name or 'the network'} of the network it was copied "
            "from: make it a method of its class"
        )

    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: refuse(name), prepend=True)
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
