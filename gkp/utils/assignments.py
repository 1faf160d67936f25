"""NAME=VALUE as one writes it in a shell: parameters of notebooks and options of pruning methods."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from gkp.utils.nearest import shown


def assignments(texts: Sequence[str], what: str = "parameter") -> dict[str, Any]:
    """["suite=digits", "compute=true"] -> {"suite": "digits", "compute": True}; see `scalar`."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or not value.strip():
            raise ValueError(f"{what} {shown(text)}: write name=value, e.g. suite=digits")
        if name in values:
            raise ValueError(f"{what} {name} is given twice: leave one out")
        values[name] = scalar(value)
    return values


def scalar(text: str) -> bool | int | float | str | None:
    """A value as it is meant: true or false, None, a whole number, a number, else the text itself."""
    if text == "None":
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?|[+-]?(nan|inf)", text):
        return float(text)
    return text


def like(name: str, value: Any, default: Any, where: str) -> None:
    """ValueError unless `value` is of the kind of `default`, and finite; a text may also be a number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {name}={value} is no finite number: give one, such as {default!r}")
    if isinstance(default, bool):
        right, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        right, wanted = type(value) is int, f"a whole number, such as {default}"
        if name == "seed":
            right, wanted = right and value >= 0, "a whole number, 0 or more"
    elif default is None:
        right, wanted = value is None or type(value) in (int, float), "a number, or None"
    elif isinstance(default, float):
        right, wanted = type(value) in (int, float), f"a number, such as {default}"
    else:
        right, wanted = not isinstance(value, bool), f"a text, such as {default}"
    if not right:
        raise ValueError(f"{where}: {name}={shown(value)}: give {wanted}")
