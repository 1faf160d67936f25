"""gkp.utils.functions: what changed in an object is told, however deep."""

import functools
import logging
import threading
import weakref
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gkp.utils.functions import fingerprint, rebound


class Slotted:
    __slots__ = ("inner",)

    def __init__(self) -> None:
        self.inner = {"n": [0]}


def closed(inner):
    return lambda: inner


CASES = {
    "list": ([1, 2], lambda v: v.append(3)),
    "order": ({"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a"))),
    "type": ([1], lambda v: v.__setitem__(0, True)),
    "set": ({1, 2}, lambda v: v.add(3)),
    "deque": (deque([1, 2]), lambda v: v.rotate()),
    "array": (np.zeros(3), lambda v: v.__setitem__(0, 1)),
    "tensor": (torch.zeros(3), lambda v: v.data.add_(1)),
    "half": (torch.zeros((), dtype=torch.bfloat16), lambda v: v.add_(1)),
    "constant": (
        nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False),
        lambda v: v.data.add_(1),
    ),
    "object": (SimpleNamespace(inner=SimpleNamespace(n=0)), lambda v: setattr(v.inner, "n", 1)),
    "slots": (Slotted(), lambda v: v.inner["n"].append(1)),
    "closure": (closed([0]), lambda v: v().append(1)),
    "partial": (functools.partial(max, [0]), lambda v: v.args[0].append(1)),
    "method": (Slotted().__init__, lambda v: v.__self__.inner["n"].append(1)),
}


@pytest.mark.parametrize(("value", "change"), CASES.values(), ids=CASES)
def test_a_change_in_place_is_told(value, change) -> None:
    value = [value]
    before = fingerprint(value)
    assert fingerprint(value) == before
    change(value[0])
    assert fingerprint(value) != before


def test_functions_are_told_apart_by_what_they_do() -> None:
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    assert fingerprint(closed([1])) == fingerprint(closed([1]))


def test_weights_that_learn_and_what_has_no_values_are_told_by_identity() -> None:
    weight, lock = nn.Parameter(torch.zeros(3)), threading.Lock()
    before = fingerprint([weight, lock])
    with torch.no_grad():
        weight.add_(1)
    assert fingerprint([weight, lock]) == before
    assert fingerprint([weight, threading.Lock()]) != before


def test_what_holds_itself_has_a_fingerprint() -> None:
    value: list = [0]
    value.append({"self": value})
    before = fingerprint(value)
    value[0] = 1
    assert fingerprint(value) != before


def test_modules_of_python_and_loggers_are_known_by_what_they_are_called_alone() -> None:
    """A closure over a module of functions, or a logger, reaches half of what is loaded."""
    library, log = torch.nn.functional, logging.getLogger("gkp.tests")
    value = [lambda x: library.relu(x), log]
    before = fingerprint(value)
    logging.getLogger("gkp.tests.of.another")
    assert fingerprint(value) == before
    assert len(repr(before)) < 1000


def test_weak_references_are_made_again() -> None:
    old, new = nn.Module(), nn.Module()
    kept = [weakref.ref(old), weakref.ref(new), weakref.ref(nn.Module())]
    found = rebound(list(kept), {id(old): new})
    assert found[0]() is new
    assert all(a is b for a, b in zip(found[1:], kept[1:], strict=True))
