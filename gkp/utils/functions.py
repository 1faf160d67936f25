"""Functions that hold on to objects, made again over others: what copy.deepcopy leaves as it is."""

from __future__ import annotations

import functools
from types import CellType, FunctionType, MethodType
from typing import Any


def rebound(value: Any, known: dict[int, Any]) -> Any:
    """`value` with its functions over other objects; known: {id of an object: what stands for it}.

    Lists and dictionaries are changed in place, functions made again: their closures, defaults, attributes,
    the objects of methods and the arguments of partials are looked through. Others stay the same object.
    """
    return _rebound(value, known, set())


def _rebound(value: Any, known: dict[int, Any], seen: set[int]) -> Any:
    """`rebound`; seen: ids of containers met, which may hold themselves. Only what changes is set."""
    if isinstance(value, list | dict):
        if id(value) in seen:
            return value
        seen.add(id(value))
        for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
            new = _rebound(each, known, seen)
            if new is not each:
                value[key] = new
    elif type(value) is tuple:
        items = tuple(_rebound(each, known, seen) for each in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    elif isinstance(value, (FunctionType, MethodType, functools.partial)) and _holds(value, known, set()):
        return _made_again(value, known, {})
    return value


def _parts(value: Any) -> list[Any]:
    """What a function holds on to, or the items of a list or tuple."""
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
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
    if isinstance(value, MethodType):
        return MethodType(again(value.__func__), again(value.__self__))
    if isinstance(value, functools.partial):
        keywords = {name: again(each) for name, each in value.keywords.items()}
        return functools.partial(again(value.func), *map(again, value.args), **keywords)
    cells = tuple(CellType() for _ in value.__closure__ or ())
    new = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    made[id(value)] = new  # before its cells are filled: one may hold the function itself
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        if _filled(old):
            cell.cell_contents = again(old.cell_contents)
    new.__defaults__ = value.__defaults__ and tuple(map(again, value.__defaults__))
    new.__kwdefaults__ = value.__kwdefaults__ and {k: again(v) for k, v in value.__kwdefaults__.items()}
    new.__dict__.update({name: again(each) for name, each in vars(value).items()})
    return functools.update_wrapper(new, value, updated=())
