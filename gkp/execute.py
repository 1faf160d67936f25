"""One run from its start to its record: load, prune, fine-tune, attack, write."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp import data, evaluate, models, pruners, zoo
from gkp.checkpoint import load_file, save_model
from gkp.data import Split
from gkp.progress import Progress, Task
from gkp.pruners import Cut
from gkp.records import Record, Store, peak_memory_mb, provenance, run_config, weights_sha256
from gkp.suites import BASELINE, VERSION, Entry, Run
from gkp.target import costs, cut_to
from gkp.train import History, Hooks, Recipe, fine_tune

BATCH = {"cpu": 500, "cuda": 2500}  # images per step of an evaluation


class OutOfTime(Exception):
    """The time budget is used up; what was finished is on disk and the run can be continued."""


class TimedProgress(Progress):
    """Progress that raises `OutOfTime` at the end of the first epoch after the deadline.

    Training says one line per epoch, after that epoch's state is on disk: stopping there loses nothing.
    """

    def __init__(self, inner: Progress | None, title: str, deadline: float | None) -> None:
        super().__init__(inner.mode if inner else "off", stream=inner.stream if inner else None)
        self.prefix, self.deadline = title, deadline

    @contextmanager
    def task(self, title: str, total: float, *, done: float = 0) -> Iterator[Task]:
        with super().task(f"{self.prefix}, {title}", total, done=done) as task:
            say = task.say

            def say_and_check(text: str) -> None:
                say(text)
                if text and self.expired():
                    raise OutOfTime

            task.say = say_and_check
            yield task

    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


@dataclass
class Context:
    """Where runs read and write, and on what they compute; `splits` keeps loaded data between runs."""

    store: Store
    device: torch.device
    progress: Progress | None = None
    deadline: float | None = None  # of time.monotonic()
    download: bool = False  # fetch data that are missing
    splits: dict[tuple[str, str], Split] = field(default_factory=dict)

    def split(self, dataset: str, part: str) -> Split:
        if (dataset, part) not in self.splits:
            self.splits[dataset, part] = data.load(dataset, part, download=self.download)
        return self.splits[dataset, part]

    def example(self, dataset: str) -> Tensor:
        """One image (1, 3, H, W) on the device, for tracing and counting."""
        return self.split(dataset, "test").pixels(slice(1)).to(self.device)

    def state_path(self, run: Run, part: str = "") -> Path:
        return self.store.root / "work" / "state" / f"{run.hash}{part}.pt"


def execute(run: Run, suite: str, context: Context) -> Record:
    """Do the whole run and write its record; a record that lacks attacks gets only those.

    Raises OutOfTime when the context's deadline passes; the training state stays and continues later.
    """
    record = context.store.find(run)
    progress = TimedProgress(context.progress, run.label, context.deadline)
    if record is not None:
        return complete(record, run, context, progress)
    started = time.monotonic()
    model = start_model(run, context).to(context.device)
    example = context.example(run.dataset)
    record = describe(run, suite, model)
    before = costs(model, example)
    model, record["pruning"], history = prune_and_train(model, run, context, progress)
    after = costs(model, example)
    ratio = after["prunable_macs"] / before["prunable_macs"]
    record["cost"] = {"before": before, "after": after, "macs_ratio": ratio}
    record["history"] = history.as_dict() if history else None
    record["checkpoints"] = {}
    for rule, (epoch, weights) in chosen_weights(run, model, history).items():
        model.load_state_dict(weights)
        record["checkpoints"][rule] = {
            "epoch": epoch,
            **keep_weights(model, run, suite, rule, context),
            **attack_all(model, run.dataset, run.evaluation, context, progress),
        }
    record["provenance"] = {
        **provenance(context.device),
        "data": data_facts(context.split(run.dataset, "test")),
        "training_data": data_facts(context.split(run.dataset, "train")) if history else None,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": peak_memory_mb(context.device),
    }
    context.store.write(record)
    for part in ("", "-pruning"):
        context.state_path(run, part).unlink(missing_ok=True)
    return record


def describe(run: Run, suite: str, model: nn.Module) -> Record:
    return {
        "version": VERSION,
        "hash": run.hash,
        "suite": suite,
        "stem": run.stem,
        "label": run.label,
        "pruned": run.prunes,
        "config": run_config(run),
        "start": {"weights": run.weights, "sha256": weights_sha256(model)},
        "evaluations": [],
    }


def complete(record: Record, run: Run, context: Context, progress: Progress) -> Record:
    """Add the attacks that the record does not have yet, from the saved weights."""
    missing = missing_entries(record, run)
    if not missing:
        return record
    for rule, kept in record["checkpoints"].items():
        model = saved_model(run, kept, context)
        fresh = attack_all(model, run.dataset, missing[rule], context, progress)["metrics"]
        kept["metrics"] |= fresh
        kept["self_check"] = evaluate.self_check(list(kept["metrics"].values()))
    names = sorted({entry.attack.name for entries in missing.values() for entry in entries})
    record["evaluations"].append({**provenance(context.device), "attacks": names})
    context.store.write(record)
    return record


def missing_entries(record: Record, run: Run) -> dict[str, list[Entry]]:
    """Per checkpoint rule, the attacks of `run.evaluation` that the record lacks or has on other images."""
    missing = {}
    for rule, kept in record["checkpoints"].items():
        have = {name: metric["asked_n"] for name, metric in kept["metrics"].items()}
        lacking = [entry for entry in run.evaluation if have.get(name_of(entry), -1) != entry.n]
        if lacking:
            missing[rule] = lacking
    return missing


def name_of(entry: Entry) -> str:
    return entry.attack.name


# ---- steps ---------------------------------------------------------------------------------------


def start_model(run: Run, context: Context) -> nn.Module:
    """The network before pruning: public weights, the suite's own baseline, or a fresh one to train."""
    if run.weights is not None:
        return zoo.load_model(run.network, dataset=run.dataset, weights=run.weights)
    if run.method == BASELINE:
        torch.manual_seed(run.seed)
        train = context.split(run.dataset, "train")
        return models.create(run.network, num_classes=len(train.classes))
    start = run.start()
    record = context.store.find(start)
    if record is None:
        raise FileNotFoundError(f"{run.label} starts from {start.stem}, which has no record: run the suite")
    return load_file(context.store.root / record["checkpoints"]["last"]["file"])


