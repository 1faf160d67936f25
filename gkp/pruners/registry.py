"""The table of pruning methods: what each one is, what it needs, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Cut = Callable[[float], nn.Module]  # rate in (0, 1) -> a pruned copy

STRUCTURES = ("filter", "channel", "grouped kernel")
SCHEDULES = ("one-shot", "in training")
NEEDS = ("nothing", "images", "images and labels", "training snapshots")
COMMON = ("model", "groups", "example_input", "data")


@dataclass(frozen=True)
class Method:
    """A pruning method.

    prepare(model, *, groups, example_input, data, **options) does everything that does not depend on
    the rate (scoring, mostly) once and returns a `Cut`; so a search for the rate that meets a target
    of multiply-adds scores only once.
    """

    name: str
    structure: str  # what is removed, one of STRUCTURES
    schedule: str  # one of SCHEDULES
    needs: str  # to score, one of NEEDS
    citation: str
    summary: str
    prepare: Callable[..., Cut]

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the method's own options."""
        parameters = inspect.signature(self.prepare).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in COMMON}


_METHODS: dict[str, Method] = {}


def register(
    name: str, *, structure: str, schedule: str = "one-shot", needs: str = "nothing", citation: str, summary: str
) -> Callable[[Callable[..., Cut]], Callable[..., Cut]]:
    """Decorator that enters a `prepare` function (see `Method`) under `name`.

    ValueError when the name is taken or a property is none of those the tables know.
    """
    for value, choices in ((structure, STRUCTURES), (schedule, SCHEDULES), (needs, NEEDS)):
        if value not in choices:
            raise ValueError(f"{value!r}: choose one of {', '.join(choices)}")

    def enter(prepare: Callable[..., Cut]) -> Callable[..., Cut]:
        if name in _METHODS and _METHODS[name].prepare.__qualname__ != prepare.__qualname__:
            raise ValueError(f"a pruning method called {name!r} is already registered")
        _METHODS[name] = Method(name, structure, schedule, needs, citation, summary, prepare)
        return prepare

    return enter


def methods() -> tuple[str, ...]:
    """Names of the registered pruning methods."""
    return tuple(_METHODS)


def get(name: str) -> Method:
    """The method called `name`; ValueError lists the known ones."""
    if name not in _METHODS:
        raise ValueError(f"unknown pruning method {name!r}: choose one of {', '.join(_METHODS)}")
    return _METHODS[name]
