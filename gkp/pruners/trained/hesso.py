"""HESSO: the least salient groups fade to zero in periods, while the others train on."""

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

BEGIN, SPAN, PERIODS = 0.1, 0.25, 10  # shares of the steps before and with pruning; periods
NEVER = -1


def saliency(x: Sequence[Tensor], g: Sequence[Tensor] | None = None) -> Tensor:
    """(N,): the mean of up to five scores, each divided by its norm over all groups; low is redundant.

    x, g: per layer (O, D), the groups and what the update takes off them, divided by the learning rate.
    ||x||, ||x|| / D, and with g: cos(x, g) + 1, |x . g|, (x . g)^2 / 2.
    """
    norms = [rows.norm(dim=1) for rows in x]
    scores = [global_norm(norms), global_norm([n / rows.shape[1] for n, rows in zip(norms, x, strict=True)])]
    if g is not None:
        pairs = list(zip(x, g, strict=True))
        products = [(a * b).sum(1) for a, b in pairs]
        scores.append(global_norm([cosine(a, b) + 1 for a, b in pairs]))
        scores.append(global_norm([product.abs() for product in products]))
        scores.append(global_norm([product.square() / 2 for product in products]))
    return torch.stack(scores).mean(0)


@dataclass
class Fading:
    """Which groups fade, and since which period.

    goal: multiply-adds that go in all. period: (N,), NEVER for groups that stay; the only state.
    """

    groups: ZeroGroups
    goal: float
    begin: float
    span: float
    periods: int
    minimum: float
    period: Tensor = field(init=False)
    before: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.period = torch.full((sum(self.groups.sizes),), NEVER)

    def schedule(self, total: int) -> tuple[int, int, int]:
        """(steps before the first choice, steps of a period, periods) in a training of `total` steps."""
        first = min(int(self.begin * total), total - 1)
        steps = max(1, min(total - first, round(self.span * total)))
        periods = min(self.periods, steps)
        return first, steps // periods, periods

    def place(self, at: Step) -> tuple[int, int, int, int]:
        """(period, step in it, steps of a period, periods); the first period is 0."""
        first, length, periods = self.schedule(at.total)
        period, step = divmod(at.number - first, length)
        return period, step, length, periods

    def chooses(self, at: Step) -> bool:
        period, step, _, periods = self.place(at)
        return 0 <= period < periods and step == 0

    def before_step(self, model: nn.Module, at: Step) -> None:
        if self.chooses(at):
            self.before = self.groups.vectors(model)

    def after_step(self, model: nn.Module, at: Step) -> None:
        period, _, _, periods = self.place(at)
        if period < 0:
            return
        if self.chooses(at):
            taken = [(a - b) / at.lr for a, b in zip(self.before, self.groups.vectors(model), strict=True)]
            self.choose(saliency(self.before, taken), period, self.goal * (period + 1) / periods)
            self.before = []
        device = self.groups.tensors(model, self.groups.names[0])[0].device
        self.period = self.period.to(device)  # a GPU would wait at every step
        self.groups.scale(model, self.factors(at))

    def choose(self, scores: Tensor, period: int, goal: float) -> None:
        """Mark the lowest groups of those left until `goal` multiply-adds are gone."""
        gone = (self.period != NEVER).cpu()
        whole, order = (
            self.groups.macs(torch.zeros_like(gone)),
            self.groups.removable(scores, self.minimum, gone),
        )

        def without(count: int) -> Tensor:
            return gone.index_fill(0, torch.tensor(order[:count], dtype=torch.long), True)

        low, high = 0, len(order)  # how many more: the fewest that reach the goal
        while low < high:
            middle = (low + high) // 2
            enough = whole - self.groups.macs(without(middle)) >= goal * (1 - 1e-9)
            low, high = (low, middle) if enough else (middle + 1, high)
        self.period[(without(low) & ~gone).to(self.period.device)] = period

    def factors(self, at: Step) -> Tensor:
        """(N,): (T - t - 1) / (T - t) for those that fade, t = step + 1; 0 from the last step but one on."""
        period, step, length, _ = self.place(at)
        fading = (self.period == period) & (step < length - 2)
        share = (length - step - 2) / max(length - step - 1, 1)
        stays = (self.period == NEVER).float()
        return stays.masked_fill(fading, share)

    def state_dict(self) -> dict:
        return {"period": self.period}

    def load_state_dict(self, state: dict) -> None:
        self.period = state["period"]


def start_hesso(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    begin: float = BEGIN,
    span: float = SPAN,
    periods: int = PERIODS,
    share: float = 1.0,
    minimum: float = MINIMUM,
) -> Session:
    """Fade groups out; what goes in all are the multiply-adds that `hesso` removes at `rate`."""
    if not (0 <= begin < 1 and 0 < span <= 1 - begin and periods >= 1):
        raise ValueError(
            f"begin={begin!r}, span={span!r}, periods={periods!r}: give shares of the steps, begin from 0 "
            "and span above 0, with a sum of at most 1, and one period or more"
        )
    zero = ZeroGroups(model, example_input)
    nothing = torch.zeros(sum(zero.sizes), dtype=torch.bool)
    worth = filter_macs(model, zero.layers, zero.example)
    drop = lowest(zero.split(saliency(zero.vectors(model))), worth, rate, minimum)
    goal = zero.macs(nothing) - zero.widths.macs({name: len(indices) for name, indices in drop.items()})
    fading = Fading(zero, goal, begin, span, periods, minimum)
    hooks = Hooks(
        before_step=fading.before_step,
        after_step=fading.after_step,
        state_dict=fading.state_dict,
        load_state_dict=fading.load_state_dict,
    )

    notes: dict[str, int] = {}

    def finish(trained: nn.Module) -> Cut:
        vanished, scores = zero.vanished(trained), saliency(zero.vectors(trained))
        notes.update(groups=len(vanished), zero_groups=int(vanished.sum()))
        return zero.cut(trained, scores, fading.period != NEVER, rate, minimum)

    return Session(hooks, finish, share, notes=notes)


@register(
    "hesso",
    structure="filter",
    schedule="in training",
    citation="Chen et al. 2024, HESSO (OTOv3), arXiv:2409.09085",
    summary="the least salient filters, chosen in ten periods, fade to zero while the others train on",
    start=start_hesso,
)
def hesso(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    begin: float = BEGIN,
    span: float = SPAN,
    periods: int = PERIODS,
    share: float = 1.0,
    minimum: float = MINIMUM,
) -> Cut:
    """HESSO: at the start of each of `periods` periods choose the next groups of lowest `saliency`.

    In a period of T steps the chosen groups (filter, bias, scale and shift) are multiplied after each
    update by (T - t - 1) / (T - t), t = 1, 2, ..., so that they are zero at its end and stay so: the cut
    changes nothing.

    begin, span: shares of the steps without pruning and with it; the original names 10 % and 10 to 25 %.
    After that the network trains on, and is not fine-tuned (share=1). Ours: period j chooses until j / P of
    the multiply-adds are gone, not of the groups; a layer keeps a share `minimum` of its filters; groups of
    residual sums stay. Not copied: that chosen groups are dropped by their number instead of their score
    when they are not among the lowest any more. Without training: the two scores that need no gradient.
    """
    zero = ZeroGroups(model, example_input)
    nothing = torch.zeros(sum(zero.sizes), dtype=torch.bool)
    return zero.cut(model, saliency(zero.vectors(model)), nothing, 0.0, minimum)
