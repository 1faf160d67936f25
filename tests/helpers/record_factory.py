"""Small records for tests, as a run would write them, and records with one thing changed."""

import json
from dataclasses import replace

import torch

from gkp.attacks import Attack
from gkp.attacks.outcome import Outcome
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record import Record, parse
from gkp.study.runs.record_parts import Kept, Metric
from gkp.study.runs.run import Run

RUN = Run("digits", "resnet8", "l1", weights="resnet8", rate=0.4375)
SIZES = {"usual": {"macs": 1000000, "params": 20000}, "paper": {"macs": 1100000, "params": 20000}}
COUNTED = SIZES | {"prunable_macs": 900000}


def measured(attack: Attack, right: torch.Tensor) -> Metric:
    """The metric of an attack after which these images, bool (N,), are right."""
    return Metric.of(Outcome(attack.name, right, 0.1, attack), Entry(attack))


def make_record(run: Run = RUN, suite: str = "small", correct: int = 90) -> Record:
    """A record of no attack on 100 images."""
    metrics = {"benign": measured(Attack("none"), torch.arange(100) < correct)}
    return Record.of(
        run,
        suite,
        {"last": Kept(2, "ab", None, metrics, ())},
        cost={"before": COUNTED, "after": COUNTED, "macs_ratio": 1.0},
        pruning={"rate": 0.4, "seconds": 0.5, "data_images": 0},
        history=None,
        provenance={"commit": None},
    )


def edited(record, *changes):
    """The record with other values in its JSON, each a path and a value."""
    data = json.loads(record.text)
    for path, value in changes:
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return parse(data)


def with_metrics(record: Record, metrics, rule: str = "last") -> Record:
    """The record with these metrics of the checkpoint that the rule keeps, and no others."""
    kept = record.kept.get(rule, record.kept["last"])
    return replace(record, kept={**record.kept, rule: replace(kept, metrics=dict(metrics))})


def with_right(record: Record, attack: Attack, right: torch.Tensor) -> Record:
    """The record with this outcome of one attack, whatever it had."""
    return with_metrics(record, {**record.metrics(), attack.name: measured(attack, right)})


def by_label(records) -> dict[str, Record]:
    return {record.label: record for record in records}
