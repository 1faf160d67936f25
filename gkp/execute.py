"""One run from its start to its record: load, prune, fine-tune, attack, write."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp import cost, data, evaluate, models, pruners, zoo
from gkp.checkpoint import load_file, save_model
from gkp.data import Split
from gkp.progress import Progress, Task
from gkp.records import Record, Store, peak_memory_mb, provenance, run_config, weights_sha256
from gkp.suites import BASELINE, VERSION, Entry, Run
from gkp.train import History, fine_tune

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
        """One image (1, 3, H, W), for tracing and counting."""
        return self.split(dataset, "test").pixels(slice(1))

    def state_path(self, run: Run) -> Path:
        return self.store.root / "work" / "state" / f"{run.hash}.pt"


def execute(run: Run, suite: str, context: Context) -> Record:
    """Do the whole run and write its record; a record that lacks attacks gets only those.

    Raises OutOfTime when the context's deadline passes; the training state stays and continues later.
    """
    record = context.store.find(run)
    progress = TimedProgress(context.progress, run.label, context.deadline)
    if record is not None:
        return complete(record, run, context, progress)
    started = time.monotonic()
    model = start_model(run, context)
    record = describe(run, suite, model)
    before = costs(model, context.example(run.dataset))
    model, record["pruning"] = prune(model, run, context)
    after = costs(model, context.example(run.dataset))
    ratio = after["prunable_macs"] / before["prunable_macs"]
    record["cost"] = {"before": before, "after": after, "macs_ratio": ratio}
    history = train(model, run, context, progress)
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
    context.state_path(run).unlink(missing_ok=True)
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
    return prune(start_model(run, context), run, context)[0]


def prune(model: nn.Module, run: Run, context: Context) -> tuple[nn.Module, dict[str, Any]]:
    """The pruned network and what the pruning step itself took: scoring and one cut, no search for a rate."""
    if not run.prunes:
        return model, {"rate": 0.0, "seconds": 0.0, "data_images": 0}
    method, options = pruners.get(run.method), dict(run.options)
    if "seed" in method.options:
        options.setdefault("seed", run.seed)
    scoring = context.split(run.dataset, "train") if method.needs.startswith("images") else None
    example = context.example(run.dataset)
    started = time.perf_counter()
    cut = pruners.prepare(
        model, run.method, groups=run.groups, example_input=example, data=scoring, **options
    )
    prepared = time.perf_counter() - started
    rate = run.rate
    if rate is None:
        whole, prunable = cost.count(model, example).macs, prunable_macs(model, example)
        target = whole - (1 - run.macs_ratio) * prunable
        _, rate = pruners.match_macs(model, cut, target, example_input=example)
    started = time.perf_counter()
    pruned = cut(rate)
    seconds = prepared + time.perf_counter() - started
    images = len(scoring) if scoring else 0
    return pruned, {"rate": rate, "seconds": round(seconds, 4), "data_images": images}


def train(model: nn.Module, run: Run, context: Context, progress: Progress) -> History | None:
    """Fine-tune in place with the run's recipe, continuing from a saved state; None without a recipe."""
    recipe = run.baseline if run.method == BASELINE else run.recipe
    if recipe is None:
        model.to(context.device).eval()
        return None
    train, validation = context.split(run.dataset, "train"), None
    if run.validation:
        train, validation = data.hold_out(train, run.validation)
    state = context.state_path(run)
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
        progress=progress,
    )
    if context.deadline is not None and time.monotonic() > context.deadline:
        raise OutOfTime
    return history


def chosen_weights(
    run: Run, model: nn.Module, history: History | None
) -> dict[str, tuple[int, dict[str, Tensor]]]:
    """Per checkpoint rule the epoch it chose and the weights of that epoch."""
    chosen = history.chosen if history else {}
    best = {"best-validation": chosen.get("validation"), "best-test": chosen.get("test")}
    last = (len(history.epochs) if history else 0, copy.deepcopy(model.state_dict()))
    return {rule: last if rule == "last" else (best[rule].epoch, best[rule].weights) for rule in run.rules}


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


# ---- facts about costs and data ------------------------------------------------------------------


def costs(model: nn.Module, example: Tensor) -> dict[str, dict[str, float]]:
    """MACs and parameters in both conventions for one image, and the MACs that pruning is about."""
    counted = {name: asdict(cost.count(model, example, convention=name)) for name in cost.CONVENTIONS}
    return counted | {"prunable_macs": prunable_macs(model, example)}


def prunable_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of all convolutions but the first: everything but the first layer and the linear ones."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    fixed: list[int] = []

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        fixed.append(module.weight[0].numel() * output.numel() // len(output))

    layers = [first, *(module for module in model.modules() if isinstance(module, nn.Linear))]
    handles = [layer.register_forward_hook(add) for layer in layers]
    try:
        whole = cost.count(model, example).macs
    finally:
        for handle in handles:
            handle.remove()
    return whole - sum(fixed)


def data_facts(split: Split) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "part": split.part,
        "images": len(split),
        "official_size": split.official_size,
        "sha256": split.fingerprint,
    }
