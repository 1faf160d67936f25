"""Where the time of a suite went."""

from __future__ import annotations

from collections.abc import Iterable

from gkp.study.runs.store import Record


def seconds(record: Record) -> dict[str, float]:
    """Seconds of one run: of the pruning step, of training (with a method's hooks), of attacks, of the rest.

    The rest is finding the rate, counting, loading and saving. Attacks that were added later are left out,
    because they are not in the run's total.
    """
    total = record["provenance"]["seconds"]
    later = {name for evaluation in record["evaluations"] for name in evaluation["attacks"]}
    training = sum(row["seconds"] for row in (record["history"] or {"epochs": []})["epochs"])
    attacks = sum(
        metric["seconds"]
        for kept in record["checkpoints"].values()
        for name, metric in kept["metrics"].items()
        if name not in later
    )
    pruning = record["pruning"]["seconds"]
    parts = {"pruning": pruning, "training": training, "attacks": attacks}
    return parts | {"the rest": max(0.0, total - pruning - training - attacks)}


def sentence(records: Iterable[Record]) -> str:
    """ "21 runs, 3:20 in all: pruning 2 %, training 60 %, ..."; "" without a run."""
    runs = [seconds(record) for record in records if "checkpoints" in record]
    total = sum(sum(run.values()) for run in runs)
    if not total:
        return ""
    shares = {part: 100 * sum(run[part] for run in runs) / total for part in runs[0]}
    words = ", ".join(f"{part} {share:.0f} %" for part, share in shares.items())
    return f"{len(runs)} runs, {int(total // 60)}:{int(total % 60):02} in all processes: {words}"
