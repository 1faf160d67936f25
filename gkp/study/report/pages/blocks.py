"""The generated blocks of README.md and docs/; `gkp list` prints the same lists of suites and methods."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from gkp import pruners
from gkp.study.analysis import verdict
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.analysis.labels import BENIGN, family, ordered
from gkp.study.analysis.method import speed
from gkp.study.analysis.method.finetunings import ROBUST
from gkp.study.report.pages import answer, findings, gpu, longer, status
from gkp.study.report.pages.evidence import Evidence
from gkp.study.report.tables import abstract, footnote, summary, to_markdown
from gkp.study.runs import pace as estimates
from gkp.study.runs import suites
from gkp.study.runs.store import Store, is_complete
from gkp.study.runs.suites import grids
from gkp.study.runs.suites.grids import LIVE

# The columns of a table in docs/; all of them stand in figures/<suite>/results.md.
SHORT = (BENIGN, *PROTOCOL, ROBUST)
BLOCK = re.compile(r"(<!-- generated:([\w:-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LAST_LINES, WIDTH = 2, 110  # of what the report prints, as the README shows it


def fill_blocks(text: str, evidence: Evidence, page: str = "README.md") -> str:
    """Fill in between `<!-- generated:NAME -->` and `<!-- end -->`; ValueError names page and NAME."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], evidence, page)}{match[3]}", text)


def block(name: str, evidence: Evidence, page: str = "README.md") -> str:
    """The text of one generated block, "KIND" or "KIND:ARGUMENT"; `makers` has the kinds."""
    kind, _, argument = name.partition(":")
    known = makers(evidence, argument)
    if kind not in known:
        raise ValueError(f"{page}: no generated block {name!r}; use {', '.join(known)}")
    return known[kind]()


def makers(evidence: Evidence, argument: str) -> dict[str, Callable[[], str]]:
    """Kind of block -> what writes it; `argument` is a suite, or a group of claims."""
    store = evidence.store
    return {
        "answer": lambda: answer.first_lines(evidence),
        "findings": lambda: findings.findings(evidence),
        "limits": lambda: answer.limits(evidence),
        "price": lambda: answer.price(evidence),
        "longer": lambda: longer.longer(evidence),
        "status": lambda: status.status(evidence),
        "compared": lambda: status.compared(evidence),
        "claims": lambda: status.all_of(evidence, argument),
        "last-lines": lambda: last_lines(evidence),
        "suites": lambda: to_markdown(suites_table(store)),
        "estimates": lambda: to_markdown(gpu.estimates_table(store)),
        "gpu-tables": lambda: to_markdown(gpu.papers_tables(evidence)),
        "gpu-rates": gpu.rates,
        "methods": lambda: to_markdown(methods_table()),
        "methods-short": methods_list,
        "speed": lambda: measured(store, argument),
        "roofline": lambda: to_markdown(speed.roofline_text(store.root)),
        "commits": lambda: commits(store),
        "table": lambda: results(evidence, argument),
        "verdict": lambda: abstract_of(evidence, argument),
    }


def last_lines(evidence: Evidence) -> str:
    """The end of what `python -m gkp report` prints about the committed records, long lines cut."""
    committed = [v for v in evidence.judged if v.claim.ours["suite"] != LIVE]
    shown = status.closing(committed, evidence.waiting)[-LAST_LINES:]
    cut = [line if len(line) <= WIDTH else f"{line.partition(':')[0]}: ..." for line in shown]
    return "```text\n" + "\n".join(cut) + "\n```\n"


def commits(store: Store) -> str:
    """How many records name a commit that the code then differed from."""
    files = [file for file in store.files() if file.suite != LIVE]
    changed = sum(file.provenance.dirty is True for file in files)
    return (
        f"- {changed} of {len(files)} records say `dirty`: tracked files differed from the commit that they "
        "name, which then tells their code only nearly (in older ones pages and records count, too). "
        "Networks do not rest on it: their weights are here with hashes, and `reproduce.sh evaluate` attacks "
        "them again.\n"
    )


def results(evidence: Evidence, suite: str) -> str:
    """The table of a suite with the columns of SHORT, and what its numbers are counted on."""
    comparison = evidence.comparison(suite)
    return f"{to_markdown(summary(comparison, SHORT))}\n{footnote(comparison, SHORT)}\n"


def abstract_of(evidence: Evidence, suite: str) -> str:
    """What the paper's abstract says, beside the records of a suite."""
    table = abstract(verdict.findings(evidence.store.root, evidence.comparison(suite)))
    return statements(table, evidence.notebook)


def measured(store: Store, part: str) -> str:
    """What a part of `python -m benchmarks` measured, and where."""
    frame = speed.text(store.root, part or None)
    if frame.empty:
        return f"Not measured yet: `python -m benchmarks {part}`.\n"
    machines = speed.machines(store.root, part or None)
    return f"{to_markdown(frame)}\nMeasured on {machines}.\n"


def methods_list() -> str:
    """The methods by kind of criterion, a line for each."""
    kinds: dict[str, list[str]] = {}
    for name in ordered(pruners.methods()):
        kinds.setdefault(family(name), []).append(f"`{name}`")
    return "".join(f"- {kind}: {', '.join(names)}\n" for kind, names in kinds.items())


def statements(rows: pd.DataFrame, link: Callable[[str], str]) -> str:
    """`tables.abstract` as a list: what the paper says, then for, against, how sure, where.

    link: name of a notebook -> a link to it.
    """
    lines = []
    for says, support, against, sure, notebook in rows.itertuples(index=False):
        source = f"{sure}; {link(notebook)}"
        lines += [f"- ***{says}***", f"  - for: {support}", f"  - against: {against}", f"  - {source}"]
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
            row["complete"] = recorded(store.suite(name), store)
        rows.append(row)
    return pd.DataFrame(rows)


def recorded(suite: grids.Suite, store: Store) -> str:
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
            "when": entry.when,
            "scores with": entry.needs,
            "how": entry.summary,
            "source": entry.citation,
            "options": ", ".join(f"{name}={value!r}" for name, value in entry.options.items()) or "none",
        }
        for entry in entries
    )