def saved_model(run: Run, kept: dict[str, Any], context: Context) -> nn.Module:
    """The final network of a record: its file, or rebuilt where nothing was trained."""
    if kept["file"] is not None:
        return load_file(context.store.root / kept["file"])
    model = start_model(run, context).to(context.device)
    return prune(model, run, context)[0] if run.prunes else model


def prune_and_train(
    model: nn.Module, run: Run, context: Context, progress: TimedProgress
) -> tuple[nn.Module, dict[str, Any], History | None]:
    """The final network, what the pruning step itself took, and the course of the training."""
    recipe = run.baseline if run.method == BASELINE else run.recipe
    if not run.prunes:
        return model, no_pruning(), train(model, run, recipe, context, progress)
    if pruners.get(run.method).start is not None and recipe is not None:
        return prune_in_training(model, run, recipe, context, progress)
    pruned, pruning = prune(model, run, context)
    return pruned, pruning, train(pruned, run, recipe, context, progress)


def no_pruning() -> dict[str, Any]:
    return {"rate": 0.0, "seconds": 0.0, "data_images": 0}


def prune(model: nn.Module, run: Run, context: Context) -> tuple[nn.Module, dict[str, Any]]:
    """The network pruned in one shot, and what that took: scoring and one cut, no search for a rate."""
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
    model: nn.Module, run: Run, recipe: Recipe, context: Context, progress: TimedProgress
) -> tuple[nn.Module, dict[str, Any], History]:
    """A method that prunes while it trains: training with its hooks, the cut, the rest of the epochs.

    The rate comes from the untrained criterion; the cut meets the target again, with the weights it finds.
    """
    _, pruning = prune(model, run, context)
    arguments = pruning_arguments(run, context)
    if arguments["data"] is None:
        arguments["data"] = training_parts(run, context)[0]
    session = pruners.start(model, run.method, rate=pruning["rate"], epochs=recipe.epochs, **arguments)
    first, second = session.recipes(recipe)
    hooked = train(model, run, first, context, progress, hooks=session.hooks, part="-pruning")
    pruned, pruning["rate"] = at_target(model, session.finish(model), run, context)
    history = train(pruned, run, second, context, progress)
    return pruned, pruning, joined(hooked, history)


def pruning_arguments(run: Run, context: Context) -> dict[str, Any]:
    """Arguments of `pruners.prepare`: the run's options, its seed and data where the method takes them."""
    method, options = pruners.get(run.method), dict(run.options)
    if "seed" in method.options:
        options.setdefault("seed", run.seed)
    scoring = training_parts(run, context)[0] if method.needs.startswith("images") else None
    example = context.example(run.dataset)
    return {"groups": run.groups, "example_input": example, "data": scoring, **options}


