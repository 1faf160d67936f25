"""What a training run gave, epoch by epoch, and the epochs that the selection rules choose."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

TITLES = {"validation": "best on validation", "test": "best on test (the paper's rule)"}


@dataclass(frozen=True)
class EpochRow:
    """What one epoch gave; accuracies are fractions in [0, 1] after the epoch, None where not measured."""

    epoch: int  # counted from 1
    lr: float  # at the last step of the epoch
    train_loss: float  # mean cross entropy per training image, augmented, penalty excluded
    validation: float | None
    test: float | None
    seconds: float  # wall time, evaluation included
    attacked: dict[str, float] = field(default_factory=dict)  # on the test images, by the attack's short name

    @property
    def scores(self) -> dict[str, float]:
        """By which a rule can choose this epoch: "validation", "test" and attacks, where measured."""
        plain = {"validation": self.validation, "test": self.test}
        return {part: score for part, score in plain.items() if score is not None} | self.attacked

    def text(self, epochs: int) -> str:
        """One line for the log of a run of `epochs` epochs."""
        words = [f"epoch {self.epoch}/{epochs}", f"lr {self.lr:.2g}", f"loss {self.train_loss:.4f}"]
        words += [f"{part} {100 * score:.2f} %" for part, score in self.scores.items()]
        return "  ".join([*words, f"{self.seconds:.1f} s"])


@dataclass
class Chosen:
    """The epoch that a rule chose, the later of equals as the authors do, and its weights on the CPU."""

    rule: str
    epoch: int
    accuracy: float
    weights: dict[str, Tensor]


@dataclass
class History:
    """The course of a run. The model itself holds the weights of the last epoch."""

    epochs: list[EpochRow] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)  # by what chose it, a key of `EpochRow.scores`
    trainer: str = ""  # how it was computed, where that is not `gkp.train.fine_tune` alone

    def add(self, row: EpochRow, model: nn.Module) -> None:
        """Append the row and keep the model's weights where a rule prefers this epoch."""
        self.epochs.append(row)
        for part, score in row.scores.items():
            best = self.chosen.get(part)
            if best is None or score >= best.accuracy:
                weights = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
                rule = TITLES.get(part, f"best on test under {part} (the paper's rule)")
                self.chosen[part] = Chosen(rule, row.epoch, score, weights)

    def as_dict(self) -> dict:
        """Everything but the weights, ready for JSON."""
        chosen = {
            part: {"rule": best.rule, "epoch": best.epoch, "accuracy": best.accuracy}
            for part, best in self.chosen.items()
        }
        return {"epochs": [asdict(row) for row in self.epochs], "chosen": chosen}

    def state_dict(self) -> dict:
        """Everything, as plain values and tensors; `from_state_dict` turns it back."""
        best = {part: asdict(chosen) for part, chosen in self.chosen.items()}
        return {"epochs": [asdict(row) for row in self.epochs], "best": best, "trainer": self.trainer}

    @classmethod
    def from_state_dict(cls, state: dict) -> History:
        chosen = {part: Chosen(**best) for part, best in state["best"].items()}
        return cls([EpochRow(**row) for row in state["epochs"]], chosen, state.get("trainer", ""))
