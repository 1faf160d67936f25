"""Attacks of a run that has no record yet: each is on disk as soon as it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import Metric
from gkp.utils.files import atomic_write_text

State = dict[str, dict[str, Any]]  # {SHA-256 of weights, and the device: {name of an attack: its metric}}


class Measured:
    """What was measured of one network, kept in a file that several networks of a run share.

    path: None keeps nothing. weights: SHA-256 of the network's. device: on which it is attacked; what another
    one measured is not taken. ValueError where the file is damaged.
    """

    def __init__(self, path: Path | None, weights: str, device: str) -> None:
        self.path, self.key = path, f"{weights} {device}"
        self.metrics = {
            name: Metric.parse(source) for name, source in self._state().get(self.key, {}).items()
        }

    def has(self, entry: Entry) -> bool:
        """Whether the attack is done, on as many images as are asked for."""
        metric = self.metrics.get(entry.attack.name)
        return metric is not None and metric.asked_n == entry.n

    def add(self, metric: Metric) -> None:
        """Keep one more; what the file has of other weights stays."""
        self.metrics[metric.attack.name] = metric
        if self.path is not None:
            sources = {name: metric.source for name, metric in self.metrics.items()}
            atomic_write_text(self.path, json.dumps(self._state() | {self.key: sources}))

    def _state(self) -> State:
        if self.path is None or not self.path.exists():
            return {}
        try:
            state: State = json.loads(self.path.read_text("utf-8"))
            return {key: dict(metrics) for key, metrics in state.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged: delete it to attack again") from error