def at_target(model: nn.Module, cut: Cut, run: Run, context: Context) -> tuple[nn.Module, float]:
    """The copy at the run's own rate or at its target of MACs, and the rate."""
    if run.rate is not None:
        return cut(run.rate), run.rate
    return cut_to(model, cut, run.macs_ratio, context.example(run.dataset))


def training_parts(run: Run, context: Context) -> tuple[Split, Split | None]:
    """(what the run trains and scores with, what it validates on)."""
    train = context.split(run.dataset, "train")
    return data.hold_out(train, run.validation) if run.validation else (train, None)


def train(
    model: nn.Module,
    run: Run,
    recipe: Recipe | None,
    context: Context,
    progress: TimedProgress,
    *,
    hooks: Hooks | None = None,
    part: str = "",
) -> History | None:
    """Train in place, continuing from a saved state; None without a recipe. OutOfTime after the deadline."""
    model.to(context.device)
    if recipe is None:
        model.eval()
        return None
    train, validation = training_parts(run, context)
    state = context.state_path(run, part)
    state.parent.mkdir(parents=True, exist_ok=True)
    history = fine_tune(
        model,
        train,
        recipe,
        validation=validation,
        test=context.split(run.dataset, "test") if "best-test" in run.rules else None,
        device=context.device,
        seed=run.seed,
        state_path=state,
        hooks=hooks,
        progress=progress,
    )
    if progress.expired():
        raise OutOfTime
    return history


def joined(first: History, second: History) -> History:
    """One course of training; epochs of the second part count on. What it chose is from that part."""
    offset = len(first.epochs)
    rows = [dataclasses.replace(row, epoch=row.epoch + offset) for row in second.epochs]
    best = {
        f"best_{part}": dataclasses.replace(chosen, epoch=chosen.epoch + offset)
        for part, chosen in second.chosen.items()
    }
    return History(first.epochs + rows, **best)


def chosen_weights(
    run: Run, model: nn.Module, history: History | None
) -> dict[str, tuple[int, dict[str, Tensor]]]:
    """Per checkpoint rule the epoch it chose and the weights of that epoch.

    A network that is whole only after its last epoch has that one to choose.
    """
    chosen = history.chosen if history else {}
    best = {"best-validation": chosen.get("validation"), "best-test": chosen.get("test")}
    last = (len(history.epochs) if history else 0, copy.deepcopy(model.state_dict()))
    return {rule: (best[rule].epoch, best[rule].weights) if best.get(rule) else last for rule in run.rules}


def keep_weights(model: nn.Module, run: Run, suite: str, rule: str, context: Context) -> dict[str, Any]:
    """Save what this run trained; public weights that nothing was trained on stay with their publisher."""
    if run.recipe is None and run.method != BASELINE:
        return {"sha256": weights_sha256(model), "file": None}
    path = context.store.weights_path(suite, run.stem, rule)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"method": run.label, "seed": run.seed, "hash": run.hash, "rule": rule}
    digest = save_model(model, path, network=run.network, dataset=run.dataset, about=about)
    return {"sha256": digest, "file": path.relative_to(context.store.root).as_posix()}


def attack_all(
    model: nn.Module, dataset: str, entries: Sequence[Entry], context: Context, progress: Progress
) -> dict[str, Any]:
    """Metrics of every entry and the violations that the evaluation finds in itself."""
    model.to(context.device).eval()
    test = context.split(dataset, "test")
    batch_size = BATCH.get(context.device.type, BATCH["cpu"])
    x, y = test.pixels().to(context.device), test.labels.to(context.device)
    metrics, outcomes = {}, []
    with progress.task("attacks", len(entries)) as task:
        for entry in entries:
            n = entry.n or len(test)
            outcome = evaluate.outcome(model, x[:n], y[:n], entry.attack, batch_size=batch_size)
            outcomes.append(outcome)
            metrics[outcome.name] = metric(outcome, entry)
            task.advance()
    return {"metrics": metrics, "self_check": evaluate.self_check(outcomes)}


def metric(outcome: evaluate.Outcome, entry: Entry) -> dict[str, Any]:
    low, high = outcome.interval
    return {
        "correct": int(outcome.correct.sum()),
        "n": outcome.n,
        "asked_n": entry.n,
        "accuracy": outcome.accuracy,
        "low": low,
        "high": high,
        "seconds": round(outcome.seconds, 3),
        "attack": asdict(entry.attack),
        "bits": evaluate.pack_bits(outcome.correct),
    }


def data_facts(split: Split) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "part": split.part,
        "images": len(split),
        "official_size": split.official_size,
        "sha256": split.fingerprint,
    }
