"""How long what has no record yet would take on a GPU, from measured rates."""

from __future__ import annotations

import pandas as pd

from gkp.study.analysis import paper as published
from gkp.study.analysis.labels import network_title
from gkp.study.report.pages.evidence import Evidence
from gkp.study.runs import pace, protocols, suites
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store, is_complete, missing_entries
from gkp.study.runs.suites.grids import LIVE

TABLES = published.MAIN_TABLES


def rates() -> str:
    """What was measured, in a sentence."""
    network = network_title(pace.MEASURED)
    return (
        f"Measured on one NVIDIA H200: a training step of a {network} at batch {pace.BATCH} in bfloat16 "
        f"takes {pace.STEP_MS['cuda']:g} ms alone and {pace.STEP_MS['fleet']:g} ms for each of {pace.FLEET} "
        "that train side by side, accuracy after every epoch included; attacks in float32 take "
        f"{pace.ATTACK_PASSES:,} forward and backward passes a second. The table counts with these: other "
        "networks are taken to need time in proportion to their multiply-adds, which is too much for a wide "
        "one like VGG-16, and pruned ones that of the unpruned one, whose program they share.\n"
    )


def papers_tables(evidence: Evidence) -> pd.DataFrame:
    """A row for each of the paper's CIFAR-10 tables: what its rows need, and what our whole suite does.

    Its rows: the networks that it prints and we can train, one seed, with its own attacks on the epochs that
    two rules keep. All that is recorded is taken off.
    """
    lines = []
    path = evidence.store.root / published.TABLES
    table_of = pd.read_csv(path, dtype=str).drop_duplicates("table").set_index("table").network
    for table in TABLES:
        network = table_of[table].lower().replace("-", "")
        name = f"cifar10-{network}"
        if name not in suites.SUITES:
            continue
        suite, printed = suites.get(name), set(published.rows(path, network).label)
        needed = [run for run in suite.ordered() if run.seed == 0 and run.label in {*printed, "baseline"}]
        missing_runs = [run for run in needed if needed_minutes(run, evidence.store)]
        left = [run for run in suite.ordered() if not is_complete(run, evidence.store)]
        minutes = sum(needed_minutes(run, evidence.store) for run in missing_runs)
        whole = sum(left_minutes(run, evidence.store, "fleet") for run in left)
        lines.append(
            {
                "paper": f"Table {table}",
                "network": table_of[table],
                "numbers that wait": str(evidence.waiting.get(name, 0)),
                "networks for its rows": str(len(missing_runs)),
                "GPU minutes": f"{minutes:,.0f}",
                "suite": f"`{name}`",
                "its runs left": str(len(left)),
                "GPU hours": f"{whole / 60:,.1f}",
            }
        )
    return pd.DataFrame(lines)


def needed_minutes(run: Run, store: Store) -> float:
    """GPU minutes of a run with the paper's attacks alone, as far as they have no record; 0 for nothing."""
    record, entries = store.find(run), protocols.paper()
    if record is None:
        return pace.training_minutes(run, "fleet") + pace.evaluation_minutes(run, "fleet", entries)
    missing = missing_entries(record, run).values()
    names = {entry.attack.name for entry in entries}
    return pace.evaluation_minutes(
        run, "fleet", {e for lacking in missing for e in lacking if e.attack.name in names}
    )


def left_minutes(run: Run, store: Store, device: str) -> float:
    """Minutes of what the record of a run lacks."""
    record = store.find(run)
    if record is None:
        return pace.minutes(run, device)
    lacking = {entry for entries in missing_entries(record, run).values() for entry in entries}
    return pace.evaluation_minutes(run, device, lacking)


def estimates_table(store: Store) -> pd.DataFrame:
    """Suites whose runs lack records: how many, and about how many hours on 2 CPU cores and on a GPU."""
    rows = []
    for suite in map(store.suite, suites.SUITES):
        left = [run for run in suite.ordered() if suite.name != LIVE and not is_complete(run, store)]
        if not left:
            continue
        hours = [sum(left_minutes(run, store, d) for run in left) / 60 for d in ("cpu", "cuda", "fleet")]
        rows.append((suite.name, f"{len(left)}", *map(hours_text, hours)))
    columns = ["suite", "runs left", "2 CPU cores", "a GPU, one by one", f"a GPU, {pace.FLEET} side by side"]
    return pd.DataFrame(rows, columns=columns)


def hours_text(hours: float) -> str:
    """ "1,923 h", "8.8 h" or "25 min"."""
    if hours < 1:
        return f"{60 * hours:.0f} min" if 60 * hours >= 0.5 else "under a minute"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
