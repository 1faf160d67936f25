"""Sentences about a name that is none of those known: what was given, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 60  # letters of a name that are repeated in an error
LISTED = 40  # names; of more than so many, only the nearest are listed


def shown(name: object) -> str:
    """The name in quotes, cut where it is long: what a user sees of their own mistake."""
    text = str(name)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def unknown(
    kind: str, name: object, choices: Iterable[str], *, also: Iterable[str] = (), more: str = ""
) -> str:
    """ "unknown method 'l3': did you mean l1? choose one of ..."

    also: choices in words, which nobody mistypes. more: where all of them stand.
    """
    known = list(choices)
    lower = {choice.lower(): choice for choice in known}
    near = [lower[match] for match in get_close_matches(str(name)[:200].lower(), lower, n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    listed = f"choose one of {', '.join([*known, *also])}" if 0 < len(known) <= LISTED else ""
    ending = "; ".join(part for part in (listed, more) if part)
    return f"unknown {kind} {shown(name)}: {hint}{ending}".rstrip(" :")
