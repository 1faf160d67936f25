"""Running suites: what is left, in which order, within which time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gkp.study.execute.ahead import keeping
from gkp.study.execute.context import Context, pick_device
from gkp.study.execute.fleet import measured, train_queue
from gkp.study.execute.queue import Queue, tidy, work
from gkp.study.execute.threads import begun_with_in, computing_with
from gkp.study.execute.workers import work_together
from gkp.study.facts.method import OF_RECORDS, record_facts
from gkp.study.runs import pace, suites
from gkp.study.runs.locks import alone
from gkp.study.runs.provenance import provenance
from gkp.study.runs.record import Fact
from gkp.study.runs.store import EPOCHS, Store, is_complete
from gkp.study.runs.suites.grids import Suite
from gkp.utils.progress import Progress

BUDGET_SHARE = 0.85  # of the time, for training and attacks; pruning and writing take some of it, too


@dataclass
class Summary:
    """What a call of `run_suite` did: file stems of runs, and the reason of each failure."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_suite(
    name: str | Sequence[str],
    *,
    budget_minutes: float | None = None,
    jobs: int = 1,
    root: str | Path = ".",
    device: str = "auto",
    progress: Progress | None = None,
    download: bool = False,
    cuda_graphs: bool = False,
    side_by_side: int | None = None,
    skip: Collection[str] = (),
    fit_epochs: bool = True,
) -> Summary:
    """Do every run of the suite that has no complete record yet, the most valuable first.

    name: several suites are one queue, in their order; a run that two have is trained once. Facts about
    trained networks are computed when nothing of the queue is left, the others before it.
    budget_minutes: stop after the epoch or attack in which this time is up; the next call continues there.
    For a suite that lets it, the first call also chooses how many epochs fit, unless `fit_epochs` is False.
    jobs: processes that share the work (small networks leave a GPU idle); they end with this one. Several
    calls at once share it too. Each run keeps the number of threads it was begun with, and what is continued
    that of the first, whatever `jobs` is now. device: "auto", "cpu", "cuda".
    cuda_graphs: as in `gkp.train.fine_tune`. side_by_side: networks that train at once in one process, as in
    `gkp.train.fleet.train_together`; without a number a GPU trains so, and a CPU one after the other. skip:
    file stems of runs that are not tried.
    Raises ValueError for an unknown suite or a time in which no epoch fits, OSError naming the path when
    something cannot be written.
    """
    names = [name] if isinstance(name, str) else list(name)
    wanted_suites = [suites.get(suite) for suite in names]
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: give 1 or more")
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    context = Context(Store(root), pick_device(device), progress, deadline, download, cuda_graphs=cuda_graphs)
    compute_facts(wanted_suites, context, of_records=False)
    for suite in wanted_suites:
        if suite.epochs_within_budget and fit_epochs and budget_minutes is not None:
            print(choose_epochs(suite, budget_minutes, context, side_by_side), file=sys.stderr, flush=True)
    queue = [pair for suite in names for pair in queue_of(context.store.suite(suite))]
    before = complete_stems(queue, context.store)
    failed: dict[str, str] = {}
    wanted = without(queue, skip)
    if side_by_side is not None or context.device.type == "cuda":
        failed = work_in_fleets(jobs, wanted, context, side_by_side)
    failed |= work_in(jobs, without(wanted, failed), context)
    context.store.update_manifest()
    summary = summarize(queue, before, failed, context.store)
    if not summary.left:
        compute_facts(wanted_suites, context, of_records=True)
    return summary


def compute_facts(wanted: Iterable[Suite], context: Context, *, of_records: bool) -> None:
    """Those that the suites name and that have no record yet; of_records: which of the two kinds."""
    for suite in wanted:
        for fact in suite.facts:
            if (fact in OF_RECORDS) == of_records:
                with alone(f"{suite.name}-{fact}", context.store.root):  # neighbours would change times
                    record_facts(fact, suite.name, context.store)


