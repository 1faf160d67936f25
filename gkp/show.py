"""How notebooks speak: generated sentences and tables as Markdown, which also reads well on GitHub."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.claims import Verdict
from gkp.tables import claims_table, to_markdown


def say(*lines: str) -> None:
    """Display lines of Markdown."""
    from IPython.display import Markdown, display

    display(Markdown("\n".join(lines)))


def table(frame: pd.DataFrame) -> None:
    """Display a data frame of texts as a Markdown table; says so when it has no rows."""
    say(to_markdown(frame) if len(frame) else "*No rows: nothing recorded yet.*")


def claims(judged: Sequence[Verdict]) -> None:
    """Display the verdicts on claims, and how many hold."""
    table(claims_table(judged))
    count = {status: sum(v.status == status for v in judged) for status in ("OK", "MISS", "OPEN", "MISSING")}
    known = sum(v.status in ("MISS", "OPEN") and v.as_expected for v in judged)
    say(
        f"**{count['OK']} of {len(judged)} claims hold, {count['MISS']} miss, {count['OPEN']} are open** "
        f"({known} of these known and explained), {count['MISSING']} without a record."
    )
