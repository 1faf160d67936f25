"""Which parts a record must have, and of which kind: what a file needs in order to be one."""

from __future__ import annotations

from typing import Any

ALWAYS = {"version": int, "hash": object, "suite": str, "stem": str, "config": dict, "provenance": dict}
TRAINED = {"label": str, "cost": dict, "pruning": dict, "checkpoints": dict}  # where there are checkpoints


def wrong_parts(record: Any) -> list[str]:
    """Names of the parts that are missing or of another kind; all of them for what is no dictionary."""
    if not isinstance(record, dict):
        return list(ALWAYS)
    kinds = ALWAYS | (TRAINED if "checkpoints" in record else {})
    return [name for name, kind in kinds.items() if name not in record or not isinstance(record[name], kind)]
