"""OTOv2's DHSPG: a penalty pulls redundant groups to the origin, a half-space projection puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.pruners.common.ranking import MINIMUM, filter_macs, lowest
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.trained.zero_groups import ZeroGroups, cosine, global_norm
from gkp.train.hooks import Hooks, Step

BEGIN = 1 / 6  # share of the steps before the penalty: 50 of 300 epochs
PENALTY, EPSILON = 1e-3, 0.95
PUBLISHED_STEPS = 250 * 782  # with that penalty: all but the first 50 of 300 epochs of 782 batches of 64
SHARE = 0.8  # of the epochs, as for the other methods whose cut may change the network
AMPLIFIED, LARGEST = 2.0, 10.0  # times the smallest penalty that shrinks a group; times PENALTY at most
TOLERANCE, MOST = 0.05, 0.999  # shares of groups: penalised beyond the target, and at most
TINY = 1e-6  # beside a mean norm


def redundancy(x: Sequence[Tensor], g: Sequence[Tensor] | None = None) -> Tensor:
    """(N,), high is redundant: the mean of cos(-x, -g) and 1 / (||x|| / D + 1e-6), each divided by its norm.

    x, g: per layer (O, D), the groups and what the update takes off them, divided by the learning rate.
    Without g only the second.
    """
    small = global_norm([1 / (rows.norm(dim=1) / rows.shape[1] + TINY) for rows in x])
    if g is None:
        return small
    return (global_norm([cosine(a, b) for a, b in zip(x, g, strict=True)]) + small) / 2


def penalties(x: Tensor, g: Tensor, penalty: float) -> Tensor:
    """(O,): the weight of each group's penalty; x, g: (O, D).

    `penalty`, unless the update makes the group larger (x . g < 0). Then ||x|| falls above lower = -x.g /
    ||x|| and the loss below upper = -||g||^2 ||x|| / x.g >= lower: twice lower, from penalty to ten times
    that, or the middle of both where that would be above upper.
    """
    norm, product = x.norm(dim=1).clamp_min(1e-30), (x * g).sum(1)
    against = product < 0
    lower = -product / norm
    upper = g.square().sum(1) * norm / (-product).where(against, torch.ones_like(product))
    wanted = (AMPLIFIED * lower).clamp(penalty, LARGEST * penalty)
    wanted = ((lower + upper) / 2).where(wanted >= upper, wanted)
    return wanted.where(against, torch.full_like(wanted, penalty))


@dataclass
class HalfSpaces:
    """Which groups are penalised and which are zero, (N,) bool each; target: how many are to be zero.

    penalty: None for one that pulls as far in this training as PENALTY does in PUBLISHED_STEPS.
    """

    groups: ZeroGroups
    target: int
    begin: float
    penalty: float | None
    epsilon: float
    penalised: Tensor = field(init=False)
    zero: Tensor = field(init=False)
    before: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.penalised, self.zero = (torch.zeros(sum(self.groups.sizes), dtype=torch.bool) for _ in range(2))

    def first(self, at: Step) -> int:
        """The step at which the penalised groups are chosen."""
        return min(int(self.begin * at.total), at.total - 1)

    def weight(self, at: Step) -> float:
        """The penalty's, see `penalties`."""
        if self.penalty is None:
            return PENALTY * PUBLISHED_STEPS / (at.total - self.first(at))
        return self.penalty

    def before_step(self, model: nn.Module, at: Step) -> None:
        if at.number >= self.first(at):
            self.before = self.groups.vectors(model)

    def after_step(self, model: nn.Module, at: Step) -> None:
        """The update with the penalty in it, the projection, and zeros where there were zeros."""
        if at.number < self.first(at):
            return
        now = self.groups.vectors(model)
        self.penalised, self.zero = (mask.to(now[0].device) for mask in (self.penalised, self.zero))
        taken = [(a - b) / at.lr for a, b in zip(self.before, now, strict=True)]
        if at.number == self.first(at):
            self.choose(redundancy(self.before, taken))
        pulled = self.penalised & ~self.zero & (self.zero.sum() < self.target)
        projected = []
        layers = zip(self.before, taken, now, pulled.split(self.groups.sizes), strict=True)
        for layer, (x, g, trial, mask) in enumerate(layers):
            step = at.lr * penalties(x, g, self.weight(at)) / x.norm(dim=1).clamp_min(1e-30)
            trial = torch.where(mask[:, None], trial - step[:, None] * x, trial)
            projected.append(mask & ((trial * x).sum(1) < self.epsilon * x.square().sum(1)))
            now[layer] = trial
        self.zero = self.zero | torch.cat(projected)
        zeros = self.zero.split(self.groups.sizes)
        self.groups.put(model, [rows.masked_fill(z[:, None], 0) for rows, z in zip(now, zeros, strict=True)])
        self.before = []

    def choose(self, scores: Tensor) -> None:
        """Penalise the most redundant groups: the target, and a tolerance more."""
        share = min(self.target / len(scores) + TOLERANCE, MOST)
        redundant = self.groups.removable(-scores, 0.0)[: int(len(scores) * share)]
        self.penalised[torch.tensor(redundant, dtype=torch.long, device=self.penalised.device)] = True

    def state_dict(self) -> dict:
        return {"penalised": self.penalised, "zero": self.zero}

    def load_state_dict(self, state: dict) -> None:
        self.penalised, self.zero = state["penalised"], state["zero"]