def choose_epochs(suite: Suite, minutes: float, context: Context, side_by_side: int | None) -> str:
    """Keep as a fact of the suite how many epochs fit into the time, unless there is one; that in a sentence.

    ValueError where not even one epoch at each learning rate fits.
    """
    store = context.store
    with alone(f"{suite.name}-{EPOCHS}", store.root):
        fact = store.fact(suite.name, EPOCHS)
        if fact is None:
            facts = fitting_epochs(suite, minutes, context, side_by_side)
            fact = Fact.of(EPOCHS, suite.name, facts, provenance(context.device))
            store.write(fact)
    words = "{epochs} of {most} epochs, chosen for {minutes:g} minutes: one takes {epoch:.3g} s for all"
    sentence = f"{suite.name}: {words}, attacks {{attacks:.3g}} s".format(**fact.facts)
    return f"{sentence} (to choose anew, delete {store.path(suite.name, fact.stem)})"


def fitting_epochs(
    suite: Suite, minutes: float, context: Context, side_by_side: int | None
) -> dict[str, float]:
    """epochs: as many as fit until the deadline, in equal phases; most: the recipe's own; minutes as given.

    epoch, attacks: seconds, as measured, that an epoch of all networks and all their attacks take.
    """
    (recipe,) = {run.recipe for run in suite.runs if run.recipe}
    runs = suite.ordered()
    tuned = [run for run in runs if run.recipe]
    seconds, per_pass = measured(tuned, context, side_by_side)
    epoch, attacks = seconds * len(tuned), per_pass * sum(map(pace.evaluation_passes, runs))
    fixed = attacks + seconds * sum(run.epochs for run in runs if not run.recipe)  # of baselines
    left = 60 * minutes if context.deadline is None else context.deadline - time.monotonic()
    fit = max(0, int((BUDGET_SHARE * left - fixed) / epoch))
    epochs = recipe.epochs if fit >= recipe.epochs else fit - fit % recipe.phases
    if not epochs:
        least = 60 * minutes - left + (fixed + epoch * recipe.phases) / BUDGET_SHARE
        enough = math.ceil(least / 60)
        raise ValueError(f"{minutes:g} minutes are too few for {suite.name}: give {enough} or more")
    return {"epochs": epochs, "most": recipe.epochs, "minutes": minutes, "epoch": epoch, "attacks": attacks}


def work_in(jobs: int, queue: Queue, context: Context) -> dict[str, str]:
    """Do the queue in so many processes, this one when it is one; the reasons of the runs that failed."""
    tidy(queue, context)
    threads = begun_with_in((run for _, run in queue), context)
    if jobs > 1:
        return work_together(queue, jobs, context, threads)
    with computing_with(threads):
        return work(queue, context)


def work_in_fleets(jobs: int, queue: Queue, context: Context, side_by_side: int | None) -> dict[str, str]:
    """Train side by side what can be, and finish those runs: others may start from what they leave."""
    failed: dict[str, str] = {}
    with keeping(context) as context:
        while not context.expired():
            with computing_with(begun_with_in((run for _, run in queue), context)):
                trained, reasons = train_queue(without(queue, failed), context, side_by_side, jobs)
            failed |= reasons
            if not trained:
                break
            failed |= work_in(jobs, trained, context)
    return failed


def without(queue: Queue, stems: Collection[str]) -> Queue:
    return [(name, run) for name, run in queue if run.stem not in stems]


def queue_of(suite: Suite) -> Queue:
    return [(suite.name, run) for run in suite.ordered()]


def complete_stems(queue: Queue, store: Store) -> set[str]:
    """File stems of runs that have every attack that any of these suites asks for."""
    return {run.stem for _, run in queue} - {r.stem for _, r in queue if not is_complete(r, store)}


def summarize(queue: Queue, before: set[str], failed: dict[str, str], store: Store) -> Summary:
    """What was done since `before`, the file stems of the runs that were complete then."""
    complete = complete_stems(queue, store)
    order = list(dict.fromkeys(run.stem for _, run in queue))
    return Summary(
        done=[stem for stem in order if stem in complete - before],
        skipped=[stem for stem in order if stem in before],
        left=[stem for stem in order if stem not in complete],
        failed=failed,
    )
