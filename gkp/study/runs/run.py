"""One network of a study: where it starts, how it is pruned, trained and attacked, and its identity.

The hash of a `Run` is its identity: the same configuration has one record, whichever suite asks for it. The
list of attacks is not part of the hash, because attacks can be added to a finished run from its saved
weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gkp.attacks import Attack
from gkp.study.runs.protocols import SELECTION, Entry
from gkp.train.recipe import Recipe

VERSION = 1  # part of every hash: raise it when the meaning of a default changes
UNPRUNED, BASELINE = "unpruned", "baseline"
# Which epoch is kept: two honest rules, and the paper's three, which look at the test set.
RULES = ("last", "best-validation", "best-test", *(f"best-{name}" for name in SELECTION))
RATE = 0.4375  # the paper's pruning rate on CIFAR-10 (derived from its tables)
MACS_RATIO = 1 - RATE
GROUPS = 8


@dataclass(frozen=True)
class Run:
    """One network of a suite: where it starts, how it is pruned, fine-tuned and attacked.

    weights: as in `gkp.load_model`, or None when the suite trains `baseline` from scratch first.
    method: a name of `gkp.methods()`, "unpruned", or "baseline" (the training of the start itself).
    macs_ratio: the share of MACs left in all convolutions but the first, which is how SR-GKP counts;
    the method's own rate is found by bisection. params_ratio: the same by the share of all parameters that
    is left. rate: that rate itself; exactly one of the three.
    validation: images of the training part that are held out; rules: which checkpoints are kept.
    """

    dataset: str
    network: str
    method: str
    weights: str | None = None
    baseline: Recipe | None = None
    options: tuple[tuple[str, Any], ...] = ()
    macs_ratio: float | None = None
    params_ratio: float | None = None
    rate: float | None = None
    groups: int = GROUPS
    seed: int = 0
    recipe: Recipe | None = None
    validation: int = 0
    rules: tuple[str, ...] = ("last",)
    evaluation: tuple[Entry, ...] = field(default=(), metadata={"hashed": False})

    def __post_init__(self) -> None:
        if self.prunes and [self.macs_ratio, self.params_ratio, self.rate].count(None) != 2:
            raise ValueError(f"{self.method}: give one of macs_ratio, params_ratio and rate")
        if self.weights is None and self.baseline is None:
            raise ValueError(f"{self.method}: give weights, or the recipe that trains the baseline")
        if self.baseline and self.baseline.distillation:
            raise ValueError("a baseline is trained from scratch and has no teacher: leave distillation out")
        named = {rule for entry in self.evaluation for rule in entry.rules or ()}
        if unknown := {*self.rules, *named} - set(RULES):
            raise ValueError(f"checkpoint rule {', '.join(sorted(unknown))}: choose of {', '.join(RULES)}")

    @property
    def prunes(self) -> bool:
        return self.method not in (UNPRUNED, BASELINE)

    @property
    def epochs(self) -> int:
        """Epochs that this run trains, 0 for none."""
        recipe = self.baseline if self.method == BASELINE else self.recipe
        return recipe.epochs if recipe else 0

    def entries(self, *rules: str) -> tuple[Entry, ...]:
        """The attacks of `evaluation` that are for the weights of one of these rules."""
        return tuple(entry for entry in self.evaluation if any(entry.is_for(rule) for rule in rules))

    @property
    def selecting(self) -> dict[str, Attack]:
        """The attacks on the test images after every epoch that a rule chooses by, by their short name."""
        return {name: attack for name, attack in SELECTION.items() if f"best-{name}" in self.rules}

    @property
    def label(self) -> str:
        """How tables call it: the method, with what differs from its defaults."""
        name = "unpruned + fine-tune" if self.method == UNPRUNED and self.recipe else self.method
        return f"{name} ({self.variant})" if self.variant and self.method != UNPRUNED else name

    @property
    def variant(self) -> str:
        """What differs from the method's defaults, short enough for a file name; "" for nothing."""
        parts = [f"{key}-{value}" for key, value in self.options]
        if self.groups != GROUPS:
            parts.append(f"groups-{self.groups}")
        if self.rate not in (None, RATE):
            parts.append(f"rate-{self.rate:g}")
        if self.macs_ratio not in (None, MACS_RATIO):
            parts.append(f"macs-{self.macs_ratio:g}")
        if self.params_ratio is not None:
            parts.append(f"params-{self.params_ratio:g}")
        if self.method == UNPRUNED and self.recipe:
            parts.append("finetuned")
        if self.prunes and self.recipe is None:
            parts.append("untuned")
        return "-".join(parts)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        text = json.dumps({"version": VERSION, **config(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stem(self) -> str:
        """File name without ending: method, variant, seed and the first 8 digits of the hash."""
        name = "-".join(part for part in (self.method, self.variant) if part)
        slug = "".join(c if c.isalnum() or c in "-." else "-" for c in name)
        return f"{slug}-s{self.seed}-{self.hash[:8]}"

    def start(self) -> Run | None:
        """The run that trains this one's baseline, None when it starts from public weights."""
        if self.baseline is None or self.method == BASELINE:
            return None
        return replace(
            Run(self.dataset, self.network, BASELINE, baseline=self.baseline), evaluation=self.evaluation
        )


def config(value: Any) -> Any:
    """A dataclass as JSON-able data, without unhashed fields and fields at their default.

    Leaving defaults out means that a new field with a default keeps every earlier hash.
    """
    if dataclasses.is_dataclass(value):
        settings = {}
        for item in dataclasses.fields(value):
            setting = getattr(value, item.name)
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            if item.metadata.get("hashed", True) and setting != default:
                settings[item.name] = config(setting)
        return settings
    if isinstance(value, (tuple, list)):
        return [config(item) for item in value]
    return value
