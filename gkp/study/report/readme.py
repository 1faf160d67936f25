"""The generated blocks of the README; the lists of suites and methods are also what `gkp list` prints."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from gkp import pruners
from gkp.study.analysis import verdict
from gkp.study.analysis.claims import Verdict
from gkp.study.report.tables import claims_table, claims_text, footnote, summary, to_markdown
from gkp.study.runs import pace as estimates
from gkp.study.runs import suites
from gkp.study.runs.store import Store, is_complete
from gkp.study.runs.suites import LIVE

# The columns of a table in the README; all of them stand in figures/<suite>/results.md.
SHORT = (
    "benign",
    "fgsm_norm_0.01_predicted",
    "fgsm_norm_0.1_predicted",
    "pgd3_norm_8/255_step2/255_true",
    "pgd10_pixel_0.5/255_step0.125/255_true",
)
PRINTED = "CSBRNP"  # first letters of the claims that are the paper's or its release's own numbers
BLOCK = re.compile(r"(<!-- generated:([\w:-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_blocks(text: str, store: Store, judged: Sequence[Verdict], waiting: int = 0) -> str:
    """Fill in between `<!-- generated:NAME -->` and `<!-- end -->`; ValueError for an unknown NAME.

    waiting: how many numbers of the paper have no record to be judged by.
    """
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], store, judged, waiting)}{match[3]}", text)


def block(name: str, store: Store, judged: Sequence[Verdict], waiting: int = 0) -> str:
    """The text of one generated block: "claims", "suites", "methods", "table:SUITE" or "verdict:SUITE"."""
    kind, _, suite = name.partition(":")
    if kind == "claims":
        committed = [verdict for verdict in judged if verdict.claim.ours["suite"] != LIVE]
        printed = [verdict for verdict in committed if verdict.claim.id[0] in PRINTED]
        others = [verdict for verdict in committed if verdict.claim.id[0] not in PRINTED]
        counts = (
            f"- What the paper and its release print or compute: {claims_text(printed)}\n"
            f"- Statements about our networks and our code: {claims_text(others)}\n"
            f"- Not counted: {waiting} numbers of the paper's Tables 9 to 12, without 300-epoch records.\n"
        )
        return f"{counts}\n{folded('All of them, expected and ours', to_markdown(claims_table(committed)))}"
    if kind == "suites":
        return to_markdown(suites_table(store))
    if kind == "methods":
        return to_markdown(methods_table().drop(columns="options"))  # they stand in `gkp list`
    if kind == "table":
        records = store.of_suite(suite)
        return f"{to_markdown(summary(records, SHORT))}\n{footnote(records, SHORT)}\n"
    if kind == "verdict":
        return statements(verdict.abstract(store.root, store.of_suite(suite)))
    known = "claims, suites, methods, table:SUITE or verdict:SUITE"
    raise ValueError(f"README.md: no generated block {name!r}; use {known}")


def folded(title: str, markdown: str) -> str:
    """A block that a reader opens by a click on its title."""
    return f"<details>\n<summary>{title}</summary>\n\n{markdown}\n</details>\n"


def statements(abstract: pd.DataFrame, folder: str = "notebooks/") -> str:
    """`verdict.abstract` as a list: what the paper says, then for, against, how sure, where.

    folder: of the notebooks, as links need it.
    """
    lines = []
    for says, found, against, sure, notebook in abstract.itertuples(index=False):
        link = f"[{notebook}]({folder}{notebook}.ipynb)"
        lines += [f"- ***{says}***", f"  - for: {found}", f"  - against: {against}", f"  - {sure}; {link}"]
    return "\n".join(lines) + "\n"


def suites_table(store: Store | None = None) -> pd.DataFrame:
    """What can be run, what it needs and about how long it takes on 2 CPU cores.

    With a store: how many of the runs have a record with all attacks of the suite.
    """
    rows = []
    for name in suites.SUITES:
        suite = suites.get(name)
        minutes = sum(estimates.minutes(run) for run in suite.ordered())
        length = f"{minutes / 60:.0f} h" if minutes > 90 else f"{max(minutes, 1):.0f} min"
        row = {"suite": name, "what": suite.title, "needs": suite.needs, "2 CPU cores": length}
        if store is not None:
            row["records"] = recorded(suite, store)
        rows.append(row)
    return pd.DataFrame(rows)


def recorded(suite: suites.Suite, store: Store) -> str:
    """ "3 of 9": runs whose every kept checkpoint met every attack of the suite, and computed facts."""
    if suite.name == LIVE:
        return "made live"
    runs = suite.ordered()
    done = sum(is_complete(run, store) for run in runs)
    facts = [store.fact(suite.name, name) is not None for name in suite.facts]
    return f"{done + sum(facts)} of {len(runs) + len(facts)}"


def methods_table() -> pd.DataFrame:
    """The registered pruning methods: what each removes, when, by what, and who published it."""
    entries = sorted((pruners.get(name) for name in pruners.methods()), key=lambda m: (m.structure, m.name))
    return pd.DataFrame(
        {
            "method": entry.name,
            "removes": entry.structure,
            "when": entry.schedule,
            "scores with": entry.needs,
            "how": entry.summary,
            "source": entry.citation,
            "options": ", ".join(f"{name}={value!r}" for name, value in entry.options.items()) or "none",
        }
        for entry in entries
    )
