"""One run from its start to its record: load, prune, fine-tune, attack, write."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkp import evaluate
from gkp.attacks import Attack
from gkp.attacks.outcome import Outcome, pack_bits
from gkp.data import Split
from gkp.nets import models, zoo
from gkp.nets.checkpoint import load_file, save_model
from gkp.pruners.common.budget import costs
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.leftovers import remove_states
from gkp.study.execute.steps import chosen_weights, prune, prune_and_train
from gkp.study.execute.threads import begun_with, computing_with
from gkp.study.runs.protocols import Entry
from gkp.study.runs.provenance import peak_memory_mb, provenance, weights_sha256
from gkp.study.runs.run import BASELINE, VERSION, Run
from gkp.study.runs.store import Record, missing_entries, run_config
from gkp.utils.files import sha256_bytes
from gkp.utils.progress import Progress, Task

if TYPE_CHECKING:
    from gkp.attacks.autoattack import AutoAttackOutcome

BATCH = {"cpu": 500, "cuda": 2500}  # images per step of an evaluation
AUTOATTACK_BATCH = 64  # images after which it can stop and continue


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
    record = describe(run, suite, model)
    before = costs(model, example)
    model, record["pruning"], history = prune_and_train(model, run, context, progress)
    after = costs(model, example)
    ratio = after["prunable_macs"] / before["prunable_macs"]
    record["cost"] = {"before": before, "after": after, "macs_ratio": ratio}
    record["history"] = history.as_dict() if history else None
    record["checkpoints"] = {}
    by_epoch: dict[int, dict[str, Any]] = {}  # rules that choose the same epoch share file and attacks
    for rule, (epoch, weights) in chosen_weights(run, model, history).items():
        if epoch not in by_epoch:
            model.load_state_dict(weights)
            by_epoch[epoch] = {
                "epoch": epoch,
                **keep_weights(model, run, suite, rule, context),
                **attack_all(model, run.dataset, run.evaluation, context, progress),
            }
        record["checkpoints"][rule] = copy.deepcopy(by_epoch[epoch])
    record["provenance"] = {
        **provenance(context.device),
        "cuda_graphs": context.cuda_graphs and context.device.type == "cuda",
        "data": data_facts(context.split(run.dataset, "test")),
        "training_data": data_facts(context.split(run.dataset, "train")) if history else None,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": peak_memory_mb(context.device),
    }
    context.store.write(record)
    remove_states(run, context)
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
    """Add the attacks that the record does not have yet, from the saved weights; each is kept at once."""
    missing = missing_entries(record, run)
    if not missing:
        return record
    names: list[str] = []
    record["evaluations"].append({**provenance(context.device), "attacks": names})
    lacking = [entry for entries in missing.values() for entry in entries]
    with progress.task("more attacks", passes(lacking, run.dataset, context)) as task:
        for rule in missing:
            kept, entries = record["checkpoints"][rule], missing_entries(record, run).get(rule, [])
            model = saved_model(run, kept, context)
            for entry in entries:
                kept["metrics"][entry.attack.name] = metric(
                    attack(model, run.dataset, entry, context, task), entry
                )
                kept["self_check"] = evaluate.self_check(list(kept["metrics"].values()))
                share(kept, record)
                names[:] = sorted({*names, entry.attack.name})
                context.store.write(record)
                if context.expired():
                    raise OutOfTime
    return record


def share(kept: dict[str, Any], record: Record) -> None:
    """Give what was measured to the other rules that chose the same weights."""
    for other in record["checkpoints"].values():
        if other is not kept and other["sha256"] == kept["sha256"]:
            other |= copy.deepcopy({part: kept[part] for part in ("metrics", "self_check")})


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
    return load_file(context.store.root / record["checkpoints"]["last"]["file"])


def saved_model(run: Run, kept: dict[str, Any], context: Context) -> nn.Module:
    """The final network of a record: its file, or rebuilt where nothing was trained."""
    if kept["file"] is not None:
        return load_file(context.store.root / kept["file"])
    model = start_model(run, context).to(context.device)
    return prune(model, run, context)[0] if run.prunes else model


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
    with progress.task("attacks", passes(entries, dataset, context)) as task:
        outcomes = [attack(model, dataset, entry, context, task) for entry in entries]
    metrics = {e.attack.name: metric(outcome, e) for e, outcome in zip(entries, outcomes, strict=True)}
    return {"metrics": metrics, "self_check": evaluate.self_check(outcomes)}


def passes(entries: Sequence[Entry], dataset: str, context: Context) -> float:
    """Forward and backward passes of all entries, roughly: the units in which their progress counts."""
    images = len(context.split(dataset, "test"))
    return sum(entry.passes * (entry.n or images) for entry in entries)


def attack(model: nn.Module, dataset: str, entry: Entry, context: Context, task: Task) -> Outcome:
    """One entry on its first images of the test set; OutOfTime between two batches of AutoAttack."""
    model.to(context.device).eval()
    test = context.split(dataset, "test")
    n, whole = entry.n or len(test), passes([entry], dataset, context)
    x, y = test.pixels(slice(n)).to(context.device), test.labels[:n].to(context.device)
    if entry.attack.kind != "autoattack":
        batch_size = BATCH.get(context.device.type, BATCH["cpu"])
        outcome = evaluate.outcome(model, x, y, entry.attack, batch_size=batch_size)
        task.advance(whole)
        return outcome

    def seen(done: int, total: int) -> None:
        task.advance(whole * min(AUTOATTACK_BATCH, total) / total)
        if done < total and context.expired():
            raise OutOfTime

    return autoattack(model, x, y, entry.attack, context, seen)


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    context: Context,
    seen: Callable[[int, int], None] | None = None,
) -> AutoAttackOutcome:
    """AutoAttack, continued from its last batch; the state goes when all images are done.

    A folded copy is attacked, which is the same function up to rounding and takes less time.
    `seen(done, total)` is called after every batch, when its state is on disk.
    """
    from gkp.attacks.autoattack import autoattack as run_autoattack
    from gkp.nets.deploy import folded

    digest = sha256_bytes(f"{weights_sha256(model)} {attack.name} {len(x)}".encode())[:16]
    state = context.state_folder / f"autoattack-{digest}.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    outcome = run_autoattack(
        folded(model),
        x,
        y,
        eps=attack.eps,
        seed=attack.seed,
        batch_size=AUTOATTACK_BATCH,
        state_path=state,
        progress=seen,
    )
    state.unlink()
    return outcome


def metric(outcome: Outcome, entry: Entry) -> dict[str, Any]:
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
        "bits": pack_bits(outcome.correct),
        **signs_of_masking(outcome),
    }


def signs_of_masking(outcome: Outcome) -> dict[str, Any]:
    """What an evaluation saw of gradient masking, see `gkp.attacks.masking`; only what there is to tell."""
    signs: dict[str, Any] = {"flags": list(outcome.flags)} if outcome.flags else {}
    if outcome.zero_gradient is not None:
        signs["zero_gradient"] = outcome.zero_gradient
    if not outcome.repeatable:
        signs["repeatable"] = False
    return signs


def data_facts(split: Split) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "part": split.part,
        "images": len(split),
        "official_size": split.official_size,
        "sha256": split.fingerprint,
    }
