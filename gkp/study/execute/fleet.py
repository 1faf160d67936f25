"""The trainings of a queue side by side on one device, ahead of the runs that use them.

A fleet only brings the saved states of trainings to their last epoch. The runs themselves, which prune,
attack and write records, then find their training done, in whatever order and in however many processes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from statistics import fmean

import torch
from filelock import Timeout

from gkp.attacks import Attack
from gkp.nets import models
from gkp.study.execute import ahead
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.one_run import BATCH, Attacked, attack, start_model
from gkp.study.execute.queue import Queue, claim_first, has_start, report_failure
from gkp.study.execute.steps import Unfinished, prune, prune_and_train, splits_of
from gkp.study.execute.workers import work_together
from gkp.study.runs.locks import alone
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import Run
from gkp.train import History
from gkp.train.fleet import Member, train_together
from gkp.utils.progress import Progress

# A fifth of an epoch of CIFAR-10: fewer, and the last batch of its evaluation would weigh too much.
TIMED_STEPS = 150


def train_queue(
    queue: Queue, context: Context, side_by_side: int | None = None, jobs: int = 1
) -> tuple[Queue, dict[str, str]]:
    """Train what a fleet can train and nobody else works on.

    Returns what was trained, to the end unless the time is up, and the reasons of the runs that failed. Runs
    are held by their locks meanwhile; those whose start has no record yet are left out. The second training
    of a method that has two begins when the first of all runs are done. side_by_side: see
    `gkp.train.fleet.train_together`. jobs: processes that prune what is trained, where that is kept.
    """
    store, failed, trained = context.store, dict[str, str](), set[str]()
    if jobs > 1 and any(to_prune(run, context) for _, run in queue):
        # With the threads of this process, so that no sum depends on the number of jobs.
        work_together(queue, jobs, context, threads=torch.get_num_threads(), do=prune_queue)
    with ExitStack() as locks:
        runs = [run for _, run in queue if run.epochs and store.find(run) is None and has_start(run, store)]
        held = [run for run in runs if locks.enter_context(claim_first([run], store.root))]
        while not context.expired():
            members = trainings([run for run in held if run.stem not in failed], context, failed)
            if not members:
                break
            trained |= {run.stem for run, _ in members}
            results = train_together(
                [member for _, member in members],
                device=context.device,
                side_by_side=side_by_side,
                progress=context.progress,
                after_epoch=context.expired,
            )
            for (run, _), result in zip(members, results, strict=True):
                if isinstance(result, RuntimeError):
                    failed |= report_failure([run], result)
    return [(suite, run) for suite, run in queue if run.stem in trained - failed.keys()], failed


def prune_queue(queue: Queue, context: Context) -> dict[str, str]:
    """Keep the pruned networks of runs that a fleet may train and that no other process prunes now.

    Returns no reasons: a network that cannot be pruned says why when its turn to train comes.
    """
    for _, run in queue:
        if context.expired() or not to_prune(run, context):
            continue
        mine = alone(f"prune-{ahead.same_pruning(run)}", context.store.root)
        refused = RuntimeError, ValueError, FileNotFoundError, ModuleNotFoundError
        with suppress(Timeout, *refused), mine.acquire(blocking=False):
            prune(start_model(run, context).to(context.device), run, context)
    return {}


def to_prune(run: Run, context: Context) -> bool:
    """Whether the run is to be trained, can be, and has no kept pruned network yet."""
    wanted = bool(run.epochs) and ahead.keeps(run, context) and not ahead.is_kept(run, context)
    return wanted and context.store.find(run) is None and has_start(run, context.store)


def trainings(runs: list[Run], context: Context, failed: dict[str, str]) -> list[tuple[Run, Member]]:
    """The next training of every run that has one; runs that cannot be pruned are added to `failed`."""
    members = []
    for run in runs:
        try:
            member = next_training(run, context)
        except (RuntimeError, ValueError, FileNotFoundError, ModuleNotFoundError) as error:
            failed |= report_failure([run], error)
        else:
            members += [(run, member)] if member else []
    return members


def next_training(run: Run, context: Context) -> Member | None:
    """The first training of the run that is not done and that a fleet can do; None when there is none."""
    model = start_model(run, context).to(context.device)
    try:
        prune_and_train(model, run, replace(context, gathering=True), Progress("off"))
    except OutOfTime:
        return None
    except Unfinished as waiting:
        start = start_model(run, context) if run.prunes else None
        return replace(waiting.member, start=start, title=f"{run.label}, seed {run.seed}")
    return None


def measured(runs: Sequence[Run], context: Context, side_by_side: int | None) -> tuple[float, float]:
    """Seconds of an epoch of one of these runs, evaluation included, and of one image's pass of an attack.

    runs: of one recipe. Measured on untrained, unpruned networks, as many as train side by side, and a share
    of the images: the second of two epochs and of two attacks, because the first ones prepare.
    """
    run, recipe = runs[0], runs[0].recipe
    assert recipe is not None
    train, *held = splits_of(run, context)
    share = min(1.0, TIMED_STEPS * recipe.batch_size / len(train))
    validation, test = (split and split.take(math.ceil(share * len(split))) for split in held)
    train = train.take(math.ceil(share * len(train)))
    model = models.create(run.network, num_classes=len(train.classes)).to(context.device)
    teacher = model if recipe.distillation else None
    member = Member(model, train, replace(recipe, epochs=2), validation, test, teacher=teacher)
    number = len(runs) if side_by_side or context.device.type == "cuda" else 1
    members = [replace(member, model=copy.deepcopy(model)) for _ in range(number)]
    seconds = []
    for result in train_together(members, device=context.device, side_by_side=side_by_side):
        if not isinstance(result, History):
            raise result or OutOfTime
        seconds.append(result.epochs[-1].seconds / share)
    images = min(BATCH[context.device.type], len(context.split(run.dataset, "test")))
    entry, attacked = Entry(Attack("fgsm", eps=1 / 255), images), Attacked.of(model, run.dataset, context)
    with Progress("off").task("attacks", 1) as task:
        for _ in range(2):
            started = time.perf_counter()
            attack(attacked, run.dataset, entry, context, task)
    return fmean(seconds), (time.perf_counter() - started) / entry.passes / images
