"""Functions that hold on to objects: made again over others, which copy.deepcopy does not, and told apart."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
Cached = functools._lru_cache_wrapper
FUNCTIONS = (FunctionType, MethodType, functools.partial, Cached)
HOLDING = (*FUNCTIONS, weakref.ref)  # which copy.deepcopy takes as they are
MANY = 2**22  # numbers of a tensor that are told apart by the tensor's version alone


def rebound(value: Any, known: dict[int, Any]) -> Any:
    """`value` with its functions over other objects; known: {id of an object: what stands for it}.

    Lists and dictionaries are changed in place, functions made again: their closures, defaults, attributes,
    the objects of methods, the arguments of partials and what a cache wraps are looked through, and so are
    weak references. Others stay the same object.
    """
    return _rebound(value, known, set())


def _rebound(value: Any, known: dict[int, Any], seen: set[int]) -> Any:
    """`rebound`; seen: ids of containers met, which may hold themselves. Only what changes is set."""
    if isinstance(value, list | dict):
        if id(value) in seen:
            return value
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            new = _rebound(item, known, seen)
            if new is not item:
                value[key] = new
    elif type(value) is tuple:
        items = tuple(_rebound(item, known, seen) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    elif isinstance(value, HOLDING) and _holds(value, known, set()):
        return _made_again(value, known, {})
    return value


def _parts(value: Any) -> list[Any]:
    """What a function or weak reference holds on to, or the items of a list or tuple."""
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, Cached):
        return [value.__wrapped__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        full = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return [*full, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return list(value) if type(value) in (list, tuple) else []


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # it stands for a name without a value yet
        return False


def _holds(value: Any, known: dict[int, Any], seen: set[int]) -> bool:
    if id(value) in known:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds(part, known, seen) for part in _parts(value))


def _made_again(value: Any, known: dict[int, Any], made: dict[int, Any]) -> Any:
    """The function with the counterparts of what it holds on to; itself where it holds on to none of them."""
    if id(value) in known:
        return known[id(value)]
    if id(value) in made:
        return made[id(value)]
    if not _holds(value, known, set()):
        return value

    def again(part: Any) -> Any:
        return _made_again(part, known, made)

    if type(value) in (list, tuple):
        return type(value)(map(again, value))
    if isinstance(value, weakref.ref):
        return weakref.ref(again(value()))
    if isinstance(value, MethodType):
        return MethodType(again(value.__func__), again(value.__self__))
    if isinstance(value, Cached):  # with an empty cache: what it holds may be of the other object
        return functools.lru_cache(**value.cache_parameters())(again(value.__wrapped__))
    if isinstance(value, functools.partial):
        keywords = {name: again(argument) for name, argument in value.keywords.items()}
        return functools.partial(again(value.func), *map(again, value.args), **keywords)
    cells = tuple(CellType() for _ in value.__closure__ or ())
    new = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    made[id(value)] = new  # before its cells are filled: one may hold the function itself
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        if _filled(old):
            cell.cell_contents = again(old.cell_contents)
    new.__defaults__ = value.__defaults__ and tuple(map(again, value.__defaults__))
    new.__kwdefaults__ = value.__kwdefaults__ and {k: again(v) for k, v in value.__kwdefaults__.items()}
    new.__dict__.update({name: again(attribute) for name, attribute in vars(value).items()})
    return functools.update_wrapper(new, value, updated=())


# ---- what an object is now ---------------------------------------------------------------------------------


def fingerprint(value: Any, depth: int = 8) -> Hashable:
    """Differs from an earlier one where `value` was changed since, in place, too; it keeps no object alive.

    Containers, objects, functions, arrays and tensors are looked through, some levels deep: by their values,
    parameters of floating point and modules by their identity, as what else has no values to see.
    """
    return _fingerprint(value, depth, set())


def _fingerprint(value: Any, depth: int, seen: set[int]) -> Hashable:
    if isinstance(value, ATOMS):
        return repr(value)  # which tells 1, 1.0 and True apart
    if isinstance(value, Tensor):
        return _numbers(value)
    if isinstance(value, type):
        return value
    if not depth or id(value) in seen or isinstance(value, (nn.Module, ModuleType, logging.Logger)):
        return type(value), id(value)
    seen.add(id(value))

    def fingerprints(parts: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple(_fingerprint(part, depth - 1, seen) for part in parts)

    if isinstance(value, Mapping):
        return type(value), fingerprints(value.keys()), fingerprints(value.values())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(fingerprints(value))
    if isinstance(value, (list, tuple, deque)):
        return type(value), fingerprints(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return str(value.dtype), value.shape, hash(value.tobytes())
    if isinstance(value, FUNCTIONS):
        return getattr(value, "__code__", None), fingerprints(_parts(value))
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    return type(value), (fingerprints(held), fingerprints(held.values())) if held else id(value)


def _slots(kind: type) -> tuple[str, ...]:
    """Names of a class's own slots that hold values."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _numbers(tensor: Tensor) -> Hashable:
    """Type, shape and values; without those of parameters that learn and of what is large or has none."""
    known = type(tensor), tensor.dtype, tuple(tensor.shape)
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
        return (*known, id(tensor))
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.numel() > MANY:
        return (*known, id(tensor), None if tensor.is_inference() else tensor._version)
    values = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    return (*known, hash(values.numpy().tobytes()))
