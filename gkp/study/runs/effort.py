"""Where the time of a suite went."""

from __future__ import annotations

from collections.abc import Iterable

from gkp.study.runs.record import Record


def seconds(record: Record) -> dict[str, float]:
    """Seconds of one run: of the pruning step, of training (with a method's hooks), of attacks, of the rest.

    The rest is finding the rate, counting, loading and saving. Attacks that were added later are left out,
    because they are not in the run's total.
    """
    once = {  # rules that keep the same weights have the same metrics
        (kept.sha256, name): metric.seconds
        for kept in record.kept.values()
        for name, metric in kept.metrics.items()
        if name not in record.later
    }
    attacks = sum(once.values())
    parts = {"pruning": record.pruning.seconds, "training": record.training_seconds, "attacks": attacks}
    return parts | {"the rest": max(0.0, (record.provenance.seconds or 0.0) - sum(parts.values()))}


def sentence(records: Iterable[Record]) -> str:
    """ "21 runs, 3:20 in all processes: pruning 2 %, training 60 %, ..."; "" without a run."""
    runs = [seconds(record) for record in records]
    total = sum(sum(run.values()) for run in runs)
    if not total:
        return ""
    shares = {part: 100 * sum(run[part] for run in runs) / total for part in runs[0]}
    words = ", ".join(f"{part} {share:.0f} %" for part, share in shares.items())
    return f"{len(runs)} runs, {int(total // 60)}:{int(total % 60):02} in all processes: {words}"
