"""One run from its start to its record: load, prune, fine-tune, attack, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkp import evaluate
from gkp.attacks import Attack
from gkp.attacks.outcome import Outcome
from gkp.data import Split
from gkp.nets import models, zoo
from gkp.nets.checkpoint import load_file, save_model
from gkp.pruners.common.budget import costs
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.leftovers import remove_states
from gkp.study.execute.measured import Measured
from gkp.study.execute.steps import chosen_weights, prune, prune_and_train
from gkp.study.execute.threads import begun_with, computing_with
from gkp.study.runs.protocols import Entry
from gkp.study.runs.provenance import device_name, peak_memory_mb, provenance, weights_sha256
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Kept, Metric
from gkp.study.runs.run import BASELINE, Run
from gkp.study.runs.store import missing_entries
from gkp.train import History
from gkp.utils.files import sha256_bytes
from gkp.utils.progress import Progress, Task

if TYPE_CHECKING:
    from gkp.attacks.autoattack import AutoAttackOutcome

BATCH = {"cpu": 500, "cuda": 2500}  # images per step of an evaluation
EXAMPLES = 16  # images on which a folded network must answer as it did before
AUTOATTACK_BATCH = {"cpu": 64, "cuda": 512}  # images after which it can stop and continue


def execute(run: Run, suite: str, context: Context) -> Record:
    """Do the whole run and write its record; a record that lacks attacks gets only those.

    Raises OutOfTime when the context's deadline passes; the training state stays and continues later.
    """
    record = context.store.find(run)
    progress = context.titled(run.label)
    with computing_with(begun_with(run, context, record)):
        if record is None:
            record = first_record(run, suite, context, progress)
        return complete(record, run, context, progress)


def first_record(run: Run, suite: str, context: Context, progress: Progress) -> Record:
    """Prune, train and attack; the record is written, and what was kept for continuing is removed."""
    started = time.monotonic()
    model = start_model(run, context).to(context.device)
    example = context.example(run.dataset)
    start = {"weights": run.weights, "sha256": weights_sha256(model)}
    before = costs(model, example)
    model, pruning, history = prune_and_train(model, run, context, progress)
    after = costs(model, example)
    ratio = after["prunable_macs"] / before["prunable_macs"]
    kept = keep_and_attack(model, run, suite, history, context, progress)
    about = {
        **provenance(context.device),
        "folded": True,
        "cuda_graphs": context.cuda_graphs and context.device.type == "cuda",
        "data": data_facts(context.split(run.dataset, "test")),
        "training_data": data_facts(context.split(run.dataset, "train")) if history else None,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": peak_memory_mb(context.device),
    }
    if history and history.trainer:
        about["trainer"] = history.trainer
    record = Record.of(
        run,
        suite,
        kept,
        start=start,
        cost={"before": before, "after": after, "macs_ratio": ratio},
        pruning=pruning,
        history=history.as_dict() if history else None,
        provenance=about,
    )
    context.store.write(record)
    remove_states(run, context)
    return record


def keep_and_attack(
    model: nn.Module, run: Run, suite: str, history: History | None, context: Context, progress: Progress
) -> dict[str, Kept]:
    """The checkpoint of every rule; those that choose the same epoch share file and attacks."""
    kept: dict[str, Kept] = {}
    by_epoch: dict[int, Kept] = {}
    chosen = chosen_weights(run, model, history)
    for rule, (epoch, weights) in chosen.items():
        if epoch not in by_epoch:
            model.load_state_dict(weights)
            sha256, file = keep_weights(model, run, suite, rule, context)
            entries = run.entries(*(other for other, (its, _) in chosen.items() if its == epoch))
            path = context.attacks_path(run)
            metrics = attack_all(model, run.dataset, entries, context, progress, path=path)
            by_epoch[epoch] = Kept(epoch, sha256, file, metrics, self_check(metrics))
        kept[rule] = by_epoch[epoch]
    return kept


def complete(record: Record, run: Run, context: Context, progress: Progress) -> Record:
    """Add the attacks that the record does not have yet, from the saved weights; each is kept at once."""
    missing = missing_entries(record, run)
    if not missing:
        return record
    earlier, about, names = record.evaluations, {**provenance(context.device), "folded": True}, set[str]()
    lacking = [entry for entries in missing.values() for entry in entries]
    with progress.task("more attacks", passes(lacking, run.dataset, context)) as task:
        for rule in missing:
            entries = missing_entries(record, run).get(rule, [])
            attacked = Attacked.of(saved_model(run, record.kept[rule], context), run.dataset, context)
            for entry in entries:
                metric = Metric.of(attack(attacked, run.dataset, entry, context, task), entry)
                names.add(entry.attack.name)
                metrics = {**record.kept[rule].metrics, entry.attack.name: metric}
                kept = replace(record.kept[rule], metrics=metrics, self_check=self_check(metrics))
                evaluations = (*earlier, {**about, "attacks": sorted(names)})
                record = replace(record.with_kept(rule, kept), evaluations=evaluations)
                context.store.write(record)
                if context.expired() and missing_entries(record, run):
                    raise OutOfTime
    return record


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
    record = context.store.find(start) if start else None
    if start is None or record is None:
        raise FileNotFoundError(f"{run.label} starts from a baseline that has no record yet: run the suite")
    return saved_model(start, record.kept["last"], context)


def saved_model(run: Run, kept: Kept, context: Context) -> nn.Module:
    """The final network of a record: its file, or rebuilt where nothing was trained."""
    if kept.file is not None:
        return load_file(context.store.root / kept.file)
    model = start_model(run, context).to(context.device)
    return prune(model, run, context)[0] if run.prunes else model


def keep_weights(
    model: nn.Module, run: Run, suite: str, rule: str, context: Context
) -> tuple[str, str | None]:
    """SHA-256 and file of the weights; public ones that nothing was trained on stay with their publisher."""
    if run.recipe is None and run.method != BASELINE:
        return weights_sha256(model), None
    path = context.store.weights_path(suite, run.stem, rule)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"method": run.label, "seed": run.seed, "hash": run.hash, "rule": rule}
    digest = save_model(model, path, network=run.network, dataset=run.dataset, about=about)
    return digest, path.relative_to(context.store.root).as_posix()


@dataclass(frozen=True)
class Attacked:
    """A network on the device, in evaluation mode, and what its attacks are computed with."""

    sha256: str  # of its own weights
    network: nn.Module

    @classmethod
    def of(cls, model: nn.Module, dataset: str, context: Context, *, fold: bool = True) -> Attacked:
        """fold: a copy that computes the same up to rounding in less time, see `gkp.evaluate.quick`."""
        model.to(context.device).eval()
        images = context.split(dataset, "test").pixels(slice(EXAMPLES))
        return cls(weights_sha256(model), evaluate.quick(model, images) if fold else model)


def attack_all(
    model: nn.Module,
    dataset: str,
    entries: Sequence[Entry],
    context: Context,
    progress: Progress,
    *,
    fold: bool = True,
    path: Path | None = None,
) -> dict[str, Metric]:
    """Metrics of every entry by the name of its attack; fold as in `Attacked`.

    path: where each is kept when it is done, and taken from; then OutOfTime between two attacks, so that
    every call makes one at least.
    """
    attacked = Attacked.of(model, dataset, context, fold=fold)
    measured = Measured(path, attacked.sha256, device_name(context.device))
    left = [entry for entry in entries if not measured.has(entry)]
    total = passes(entries, dataset, context)
    done = total - passes(left, dataset, context)
    with progress.task("attacks", total, done=done) as task:
        for place, entry in enumerate(left):
            if place and path is not None and context.expired():
                raise OutOfTime
            measured.add(Metric.of(attack(attacked, dataset, entry, context, task), entry))
    return {entry.attack.name: measured.metrics[entry.attack.name] for entry in entries}


def self_check(metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    """The violations that an evaluation finds in itself."""
    return tuple(evaluate.self_check(metric.outcome for metric in metrics.values()))


def passes(entries: Sequence[Entry], dataset: str, context: Context) -> float:
    """Forward and backward passes of all entries, roughly: the units in which their progress counts."""
    images = len(context.split(dataset, "test"))
    return sum(entry.passes * (entry.n or images) for entry in entries)


def attack(attacked: Attacked, dataset: str, entry: Entry, context: Context, task: Task) -> Outcome:
    """One entry on its first images of the test set; OutOfTime between two batches of AutoAttack."""
    test = context.split(dataset, "test")
    n, whole = entry.n or len(test), passes([entry], dataset, context)
    x, y = test.pixels(slice(n)).to(context.device), test.labels[:n].to(context.device)
    if entry.attack.kind != "autoattack":
        batch_size = _batch(BATCH, context)
        outcome = evaluate.outcome(attacked.network, x, y, entry.attack, batch_size=batch_size, fold=False)
        task.advance(whole)
        return outcome

    def seen(done: int, total: int) -> None:
        task.advance(whole * min(_batch(AUTOATTACK_BATCH, context), total) / total)
        if done < total and context.expired():
            raise OutOfTime

    return autoattack(attacked, x, y, entry.attack, context, seen)


def autoattack(
    attacked: Attacked,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    context: Context,
    seen: Callable[[int, int], None] | None = None,
) -> AutoAttackOutcome:
    """AutoAttack, continued from its last batch; the state goes when all images are done.

    `seen(done, total)` is called after every batch, when its state is on disk.
    """
    from gkp.attacks.autoattack import autoattack as run_autoattack

    digest = sha256_bytes(f"{attacked.sha256} {attack.name} {len(x)}".encode())[:16]
    state = context.state_folder / f"autoattack-{digest}.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    outcome = run_autoattack(
        attacked.network,
        x,
        y,
        eps=attack.eps,
        seed=attack.seed,
        batch_size=_batch(AUTOATTACK_BATCH, context),
        state_path=state,
        progress=seen,
    )
    state.unlink()
    return outcome


def _batch(sizes: Mapping[str, int], context: Context) -> int:
    """The number of images for the context's device: that of "cpu" for one that is not listed."""
    return sizes.get(context.device.type, sizes["cpu"])


def data_facts(split: Split) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "part": split.part,
        "images": len(split),
        "official_size": split.official_size,
        "sha256": split.fingerprint,
    }
