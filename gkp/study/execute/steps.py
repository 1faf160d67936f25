"""Pruning and training of one run: in one shot and then fine-tuned, or a method that prunes in training."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import Any

from torch import Tensor, nn

from gkp import data, pruners
from gkp.data import Split
from gkp.nets import cost
from gkp.pruners import Cut
from gkp.pruners.common.budget import cut_to, match_params
from gkp.pruners.common.registry import SNAPSHOTS
from gkp.study.execute import ahead
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.runs.run import BASELINE, Run
from gkp.train import History, Hooks, Recipe, fine_tune, snapshots
from gkp.train.fleet import Member
from gkp.utils.progress import Progress


class Unfinished(Exception):
    """A training that is to be done in a fleet."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.title)
        self.member = member


def prune_and_train(
    model: nn.Module, run: Run, context: Context, progress: Progress
) -> tuple[nn.Module, dict[str, Any], History | None]:
    """The final network, what the pruning step itself took, and the course of the training."""
    recipe, parent = run.baseline if run.method == BASELINE else run.recipe, model
    if not run.prunes:
        pruning: dict[str, Any] = {"rate": 0.0, "seconds": 0.0, "data_images": 0}
    elif recipe is not None and pruners.get(run.method).start is not None:
        return prune_in_training(model, run, recipe, context, progress)
    else:
        preparation = tune_for_snapshots(model, run, context, progress)
        model, pruning = prune(model, run, context)
        pruning |= {key: round(pruning.get(key, 0) + value, 4) for key, value in preparation.items()}
    hooks = snapshots_of(run, context) if run.method == BASELINE else None
    history = None
    if recipe is not None:
        history = train(model, run, recipe, context, progress, hooks=hooks, parent=parent)
    return model, pruning, history


def prune(model: nn.Module, run: Run, context: Context) -> tuple[nn.Module, dict[str, Any]]:
    """The network pruned in one shot, and what that took: scoring and one cut, no search for a rate.

    Once for all of a call in which pruned networks are kept.
    """
    if not ahead.keeps(run, context):
        return pruned_now(model, run, context)
    if (pruned := ahead.kept(run, context)) is None:
        ahead.keep(run, context, *pruned_now(model, run, context))
        pruned = ahead.kept(run, context)
        assert pruned is not None
    return pruned


def pruned_now(model: nn.Module, run: Run, context: Context) -> tuple[nn.Module, dict[str, Any]]:
    arguments = pruning_arguments(run, context)
    started = time.perf_counter()
    cut = pruners.prepare(model, run.method, **arguments)
    prepared = time.perf_counter() - started
    pruned, rate = at_target(model, cut, run, context)
    started = time.perf_counter()
    cut(rate)
    seconds = prepared + time.perf_counter() - started
    return pruned, {"rate": rate, "seconds": round(seconds, 4), "data_images": images_scored(run, arguments)}


def images_scored(run: Run, arguments: dict[str, Any]) -> int:
    """How many training images the method looks at before it cuts; one pass over each."""
    if arguments["data"] is None:
        return 0
    asked = {**pruners.get(run.method).options, **arguments}.get("images")
    return min(asked or len(arguments["data"]), len(arguments["data"]))


def prune_in_training(
    model: nn.Module, run: Run, recipe: Recipe, context: Context, progress: Progress
) -> tuple[nn.Module, dict[str, Any], History]:
    """A method that prunes while it trains: training with its hooks, the cut, the rest of the epochs.

    The rate comes from the untrained criterion; the cut meets the target again, with the weights it finds.
    """
    _, pruning = prune(model, run, context)
    arguments = pruning_arguments(run, context)
    if arguments["data"] is None:
        arguments["data"] = training_parts(run, context)[0]
    parent = copy.deepcopy(model)
    session = pruners.start(model, run.method, rate=pruning["rate"], epochs=recipe.epochs, **arguments)
    first, second = session.recipes(recipe)
    hooked = train(model, run, first, context, progress, hooks=session.hooks, part="-pruning", parent=parent)
    pruned, pruning["rate"] = at_target(model, session.finish(model), run, context)
    pruning |= session.notes
    history = train(pruned, run, second, context, progress, parent=parent)
    return pruned, pruning, joined(hooked, history)


def pruning_arguments(run: Run, context: Context) -> dict[str, Any]:
    """Arguments of `pruners.prepare`: the run's options, its seed and data where the method takes them."""
    method, options = pruners.get(run.method), dict(run.options)
    if "seed" in method.options:
        options.setdefault("seed", run.seed)
    scoring = training_parts(run, context)[0] if method.needs.startswith("images") else None
    if method.needs == SNAPSHOTS:
        options["snapshots"] = earlier_weights(run, context)
    example = context.example(run.dataset)
    return {"groups": run.groups, "example_input": example, "data": scoring, **options}


