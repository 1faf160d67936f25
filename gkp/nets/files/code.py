"""What forward does with attributes by their names, as its code says: without running it."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_CHANGE = {"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"}
_CHANGERS = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "clear"}


def written(kind: type) -> set[str]:
    """Attributes that forward sets, or whose items it changes: they are its results, no settings."""
    names = set()
    for code in _reached(kind):
        itself = {"self", *code.co_varnames[:1]}
        last = before = ""  # attributes of self: read last, read by the step before
        of_self = False  # whether the step before reads self, whatever the method calls it
        for step in dis.get_instructions(code):
            if step.opname == "STORE_ATTR":
                names.add(step.argval)
            elif step.opname in _CHANGE:
                names.add(last)
            elif _changes(step.argval):
                names.add(before)
            before = step.argval if of_self and step.opname == "LOAD_ATTR" else ""
            last = before or last
            read = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            of_self = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and read[-1] in itself
    return names - {""}


def _changes(method: object) -> bool:
    """Whether a method of this name changes what it belongs to: a list, a dictionary, a tensor."""
    return method in _CHANGERS or (isinstance(method, str) and method.endswith("_") and method[0] != "_")


def asked_for(kind: type) -> set[str]:
    """Texts in forward, the names that it gives to hasattr and getattr among them."""
    return {text for code in _reached(kind) for text in _texts(code.co_consts)}


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, (tuple, frozenset)):
        for each in values:
            yield from _texts(each)


def _reached(kind: type) -> list[CodeType]:
    """The code of forward, of methods and properties that it names, and so on, and of functions inside."""
    names, codes = ["forward"], []
    for name in names:
        for base in set(inspect.getmro(kind)) - {nn.Module, object}:
            attribute: Any = vars(base).get(name)
            method = inspect.unwrap(getattr(attribute, "fget", attribute))
            if isinstance(method, FunctionType):
                inside = list(_nested(method.__code__))
                codes += inside
                names += {each for code in inside for each in code.co_names} - set(names)
    return codes


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _nested(value)
