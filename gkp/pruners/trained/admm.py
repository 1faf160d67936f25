"""RAP-ADMM: adversarial training that is pulled towards pruned filters, and on after the cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from gkp.attacks import Attack
from gkp.data import Split
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.filters import filters_to_drop, layers_to_cut
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.norms import l2
from gkp.train.hooks import Hooks

UPDATES = 9  # of Z and U, as published: every 20 of 200 epochs, none after the last
EPOCHS = 200  # that the published rho is meant for


def lowest(weight: Tensor, rate: float) -> Tensor:
    """Indices of the round(rate * O) filters of least L2 norm; weight: (O, ...)."""
    return filters_to_drop(weight.flatten(1).norm(dim=1), rate)


def projected(weight: Tensor, rate: float) -> Tensor:
    """The nearest tensor to `weight` (O, ...) in which round(rate * O) filters are zero."""
    return weight.index_fill(0, lowest(weight, rate), 0)


def filters(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer as (O, ...), with its gradient."""
    layer = model.get_submodule(name)
    weight = layer.get_parameter("weight")
    return weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight


@dataclass
class Splitting:
    """min loss(W) with filters of W zero, by W = Z: the copies Z, which are pruned, and the scaled duals U.

    names: layers with filters. every: epochs between two updates of Z and U, of which there are
    `updates`; growth: of rho at each. disputed: after each update, the filters that a cut of W would take
    and Z keeps. Z, U, rho and disputed are the state.
    """

    names: tuple[str, ...]
    rate: float
    rho: float
    growth: float
    every: int = 1
    updates: int = UPDATES
    copies: dict[str, Tensor] = field(default_factory=dict)
    duals: dict[str, Tensor] = field(default_factory=dict)
    disputed: list[int] = field(default_factory=list)

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Z is the projection of W, U is 0."""
        for name in self.names:
            weight = filters(model, name)
            self.copies[name], self.duals[name] = projected(weight, self.rate), torch.zeros_like(weight)

    def penalty(self, model: nn.Module, epoch: int) -> Tensor:
        """rho / 2 times the sum of ||W - Z + U||^2, a scalar."""
        total = torch.zeros((), device=next(model.parameters()).device)
        for name in self.names:
            weight = filters(model, name)
            for tensors in (self.copies, self.duals):  # after loading a state they may be elsewhere
                tensors[name] = tensors[name].to(weight.device)
            total = total + (weight - self.copies[name] + self.duals[name]).float().square().sum()
        return self.rho / 2 * total

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch % self.every == 0 and len(self.disputed) < self.updates:
            self.update(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """rho grows, Z becomes the projection of W + U, and U takes what W and Z differ by."""
        self.rho *= self.growth
        for name in self.names:
            weight = filters(model, name).detach()
            self.copies[name] = projected(weight + self.duals[name], self.rate)
            self.duals[name] = self.duals[name] + weight - self.copies[name]
        self.disputed.append(self.count_disputed(model))

    def count_disputed(self, model: nn.Module) -> int:
        """Filters among those of least norm in W that Z keeps."""
        count = 0
        for name in self.names:
            weight = filters(model, name).detach()
            count += int(self.copies[name][lowest(weight, self.rate)].flatten(1).any(1).sum())
        return count

    def state_dict(self) -> dict[str, Any]:
        return {
            "rho": self.rho,
            "copies": dict(self.copies),
            "duals": dict(self.duals),
            "disputed": [*self.disputed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rho, self.disputed = state["rho"], [*state["disputed"]]
        self.copies, self.duals = dict(state["copies"]), dict(state["duals"])


def start_rap_admm(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    share: float = 0.5,
    rho: float = 1e-3,
    eps: float = 8 / 255,
    step: float = 10 / 255,
    iterations: int = 1,
) -> Session:
    """Adversarial training with the penalty, updates of Z and U between epochs, adversarial training."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho={rho!r}: give the weight of the penalty, 0 or more")
    hooked = Session.hooked_epochs(epochs, share)
    every = max(1, hooked // (UPDATES + 1))
    updates = min(UPDATES, max(0, (hooked - 1) // every))
    # The pull over the whole phase, and its growth from first to last, are those of the published 200 epochs.
    strength = rho * max(1.0, EPOCHS / hooked) if hooked else rho
    growth = 1.3 ** (UPDATES / updates) if updates else 1.0
    layers = layers_to_cut(model, default_input(model, example_input))
    splitting = Splitting(tuple(layers), rate, strength, growth, every, updates)
    splitting.begin(model)
    hooks = Hooks(
        penalty=splitting.penalty,
        after_epoch=splitting.after_epoch,
        state_dict=splitting.state_dict,
        load_state_dict=splitting.load_state_dict,
    )
    notes: dict[str, Any] = {}

    def finish(trained: nn.Module) -> Cut:
        notes["disputed_filters"] = [*splitting.disputed, splitting.count_disputed(trained)]
        return l2(trained, groups=groups, example_input=example_input, data=data)

    attack = Attack("pgd", eps=eps, step=step, iterations=iterations, start="random")
    attacked = {"adversarial": attack}
    return Session(hooks, finish, share, changes=attacked, changes_after=attacked, notes=notes)


@register(
    "rap-admm",
    structure="filter",
    schedule="in training",
    citation="Ye et al. 2019 (ICCV), arXiv:1903.12561",
    summary="adversarial training, by ADMM towards filters of smallest L2 norm, and on after the cut",
    start=start_rap_admm,
)
def rap_admm(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    share: float = 0.5,
    rho: float = 1e-3,
    eps: float = 8 / 255,
    step: float = 10 / 255,
    iterations: int = 1,
) -> Cut:
    """Concurrent adversarial training and pruning: loss(x') + rho/2 sum ||W - Z + U||^2, x' found by PGD.

    share: of the epochs, with the penalty; Z <- projection of W + U and U <- U + W - Z nine times in it,
    fewer where there are fewer epochs. Then the filters of least ||W_i||_2 are cut, and the rest of the
    epochs is adversarial training, too. rho: the published 1e-3, which grows tenfold, is for 200 epochs;
    fewer get more, so that penalty times epochs stays.

    eps, step, iterations: of the attack in training, in pixels, from a random start. One step of 1.25 eps
    (Wong et al. 2020) costs half a pass more; the published PGD-10 is iterations=10, step=2/255. The
    published first stage, 200 epochs of adversarial training from scratch, is left to the network given.
    Only filters that can be removed on their own are pulled; the original masks all. Without training this
    is "l2".
    """
    return l2(model, groups=groups, example_input=example_input, data=data)