def tune_for_snapshots(model: nn.Module, run: Run, context: Context, progress: Progress) -> dict[str, float]:
    """Fine-tune a copy of a public checkpoint for the snapshots that a method scores with.

    What that took is part of its pruning step: epochs, data_images, seconds; {} where nothing is needed.
    """
    if not run.prunes or run.baseline is not None or pruners.get(run.method).needs != SNAPSHOTS:
        return {}
    if run.recipe is None:
        raise ValueError(
            f"{run.label} of a public checkpoint takes its snapshots while fine-tuning: give a recipe"
        )
    hooks = snapshots_of(run, context)
    tuned, part = copy.deepcopy(model), "-snapshots"
    history = train(tuned, run, run.recipe, context, progress, hooks=hooks, part=part, parent=model)
    images = len(training_parts(run, context)[0]) * run.recipe.epochs
    seconds = sum(row.seconds for row in history.epochs)
    return {"epochs": run.recipe.epochs, "data_images": images, "seconds": seconds}


def snapshots_of(run: Run, context: Context) -> Hooks:
    """Hooks that keep snapshots of this run's training."""
    return snapshots.keep(context.snapshots_folder(run), snapshot_epochs(run))


def snapshot_epochs(run: Run) -> list[int]:
    """Which epochs: the early ones of a training from scratch, all of a fine-tuning."""
    if run.method == BASELINE:
        return snapshots.early(run.epochs)
    return snapshots.spaced(range(1, run.epochs + 1))


def earlier_weights(run: Run, context: Context) -> list[dict[str, Tensor]]:
    """The snapshots that a run scores with; ValueError when its baseline's are no longer there."""
    source = run.start() or run
    try:
        return snapshots.read(context.snapshots_folder(source), snapshot_epochs(source))
    except FileNotFoundError as error:
        raise ValueError(
            f"{run.label} needs snapshots of the training of its start, and {error.filename} is missing: "
            f"delete the record {source.stem}.json and run the suite again, which trains the start again"
        ) from error


def at_target(model: nn.Module, cut: Cut, run: Run, context: Context) -> tuple[nn.Module, float]:
    """The copy at the run's own rate or at its target of MACs or parameters, and the rate."""
    if run.rate is not None:
        return cut(run.rate), run.rate
    example = context.example(run.dataset)
    if run.params_ratio is not None:
        params = run.params_ratio * cost.count(model, example).params
        return match_params(model, cut, params, example_input=example, tolerance=math.inf)
    assert run.macs_ratio is not None  # a Run has one of the three
    return cut_to(model, cut, run.macs_ratio, example)


def training_parts(run: Run, context: Context) -> tuple[Split, Split | None]:
    """(what the run trains and scores with, what it validates on)."""
    train = context.split(run.dataset, "train")
    return data.hold_out(train, run.validation) if run.validation else (train, None)


def splits_of(run: Run, context: Context) -> tuple[Split, Split | None, Split | None]:
    """What the run trains with, and what is evaluated after every epoch: validation and test images."""
    selected = run.selecting or "best-test" in run.rules
    return *training_parts(run, context), context.split(run.dataset, "test") if selected else None


def train(
    model: nn.Module,
    run: Run,
    recipe: Recipe,
    context: Context,
    progress: Progress,
    *,
    hooks: Hooks | None = None,
    part: str = "",
    parent: nn.Module | None = None,
) -> History:
    """Train in place, continuing from a saved state; OutOfTime when the deadline has passed at the end.

    parent: the network before pruning, from which a recipe with distillation learns.
    Where trainings are gathered for a fleet, Unfinished instead of a training that one can do.
    """
    train, validation, test = splits_of(run, context)
    state, hooks = context.state_path(run, part), hooks or Hooks()
    state.parent.mkdir(parents=True, exist_ok=True)
    teacher = parent if recipe.distillation else None
    if context.gathering:
        member = Member(
            model, train, recipe, validation, test, run.seed, state, hooks, run.selecting, teacher=teacher
        )
        if not member.why_alone() and member.epochs_saved() < recipe.epochs:
            raise Unfinished(member)
    history = fine_tune(
        model,
        train,
        recipe,
        validation=validation,
        test=test,
        attacks=run.selecting,
        device=context.device,
        seed=run.seed,
        state_path=state,
        hooks=hooks,
        progress=progress,
        after_epoch=lambda _: context.expired(),
        cuda_graphs=context.cuda_graphs,
        teacher=teacher,
    )
    if context.expired():
        raise OutOfTime
    return history


def joined(first: History, second: History) -> History:
    """One course of training; epochs of the second part count on. What it chose is from that part."""
    offset = len(first.epochs)
    rows = [dataclasses.replace(row, epoch=row.epoch + offset) for row in second.epochs]
    chosen = {
        part: dataclasses.replace(best, epoch=best.epoch + offset) for part, best in second.chosen.items()
    }
    return History(first.epochs + rows, chosen, second.trainer)


def chosen_weights(
    run: Run, model: nn.Module, history: History | None
) -> dict[str, tuple[int, dict[str, Tensor]]]:
    """Per checkpoint rule the epoch it chose and the weights of that epoch.

    A network that is whole only after its last epoch has that one to choose.
    """
    weights = {"last": (len(history.epochs) if history else 0, copy.deepcopy(model.state_dict()))}
    for part, chosen in (history.chosen if history else {}).items():
        weights[f"best-{part}"] = (chosen.epoch, chosen.weights)
    return {rule: weights.get(rule, weights["last"]) for rule in run.rules}
