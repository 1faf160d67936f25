"""Whole numbers among what users give."""

from __future__ import annotations

import numbers
from typing import Any


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether `value` is an integer, NumPy's too, of at least `least`: no float that is whole, no True."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, NumPy's too: no text, no tensor, no True."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """The int or float of one of NumPy's, which JSON does not know; else the value itself."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if is_number(value) else value
