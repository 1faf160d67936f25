"""A deep copy of any network, or the name of what cannot be copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value", bound=Tensor)


class CopyError(ValueError):
    """No copy can be made of a network."""


def copied(model: Network) -> Network:
    """A deep copy of `model`, also where it keeps tensors that were computed.

    copy.deepcopy refuses those: masked weights of torch.nn.utils, features kept from the last forward. They
    are copied as values; whatever computes them does so again. Attributes of parameters stay. CopyError
    names what else cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors(vars(module)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        new = copy.deepcopy(model, dict(memo))
    except (TypeError, RuntimeError, AttributeError, ValueError, NotImplementedError) as error:
        raise CopyError(f"the network cannot be copied: {_culprit(model, memo) or error}") from error
    for old, parameter in zip(model.parameters(), new.parameters(), strict=False):
        with_attributes(parameter, old)
    return new


def with_attributes(new: Value, old: Tensor) -> Value:
    """`new` itself with the attributes that a user set on the parameter `old`: copy.deepcopy forgets them."""
    for name, value in vars(old).items():
        if name not in vars(new):
            setattr(new, name, value)
    return new


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
