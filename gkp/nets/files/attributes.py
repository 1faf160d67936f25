"""Attributes of modules that are neither parameters, buffers nor modules: what a file holds of them.

A file holds plain values: numbers, texts, flat lists. Whether two networks agree in the others is asked here.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import hashlib
import inspect
import operator
import reprlib
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp.nets.files.code import asked_for, written

_PLAIN = (bool, int, float, str, type(None))
_KEPT = {*vars(nn.Module()), "_compiled_call_impl"}  # by nn.Module itself
COMPILED = "_orig_mod"  # what torch.compile calls the module inside
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodDescriptorType, functools.partial)
_BY_PARTS = (SimpleNamespace, argparse.Namespace)
# Where copies are the same object.
_SINGLE = (type, enum.Enum, torch.dtype, torch.layout, torch.memory_format)
NONE = object()


def is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (
        isinstance(value, (tuple, list)) and all(isinstance(each, _PLAIN) for each in value)
    )


def own(module: nn.Module) -> dict[str, Any]:
    """Attributes of the instance but for what nn.Module keeps, tensors, modules, hooks, the mode, and what
    torch.compile puts around a module."""
    kept = vars(module) if COMPILED in module._modules else _KEPT
    return {name: value for name, value in vars(module).items() if name not in kept}


def held(module: nn.Module, name: str) -> Any:
    """The attribute of the instance, or the plain value or function of its class; else NONE."""
    if name in vars(module):
        return vars(module)[name]
    value = inspect.getattr_static(type(module), name, NONE)
    return value if is_plain(value) or isinstance(value, FunctionType) else NONE


def changed(model: nn.Module, base: nn.Module) -> dict[str, Any]:
    """Plain attributes of one module that both have, with different values."""
    pairs = {name: (value, held(base, name)) for name, value in own(model).items()}
    return {
        name: value
        for name, (value, other) in pairs.items()
        if is_plain(value) and is_plain(other) and value != other
    }


def settings(model: nn.Module) -> dict[str, str]:
    """{path of a module: a digest of its class's name and plain attributes but for those forward sets}."""
    results, found = {kind: written(kind) for kind in {type(module) for module in model.modules()}}, {}
    for path, module in model.named_modules():
        plain = {
            name: value
            for name, value in own(module).items()
            if is_plain(value) and name not in results[type(module)]
        }
        text = f"{type(module).__qualname__} {sorted(plain.items(), key=operator.itemgetter(0))!r}"
        found[path] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return found


class UnlikeBaseWarning(UserWarning):
    """An attribute of the network may come back from a file otherwise."""


def warn_of_other_base(saved: Mapping[str, str], base: nn.Module, file: object) -> None:
    """An `UnlikeBaseWarning` where the `settings` of the base are not those of the one it was saved with."""
    now = settings(base)
    unlike = [path or type(base).__name__ for path in {**saved, **now} if saved.get(path) != now.get(path)]
    if unlike:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        warnings.warn(
            f"{file}: the base is not made as the one it was saved with ({', '.join(unlike[:3])}{more}, in "
            "class or settings), so that the network may compute something else; give the same base",
            UnlikeBaseWarning,
            stacklevel=3,
        )


def must_agree(model: nn.Module, loaded: nn.Module) -> None:
    """ValueError that names the first attribute in which `loaded`, of the same structure, is not as `model`.

    What forward sets itself may differ, and what one of them lacks unless forward asks whether it is there.
    Where the values are neither settings nor functions (tensors, objects) they may be results of other code:
    an `UnlikeBaseWarning` names them.
    """
    same, others = _Agreement(model, loaded).same, dict(loaded.named_modules(remove_duplicate=False))
    kinds = {type(module) for module in model.modules()}
    looks = {kind: (written(kind), asked_for(kind)) for kind in kinds}
    for path, module in model.named_modules():
        other, (results, asked) = others[path], looks[type(module)]
        for name in {**own(module), **own(other)}:
            mine, theirs = held(module, name), held(other, name)
            alone = mine is NONE or theirs is NONE
            if name in results or (alone and name not in asked) or same(mine, theirs):
                continue
            text = (
                f"{path + '.' if path else ''}{name} cannot be described in a file: it is {_text(mine)} and "
                f"would be {_text(theirs)} in the loaded network; give a base made with the same settings, "
                "keep tensors in buffers, or delete what forward does not need"
            )
            if alone or _is_setting(mine) or _is_setting(theirs):
                raise ValueError(text)
            warnings.warn(text, UnlikeBaseWarning, stacklevel=4)


def _is_setting(value: Any) -> bool:
    """Whether a value says what a network is to do: a function, or plain values in containers."""
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return all(map(_is_setting, value))
    return isinstance(value, (*_PLAIN, *_SINGLE, *_FUNCTIONS))


def _text(value: Any) -> str:
    if value is NONE:
        return "missing"
    return str(getattr(value, "__qualname__", "")) or reprlib.repr(value)


class _Agreement:
    """Whether values of two networks are the same, where their modules of one name are.

    Objects of the same class that define no equality and cannot be called are taken for the same: counters,
    loggers and generators differ in equal networks, too.
    """

    def __init__(self, model: nn.Module, loaded: nn.Module) -> None:
        self.names = [{id(m): name for name, m in each.named_modules()} for each in (model, loaded)]
        self.met: dict[tuple[int, int], Any] = {}  # pairs, which may hold themselves; kept, so are their ids

    def same(self, a: Any, b: Any) -> bool:
        if a is b or (id(a), id(b)) in self.met:
            return True
        if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
            return a == b or (a != a and b != b)
        self.met[id(a), id(b)] = a, b
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(map(self.same, a, b))
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            return self._same_modules(a, b)
        return type(a) is type(b) and self._of_one_type(a, b)

    def _same_modules(self, a: nn.Module, b: nn.Module) -> bool:
        """By name; by what they hold, where neither stands in its network."""
        names = self.names[0].get(id(a)), self.names[1].get(id(b))
        if names != (None, None):
            return names[0] == names[1]
        held = [
            [vars(each)[table] for table in ("_parameters", "_buffers", "_modules")] + [own(each)]
            for each in (a, b)
        ]
        return type(a).__name__ == type(b).__name__ and self.same(*held)

    def _of_one_type(self, a: Any, b: Any) -> bool:
        for kind, parts in _PARTS:
            if isinstance(a, kind):
                return self.same(parts(a), parts(b))
        if isinstance(a, (set, frozenset)):
            return len(a) == len(b) and all(any(self.same(x, y) for y in b) for x in a)
        if isinstance(a, Tensor):
            return _same_tensors(a, b)
        if isinstance(a, np.ndarray):
            return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            return all(self.same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
        if isinstance(a, _SINGLE):
            return False  # not the same object
        if callable(a):
            return self.same(vars(a), vars(b)) if hasattr(a, "__dict__") else repr(a) == repr(b)
        return type(a).__eq__ is object.__eq__ or bool(a == b)


# What values of a type consist of. Devices agree: a network is loaded on the CPU, wherever it was.
_PARTS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    ((Mapping, *_BY_PARTS), lambda a: list(vars(a).items() if isinstance(a, _BY_PARTS) else a.items())),
    (deque, list),
    (CodeType, lambda a: (a.co_code, a.co_names, a.co_consts)),
    (CellType, lambda a: [] if a == CellType() else [a.cell_contents]),
    (FunctionType, lambda a: (a.__module__, a.__code__, a.__closure__, a.__defaults__, a.__kwdefaults__)),
    (MethodType, lambda a: (a.__func__, a.__self__)),
    (BuiltinFunctionType, lambda a: (a.__qualname__, type(a.__self__).__name__)),
    (functools.partial, lambda a: (a.func, a.args, a.keywords)),
    (weakref.ref, lambda a: type(a()).__name__),
    (torch.device, lambda a: None),
)


def _same_tensors(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta or b.is_meta:
        return a.shape == b.shape and a.dtype == b.dtype and a.is_meta == b.is_meta
    x, y = (each.detach().cpu() for each in (a, b))
    x, y = (each.dequantize() if each.is_quantized else each for each in (x, y))
    x, y = (each if each.layout == torch.strided else each.to_dense() for each in (x, y))
    return bool(((x == y) | ((x != x) & (y != y))).all())
