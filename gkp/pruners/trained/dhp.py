"""DHP: from scratch, weights are generated from latents that a proximal step makes sparse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.filters import convolutions_to_cut
from gkp.pruners.common.ranking import MINIMUM, filter_macs, global_cut, lowest
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.common.widths import Widths
from gkp.pruners.trained.generated import Latents, generate, make_plain
from gkp.train.hooks import Hooks, Step

SPARSITY = 3e-4  # of the L1 norm of the latents, for ResNet-56
THRESHOLD = 5e-3  # below it a latent counts as gone
FEWEST = 4  # latents of a layer that are not gone
LIMIT = 0.01  # the search ends that close above the target, as a share of the whole network's multiply-adds
CHECKED, CHECKS = 100, 20  # steps between two looks at the multiply-adds; looks at least in a short training
SHARE = 0.1  # of the epochs: the original searches 20 to 25 and then trains 300
LR, DECAY = 0.1, 1e-4


@dataclass
class Search:
    """The proximal steps on the latents, until the network of those left is small enough.

    goal: its share of the multiply-adds. done: the only state.
    """

    latents: Latents
    widths: Widths
    goal: float
    sparsity: float
    done: bool = False

    @torch.no_grad()
    def after_step(self, model: nn.Module, at: Step) -> None:
        if self.done:
            return
        z = self.latents.z
        z.copy_(shrunk(z, self.latents.owner, at.lr * self.sparsity))
        if (at.number + 1) % max(1, min(CHECKED, at.total // CHECKS)) == 0:
            self.done = self.share() - self.goal <= LIMIT

    def share(self) -> float:
        """Of the multiply-adds, in the network of the latents that are left."""
        gone = {
            name: int((~left(z)).sum()) for name, z in self.latents.split(self.latents.z.detach()).items()
        }
        return self.widths.macs(gone) / self.widths.macs({})

    def state_dict(self) -> dict:
        return {"done": self.done}

    def load_state_dict(self, state: dict) -> None:
        self.done = bool(state["done"])


def left(z: Tensor) -> Tensor:
    """(O,) bool: |z| is at least the threshold, or among the largest `FEWEST`."""
    size = z.abs()
    return size >= size.topk(min(FEWEST, len(size))).values[-1].clamp(max=THRESHOLD)


def shrunk(z: Tensor, owner: Tensor, amount: float) -> Tensor:
    """z drawn to 0 by `amount`, in layers that have more than `FEWEST` above the threshold; all (N,)."""
    above = torch.zeros_like(z).index_put((owner,), (z.abs() >= THRESHOLD).to(z), accumulate=True)[owner]
    return torch.where(above > FEWEST, z.sign() * (z.abs() - amount).clamp(min=0), z)


def start_dhp(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    sparsity: float = SPARSITY,
    share: float = SHARE,
    lr: float = LR,
    seed: int = 0,
    minimum: float = MINIMUM,
) -> Session:
    """Draw all weights anew and put the hyper-network into `model`; the search ends at the cost of `rate`."""
    if sparsity < 0:
        raise ValueError(f"sparsity={sparsity!r}: give the weight of the latents' L1 norm, 0 or more")
    example = default_input(model, example_input)
    layers = convolutions_to_cut(model, example, "dhp")
    widths = Widths(model, layers, example)
    drawn = Latents(layers, seed)
    drop = lowest(_sizes(drawn), filter_macs(model, layers, example), rate, minimum)
    goal = widths.macs({name: len(indices) for name, indices in drop.items()}) / widths.macs({})
    _draw_anew(model, seed)
    latents, names = generate(model, layers, example, seed)
    search = Search(latents, widths, goal, sparsity)
    hooks = Hooks(
        after_step=search.after_step, state_dict=search.state_dict, load_state_dict=search.load_state_dict
    )

    notes: dict[str, float] = {}

    def finish(trained: nn.Module) -> Cut:
        notes["share_searched"] = search.share()
        make_plain(trained, names)
        return global_cut(trained, _sizes(latents), example, minimum)

    changes = {"lr": lr, "weight_decay": DECAY}
    return Session(hooks, finish, share, changes, changes, notes)


@register(
    "dhp",
    structure="filter",
    schedule="in training",
    citation="Li et al. 2020 (ECCV), DHP, arXiv:2003.13683",
    summary="weights generated from one latent per filter, made sparse by proximal steps; the smallest go",
    start=start_dhp,
    from_scratch=True,
)
def dhp(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    sparsity: float = SPARSITY,
    share: float = SHARE,
    lr: float = LR,
    seed: int = 0,
    minimum: float = MINIMUM,
) -> Cut:
    """Differentiable meta pruning: all weights are drawn anew, those of convolutions by a hyper-network.

    See `gkp.pruners.trained.generated`. After each step z <- sign(z) max(|z| - lr * sparsity, 0), in layers
    with more than 4 latents above 5e-3, until the multiply-adds of those left meet the target. Then the
    weights are generated once, the hyper-network goes, filters of smallest |z| in one ranking of all layers
    go, and the rest trains on for the other epochs: 20 of 320 in the original, here a `share`.

    lr and a weight decay of 1e-4 replace the recipe's, before the cut and after it, as everything starts
    anew; it is the only method here that throws the trained weights away. Ours: latents of filters that can
    go on their own (the original's ResNets have a 1x1 convolution as shortcut and prune the sums of a
    stage, too); the ranking by |z| instead of a threshold, so that the target is met; a layer keeps a share
    `minimum` instead of 4 filters. Only latents of 0 with learned biases of 0 make zero filters, so the cut
    costs accuracy. In a training of few epochs the proximal steps take off little: sparsity is to be
    raised. Without training: latents as drawn.
    """
    example = default_input(model, example_input)
    layers = convolutions_to_cut(model, example, "dhp")
    return global_cut(model, _sizes(Latents(layers, seed)), example, minimum)


def _sizes(latents: Latents) -> dict[str, Tensor]:
    """{layer: |z| (O,)}."""
    return latents.split(latents.z.detach().abs())


def _draw_anew(model: nn.Module, seed: int) -> None:
    """Give every layer the weights of a new one; ValueError where nobody can tell what those are."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        known = callable(getattr(module, "reset_parameters", None))
        if module._parameters and not known:
            raise ValueError(
                f"dhp trains from scratch, and {name or 'the network'} ({type(module).__name__}) has "
                "parameters but no reset_parameters that draws them anew: use a method that starts from "
                "trained weights, such as slimming"
            )
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"dhp trains from scratch, and {frozen[0]} is frozen: call requires_grad_(True) on the network"
        )
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for module in modules.values():
            if module._parameters:
                module.reset_parameters()  # type: ignore[operator]