def start_dhspg(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    begin: float = BEGIN,
    penalty: float | None = None,
    epsilon: float = EPSILON,
    share: float = SHARE,
    minimum: float = MINIMUM,
) -> Session:
    """Train groups to zero, as many as the untrained criterion removes at `rate`; without momentum."""
    if not (0 <= begin < 1 and (penalty is None or penalty >= 0) and 0 <= epsilon < 1):
        raise ValueError(
            f"begin={begin!r}, penalty={penalty!r}, epsilon={epsilon!r}: give begin and epsilon from 0 to "
            "below 1, and a penalty of 0 or more"
        )
    zero = ZeroGroups(model, example_input)
    worth = filter_macs(model, zero.layers, zero.example)
    drop = lowest(zero.split(-redundancy(zero.vectors(model))), worth, rate, minimum)
    spaces = HalfSpaces(zero, sum(len(indices) for indices in drop.values()), begin, penalty, epsilon)
    hooks = Hooks(
        before_step=spaces.before_step,
        after_step=spaces.after_step,
        state_dict=spaces.state_dict,
        load_state_dict=spaces.load_state_dict,
    )

    notes: dict[str, int] = {}

    def finish(trained: nn.Module) -> Cut:
        vanished = zero.vanished(trained)
        notes.update(groups=len(vanished), zero_groups=int(vanished.sum()))
        return _ranked(zero, trained, minimum)

    return Session(hooks, finish, share, {"momentum": 0.0, "nesterov": False}, notes=notes)


@register(
    "otov2-dhspg",
    structure="filter",
    schedule="in training",
    citation="Chen et al. 2023 (ICLR), OTOv2, arXiv:2303.06862",
    summary="redundant filters pulled to the origin while training and projected there; the smallest are cut",
    start=start_dhspg,
)
def dhspg(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    begin: float = BEGIN,
    penalty: float | None = None,
    epsilon: float = EPSILON,
    share: float = SHARE,
    minimum: float = MINIMUM,
) -> Cut:
    """DHSPG: after a share `begin` of the steps the groups of highest `redundancy` are chosen once.

    Until enough are zero a step takes lr * `penalties` * x / ||x|| off each of them, beside its update, and
    sets it to zero where the result x' has x' . x < epsilon ||x||^2. Zero groups stay zero; the others
    train by SGD without momentum, as published. epsilon 0.95 is that for ResNet-18 (VGG-16: 0.9), and so
    is the penalty of 1e-3 (VGG-16: 5e-4), which by default (None, ours) is larger in fewer steps than the
    published 195,500: else a short training, which pulls less far, leaves nearly all groups where they are.

    Its number of zero groups cannot be steered, so the cut goes by the mean size ||x|| / D at the end: zero
    groups first, and where they are too few, others. share: of the epochs; the
    rest fine-tunes the cut network, which the original does not (1). Ours: the target is what this removes
    without training, in groups; a layer keeps a share `minimum`; groups of residual sums stay.
    """
    return _ranked(ZeroGroups(model, example_input), model, minimum)


def _ranked(zero: ZeroGroups, model: nn.Module, minimum: float) -> Cut:
    nothing = torch.zeros(sum(zero.sizes), dtype=torch.bool)
    return zero.cut(model, -redundancy(zero.vectors(model)), nothing, 0.0, minimum)
