"""The paper's Table 8, the properties of the methods it compares, as printed and as their code has it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

TABLE = Path("expected") / "paper_table8.toml"
COLUMNS = {
    "venue": "venue",
    "type": "type",
    "procedure": "procedure",
    "setup": "special set-up",
    "zero_masked": "zero-masked",
    "first_epoch": "first fully pruned epoch of 300",
}
# What its "type" calls the registry's structures.
STRUCTURES = {
    "F": "filter",
    "C": "channel",
    "C + rank": "channel and rank",
    "GK": "grouped kernel",
    "block": "block",
}


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """{method: row}; a row has labels, cited, the `COLUMNS` and maybe `here`.

    A cell is the text that is printed, or a table of texts: printed, corrected, reason and source.
    """
    return tomllib.loads(Path(path).read_text("utf-8"))


def corrected(cell: str | Mapping[str, str]) -> str:
    """What a cell should say."""
    return cell if isinstance(cell, str) else cell["corrected"]


def corrections(path: str | Path) -> pd.DataFrame:
    """The number, method, column, printed and right text, reason and source of every cell that is wrong."""
    return pd.DataFrame(
        {
            "no.": str(number),
            "method": method,
            "column": COLUMNS[column],
            "printed": cell["printed"],
            "right": cell["corrected"],
            "why": cell["reason"],
            "source": cell["source"],
        }
        for number, (method, column, cell) in enumerate(_wrong(load(path)), 1)
    )


def table(path: str | Path) -> pd.DataFrame:
    """Text table of all rows: a wrong cell is struck out, what is right follows with its number.

    The last column names the method here, and where ours differs from the original.
    """
    rows = load(path)
    number = {(method, column): n for n, (method, column, _) in enumerate(_wrong(rows), 1)}
    lines = []
    for method, row in rows.items():
        line = {"method": f"{method}, {row['cited']}"}
        for column, title in COLUMNS.items():
            cell = row[column]
            if isinstance(cell, str):
                line[title] = cell
            else:
                line[title] = f"~~{cell['printed']}~~ {cell['corrected']} [{number[method, column]}]"
        ours = "; ".join(f"{COLUMNS[column]}: {text}" for column, text in row.get("here", {}).items())
        line["here"] = ", ".join(f"`{label}`" for label in row["labels"]) + (f" ({ours})" if ours else "")
        lines.append(line)
    return pd.DataFrame(lines)


def _wrong(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """(method, column, cell) of the wrong cells, from row to row."""
    for method, row in rows.items():
        yield from ((method, column, row[column]) for column in COLUMNS if not isinstance(row[column], str))
