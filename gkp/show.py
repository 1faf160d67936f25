"""How notebooks speak: generated sentences and tables as Markdown, which also reads well on GitHub."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gkp.claims import Verdict
from gkp.tables import claims_table, claims_text, to_markdown


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
    say(claims_text(judged))
