"""The table of pruning methods: what each one is, what it needs, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from gkp.train.hooks import Hooks
from gkp.train.recipe import Recipe

Cut = Callable[[float], nn.Module]  # rate in (0, 1) -> a pruned copy

STRUCTURES = ("filter", "channel", "channel and rank", "grouped kernel", "block")
SCHEDULES = ("one-shot", "in training")
SNAPSHOTS = "training snapshots"
NEEDS = ("nothing", "images", "images and labels", SNAPSHOTS)
COMMON = ("model", "groups", "example_input", "data")


@dataclass(frozen=True)
class Session:
    """How a method prunes during training.

    hooks: what it does to the training loop. share: the part of the epochs that runs with the hooks;
    then `finish` turns the trained model into a `Cut`, and the rest of the epochs is plain fine-tuning.
    changes: fields of the recipe that the method needs otherwise while it prunes, such as `adversarial`;
    changes_after: the same for the epochs after the cut. notes: what `finish` leaves there goes into the
    record's pruning step: numbers and lists of them.
    """

    hooks: Hooks
    finish: Callable[[nn.Module], Cut]
    share: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    changes_after: Mapping[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def hooked_epochs(epochs: int, share: float) -> int:
        """How many of `epochs` run with the hooks: at least one, and not all of them if share is below 1.

        ValueError for a share that is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share!r}: the part of the epochs that prunes, above 0 and up to 1")
        most = epochs if share == 1 else max(1, epochs - 1)
        return min(epochs, most, max(1, round(share * epochs)))

    def recipes(self, recipe: Recipe) -> tuple[Recipe, Recipe]:
        """The two parts of a run: with the hooks, and after the cut. Each runs through the whole schedule."""
        hooked = self.hooked_epochs(recipe.epochs, self.share)
        after = recipe.scaled(recipe.epochs - hooked)
        return replace(recipe.scaled(hooked), **self.changes), replace(after, **self.changes_after)


@dataclass(frozen=True)
class Method:
    """A pruning method.

    prepare(model, *, groups, example_input, data, **options) does everything that does not depend on
    the rate (scoring, mostly) once and returns a `Cut`; so a search for the rate that meets a target
    of multiply-adds scores only once.

    A method that prunes in training also has start(model, *, rate, epochs, groups, example_input, data,
    **options), which is given the copy that will be trained in place and the epochs of the whole run,
    may change its weights, and returns a `Session`. Its `prepare` applies the same criterion without
    training, to find the rate that meets a target.
    """

    name: str
    structure: str  # what is removed, one of STRUCTURES
    schedule: str  # one of SCHEDULES
    needs: str  # to score, one of NEEDS
    citation: str
    summary: str
    prepare: Callable[..., Cut]
    start: Callable[..., Session] | None = None
    from_scratch: bool = False  # whether `start` throws the trained weights away

    @property
    def when(self) -> str:
        """When it prunes, in the words of the tables."""
        return f"{self.schedule}, from scratch" if self.from_scratch else self.schedule

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the method's own options."""
        parameters = inspect.signature(self.prepare).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in COMMON}


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    structure: str,
    schedule: str = "one-shot",
    needs: str = "nothing",
    citation: str,
    summary: str,
    start: Callable[..., Session] | None = None,
    from_scratch: bool = False,
) -> Callable[[Callable[..., Cut]], Callable[..., Cut]]:
    """Decorator that enters a `prepare` function (see `Method`) under `name`.

    start: for a method that prunes in training, with the same options as `prepare`; from_scratch: it throws
    the trained weights away. ValueError when the name is taken or a property is none of those the tables
    know.
    """
    for value, choices in ((structure, STRUCTURES), (schedule, SCHEDULES), (needs, NEEDS)):
        if value not in choices:
            raise ValueError(f"{value!r}: choose one of {', '.join(choices)}")
    if (schedule == "in training") != (start is not None):
        raise ValueError(f'{name}: schedule="in training" and start= go together')
    if from_scratch and start is None:
        raise ValueError(f"{name}: only a method with start= can train from scratch")

    def enter(prepare: Callable[..., Cut]) -> Callable[..., Cut]:
        if name in _METHODS and not _same(_METHODS[name].prepare, prepare):
            raise ValueError(f"a pruning method called {name!r} is already registered: give another name")
        facts = (name, structure, schedule, needs, citation, summary)
        _METHODS[name] = Method(*facts, prepare, start, from_scratch)
        return prepare

    return enter


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether a function came again: its module, file or notebook's cell ran anew."""
    files = {getattr(getattr(f, "__code__", None), "co_filename", f) for f in (one, other)}
    again = one.__module__ == other.__module__ or len(files) == 1
    return again and one.__qualname__ == other.__qualname__


def methods() -> tuple[str, ...]:
    """Names of the registered pruning methods, in alphabetical order."""
    return tuple(sorted(_METHODS))


def get(name: str) -> Method:
    """The method called `name`; ValueError lists the known ones."""
    if name not in _METHODS:
        raise ValueError(f"unknown pruning method {name!r}: choose one of {', '.join(methods())}")
    return _METHODS[name]
