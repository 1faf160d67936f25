"""How notebooks speak: generated sentences and tables as Markdown, which also reads well on GitHub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from torch import nn

from gkp.nets.checkpoint import load_file
from gkp.study.analysis import comparison as compare
from gkp.study.analysis.claims import CLAIMS, Verdict
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import CONTROL
from gkp.study.execute.suite import run_suite
from gkp.study.report.tables import claims_table, claims_text, to_markdown
from gkp.study.runs.record import Record

SHORT = 12  # claims of a table that stands open


def root() -> Path:
    """The repository that the current folder is in. FileNotFoundError outside of one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / CLAIMS).exists():
            return folder
    raise FileNotFoundError(f"no {CLAIMS} in {here} or above: open the notebook from the repository's folder")


def records(root: str | Path, suite: str, *, compute: bool = False) -> Comparison:
    """The records of a suite. With `compute`, whatever it lacks is run first.

    ValueError for an unknown suite, FileNotFoundError when there is no record, RuntimeError naming
    the runs that failed.
    """
    if compute:
        summary = run_suite(suite, root=root)
        if summary.failed:
            raise RuntimeError("; ".join(f"{stem}: {why}" for stem, why in summary.failed.items()))
    return compare.load(root, suite)


def network(root: str | Path, records: Iterable[Record], label: str = CONTROL) -> nn.Module:
    """The saved network of that label, of the lowest seed."""
    saved = [(r.run.seed, r.kept["last"].file) for r in records if r.label == label and r.kept["last"].file]
    if not saved:
        raise FileNotFoundError(f"no saved network of {label!r}: run the suite to its end")
    return load_file(Path(root) / min(saved, key=lambda pair: pair[0])[1])


def say(*lines: str) -> None:
    """Display lines of Markdown."""
    from IPython.display import Markdown, display

    display(Markdown("\n".join(lines)))


def table(frame: pd.DataFrame) -> None:
    """Display a data frame of texts as a Markdown table; says so when it has no rows."""
    say(to_markdown(frame) if len(frame) else "*No rows: nothing recorded yet.*")


def claims(judged: Sequence[Verdict]) -> None:
    """Display how many claims hold, and a table of them; what is long opens by a click."""
    compact = claims_table(judged).drop(columns=["tolerance", "because"])
    listed = to_markdown(compact) if len(compact) <= SHORT else folded("Each of them", to_markdown(compact))
    say(claims_text(judged) + " Tolerances and reasons: docs/claims.md.", "", listed)


def folded(title: str, markdown: str) -> str:
    """A block that a reader opens by a click on its title."""
    return f"<details>\n<summary>{title}</summary>\n\n{markdown}\n</details>\n"
