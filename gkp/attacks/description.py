"""One attack with all its parameters: what a protocol lists and a record names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gkp.attacks.ascent import LOSSES, SPACES, Draws, Trace, choose
from gkp.attacks.frequency import high_pass
from gkp.attacks.linf import LABELS, STARTS, check_eps, check_steps, fgsm, pgd
from gkp.utils.whole import is_whole, plain

KINDS = ("none", "highpass", "fgsm", "pgd", "autoattack")
WITHOUT_EPS = KINDS[:2]


@dataclass(frozen=True)
class Attack:
    """One attack with all its parameters; `dataclasses.asdict` is JSON-able, `Attack(**d)` restores it.

    kind: "none", "fgsm" or "pgd" ("autoattack" only describes a run of `gkp.attacks.autoattack`; "highpass"
    is no attack but the filter of `gkp.attacks.frequency` with cut-off `theta`). eps, which every attack
    needs, and step are in the units of `space`; step, iterations, restarts and start are for PGD only, loss
    for FGSM only; seed feeds the random starts. ValueError for what is out of range or of another kind.
    """

    kind: str
    eps: float = math.nan  # not given; 0 for what is no attack
    step: float = 0.0
    iterations: int = 1
    restarts: int = 0
    space: str = "pixel"
    labels: str = "true"
    seed: int = 0
    loss: str = "float32"
    theta: float = 0.0
    start: str = "image"

    def __post_init__(self) -> None:
        choose("kind", self.kind, KINDS)
        choose("space", self.space, SPACES)
        choose("labels", self.labels, LABELS)
        choose("loss", self.loss, LOSSES if self.kind == "fgsm" else LOSSES[:1])
        choose("start", self.start, STARTS if self.kind == "pgd" else STARTS[:1])
        for name in ("eps", "step", "iterations", "restarts", "seed", "theta"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if isinstance(self.eps, float) and math.isnan(self.eps):
            if self.kind not in WITHOUT_EPS:
                raise ValueError(f'"{self.kind}" without a radius: give eps=..., such as 0.5 / 255')
            object.__setattr__(self, "eps", 0.0)
        check_eps(self.eps, in_pixels=self.space == "pixel")
        if not is_whole(self.seed, -(2**63)) or self.seed >= 2**63:
            raise ValueError(f"seed={self.seed!r}: give an int of at most 64 bits, such as 0")
        if self.kind == "pgd":
            check_steps(self.step, self.iterations, self.restarts)
        elif (self.step, self.iterations, self.restarts) != (Attack.step, Attack.iterations, Attack.restarts):
            raise ValueError(f'step, iterations and restarts are for "pgd": leave them out of "{self.kind}"')

    @property
    def name(self) -> str:
        """Stable and readable: `fgsm_norm_0.01_predicted`, `pgd50r1_pixel_0.5/255_step0.125/255_true`."""
        if self.kind == "none":
            return "benign"
        if self.kind == "highpass":
            return f"highpass_{self.theta:g}"
        space = {"pixel": "pixel", "normalized": "norm"}[self.space]
        words = [self.kind, space, length_text(self.eps, self.space), self.labels]
        if self.kind == "pgd":
            words[0] += f"{self.iterations}" + (f"r{self.restarts}" if self.restarts else "")
            words.insert(3, f"step{length_text(self.step, self.space)}")
            if self.start != STARTS[0]:
                words.append(f"{self.start}start")
        if self.seed and (self.kind == "autoattack" or self.draws):
            words.append(f"seed{self.seed}")
        if self.loss != LOSSES[0]:
            words.append(f"loss{self.loss.removeprefix('float')}")
        return "_".join(words)

    @property
    def draws(self) -> int:
        """Random starts of each image."""
        return self.restarts + (self.start != STARTS[0]) if self.kind == "pgd" else 0

    def generator(self) -> Generator:
        """A fresh CPU generator for the random starts, so that CPU and GPU start at the same points."""
        return torch.Generator().manual_seed(self.seed)

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: Draws | None = None,
        trace: Trace | None = None,
        spare_wrong: bool = False,
    ) -> Tensor:
        """Adversarial images for x, as `fgsm` and `pgd`; `generator` defaults to a fresh one from `seed`."""
        if self.kind == "none":
            return x
        if self.kind == "highpass":
            return high_pass(x, self.theta, _mean(model).to(x))
        if self.kind == "autoattack":
            raise ValueError("Attack.perturb cannot run AutoAttack: call gkp.attacks.autoattack.autoattack")
        if self.kind == "fgsm":
            options = {"space": self.space, "labels": self.labels, "loss": self.loss}
            return fgsm(model, x, y, eps=self.eps, trace=trace, **options)
        return pgd(
            model,
            x,
            y,
            eps=self.eps,
            step=self.step,
            iterations=self.iterations,
            restarts=self.restarts,
            space=self.space,
            labels=self.labels,
            start=self.start,
            generator=generator or self.generator(),
            trace=trace,
            spare_wrong=spare_wrong,
        )


def _mean(model: nn.Module) -> Tensor:
    mean = getattr(getattr(model, "normalize", None), "mean", None)
    if not isinstance(mean, Tensor):
        raise ValueError(
            "the high-pass filter works around model.normalize.mean, which this network does not have: "
            "wrap it so that gkp.models.Normalize is its first layer, under the name normalize"
        )
    return mean


def length_text(value: float, space: str = "pixel") -> str:
    """`value` in a name: as k/255 where k has at most three decimals (normalised units: none)."""
    steps, digits = value * 255, 3 if space == "pixel" else 0
    if value > 0 and abs(steps - round(steps, digits)) < 1e-9 and round(steps, digits) > 0:
        return f"{round(steps, digits):g}/255"
    return f"{value:.10g}"
