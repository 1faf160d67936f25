"""How loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])
ANY_ORDER = {"reassoc", "nnan", "nsz", "contract"}


def compiled(function: Function) -> Function:
    """In any order of additions, whose last bits decide nothing. No NaN may come; infinities may."""
    return cast(Function, njit(cache=True, nogil=True, fastmath=ANY_ORDER)(function))


def as_written(function: Function) -> Function:
    """Where last bits decide, as between scores that tie."""
    return cast(Function, njit(cache=True, nogil=True)(function))
