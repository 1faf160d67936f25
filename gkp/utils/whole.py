"""Whole numbers among what users give."""

from __future__ import annotations

from typing import Any


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether `value` is an int of at least `least`: no float that happens to be one, no True."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
