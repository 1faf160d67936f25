"""GAL: masks on residual blocks or filters, made sparse while the network imitates itself unmasked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gkp.data import Split
from gkp.nets.channels.layers import copied
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.filters import layers_to_cut
from gkp.pruners.common.ranking import global_cut, own_norm
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.norms import bn_gamma
from gkp.pruners.trained.blocks import Block, block_cut, residual_blocks, scale
from gkp.train.hooks import Hooks, Step
from gkp.utils.logits import forward

MASK_STEPS = 100  # in the whole phase, as published (one an epoch)
LR, MOMENTUM, DECAY = 0.01, 0.9, 2e-4  # of masks and discriminator; a tenth after each 30 % of the phase
BLOCK_DEFAULTS, FILTER_DEFAULTS = (0.6, 1.0), (1e-3, 0.1)  # sparsity, similarity, as published


def fista(
    mask: Tensor, previous: Tensor, alpha: float, gradient: Tensor, lr: float, sparsity: float
) -> tuple[Tensor, float]:
    """A step of FISTA on loss + sparsity * ||mask||_1 with mask >= 0: the new mask and alpha (at first 1).

    gradient: of the loss at `mask`, and not at the point ahead of it, which the network never holds. Where it
    points against the last move, that move is not continued (O'Donoghue & Candes 2015).
    """
    following = (1 + math.sqrt(1 + 4 * alpha**2)) / 2
    move = mask - previous
    ahead = mask + (alpha - 1) / following * move.where(move * (gradient + sparsity) <= 0, 0)
    return (ahead - lr * gradient - lr * sparsity).clamp_min(0), following


def discriminator(classes: int, generator: torch.Generator) -> nn.Sequential:
    """Logits (N, classes) to one logit of "these are the teacher's"; without activations, as published."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Linear(a, b) for a, b in ((classes, 128), (128, 256), (256, 128), (128, 1))]
    for layer in layers:
        nn.init.normal_(layer.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def discriminator_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Of the discriminator's logits, (N, 1) each; the last term is its adversarial regulariser."""
    ones = torch.ones_like(teacher)
    binary = F.binary_cross_entropy_with_logits
    return binary(teacher, ones) + binary(student, torch.zeros_like(student)) + binary(student, ones)


@dataclass
class Game:
    """Student, teacher and discriminator. masks: {layer's name: (1,) or (O,)}, times the layer's output.

    every: steps between two steps of the masks, whose gradients add up meanwhile; known from the first batch.
    The masks, what they were before, alpha, the steps counted and the discriminator are the state.
    """

    student: nn.Module
    teacher: nn.Module
    judge: nn.Sequential
    masks: dict[str, Tensor]
    sparsity: float
    similarity: float
    images: int  # in all epochs with the hooks
    every: int = 0
    alpha: float = 1.0
    steps: int = 0
    previous: dict[str, Tensor] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.previous = {name: mask.detach().clone() for name, mask in self.masks.items()}
        self.optimizer = torch.optim.SGD(self.judge.parameters(), LR, MOMENTUM, weight_decay=DECAY)
        for name in self.masks:
            layer = self.student.get_submodule(name)
            self.handles.append(layer.register_forward_hook(self._masked(name)))

    def _masked(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if self.masks[name].device != output.device:  # the training moved the network
                self.masks[name] = self.masks[name].detach().to(output.device).requires_grad_()
                self.previous[name] = self.previous[name].to(output.device)
            mask = self.masks[name].to(output.dtype)
            return output * mask.view(1, -1, *[1] * (output.dim() - 2))

        return hook

    @property
    def lr(self) -> float:
        done = self.steps // self.every if self.every else 0
        return LR * 0.1 ** int(done / (0.3 * MASK_STEPS))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, epoch: int) -> Tensor:
        """The discriminator takes a step; then similarity * mean((teacher - student)^2) and its verdict."""
        self.every = self.every or math.ceil(math.ceil(self.images / len(x)) / MASK_STEPS)
        self.teacher.to(x.device)
        self.judge.to(x.device)
        with torch.no_grad():
            target = forward(self.teacher, x).float()
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.optimizer.zero_grad()
        discriminator_loss(self.judge(target), self.judge(logits.detach())).backward()
        self.optimizer.step()
        verdict = self.judge(logits)
        fooled = F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))
        return self.similarity * (target - logits).square().mean() + fooled

    @torch.no_grad()
    def after_step(self, model: nn.Module, at: Step) -> None:
        """Every so many steps, move the masks by the mean of their gradients since the last time."""
        lr, self.steps = self.lr, self.steps + 1
        if self.steps % self.every:
            return
        following = self.alpha
        for name, mask in self.masks.items():
            gradient = torch.zeros_like(mask) if mask.grad is None else mask.grad / self.every
            new, following = fista(mask, self.previous[name], self.alpha, gradient, lr, self.sparsity)
            self.previous[name] = mask.detach().clone()
            mask.copy_(new)
            mask.grad = None
        self.alpha = following

    def end(self) -> dict[str, Tensor]:
        """The masks, which no longer act."""
        for handle in self.handles:
            handle.remove()
        return {name: mask.detach() for name, mask in self.masks.items()}

    def state_dict(self) -> dict[str, Any]:
        gradients = {name: mask.grad for name, mask in self.masks.items() if mask.grad is not None}
        return {
            "masks": {name: mask.detach().clone() for name, mask in self.masks.items()},
            "gradients": {name: gradient.clone() for name, gradient in gradients.items()},
            "previous": dict(self.previous),
            "counts": [self.every, self.steps, self.alpha],
            "judge": self.judge.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = next(self.student.parameters()).device
        for name, mask in state["masks"].items():
            self.masks[name] = mask.to(device, copy=True).requires_grad_()
            if name in state["gradients"]:
                self.masks[name].grad = state["gradients"][name].to(device, copy=True)
            self.previous[name] = state["previous"][name].to(device)
        self.every, self.steps, self.alpha = state["counts"]
        self.judge.to(device).load_state_dict(state["judge"])
        self.optimizer.load_state_dict(state["optimizer"])


def masked_layers(model: nn.Module, example_input: Tensor) -> tuple[dict[str, Block], dict[str, str]]:
    """What GAL masks: residual blocks, or, where there are not two, {convolution: its own batch norm}.

    ValueError where there is neither.
    """
    blocks = residual_blocks(model)
    if len(blocks) > 1:
        return blocks, {}
    norms = {}
    for name, layer in layers_to_cut(model, example_input).items():
        norm = own_norm(model, layer)
        if norm is not None and norm.affine and layer.norm is not None:
            norms[name] = layer.norm
    if not norms:
        raise ValueError(
            "gal removes residual blocks that torch.fx can trace, or filters with a batch norm of their own, "
            "and finds neither here: try l1"
        )
    return {}, norms


def start_gal(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    share: float = 0.5,
    sparsity: float | None = None,
    similarity: float | None = None,
    masks: str = "ones",
    lr: float = 2e-3,
    seed: int = 0,
) -> Session:
    """Masks on blocks or filters, and a loss without labels. `rate` is not used before the cut."""
    x = default_input(model, example_input)
    if masks not in ("ones", "normal"):
        raise ValueError(f'masks={masks!r}: start them as "ones" or "normal"')
    for name, value in (("sparsity", sparsity), ("similarity", similarity)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: give a weight, 0 or more")
    blocks, norms = masked_layers(model, x)
    sizes = dict.fromkeys(blocks, 1)
    sizes |= {name: len(model.get_submodule(name).get_parameter("weight")) for name in norms.values()}
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    started = {n: (torch.ones_like(m) if masks == "ones" else m).requires_grad_() for n, m in drawn.items()}
    teacher = copied(model).eval().requires_grad_(False)
    with torch.no_grad():
        classes = forward(teacher, x).shape[1]
    usual = BLOCK_DEFAULTS if blocks else FILTER_DEFAULTS
    game = Game(
        model,
        teacher,
        discriminator(classes, generator),
        started,
        sparsity=usual[0] if sparsity is None else sparsity,
        similarity=usual[1] if similarity is None else similarity,
        images=len(data) * Session.hooked_epochs(epochs, share),
    )
    hooks = Hooks(
        loss=game.loss,
        after_step=game.after_step,
        state_dict=game.state_dict,
        load_state_dict=game.load_state_dict,
    )
    notes: dict[str, Any] = {}

    def finish(trained: nn.Module) -> Cut:
        ended = game.end()
        notes["masks"] = sum(mask.numel() for mask in ended.values())
        notes["zero_masks"] = sum(int((mask == 0).sum()) for mask in ended.values())
        if blocks:
            return block_cut(trained, blocks, ended, {n: float(m) for n, m in ended.items()}, x)
        folded = copied(trained)
        for name in norms.values():
            scale(folded.get_submodule(name), ended[name])
        return global_cut(folded, {conv: ended[norm] for conv, norm in norms.items()}, x)

    return Session(hooks, finish, share, changes={"lr": lr, "schedule": "cosine"}, notes=notes)


@register(
    "gal",
    structure="block",
    schedule="in training",
    citation="Lin et al. 2019 (CVPR), arXiv:1903.09291",
    summary="residual blocks (or filters) whose masks become zero while an adversary compares with the start",
    start=start_gal,
)
def gal(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    share: float = 0.5,
    sparsity: float | None = None,
    similarity: float | None = None,
    masks: str = "ones",
    lr: float = 2e-3,
    seed: int = 0,
) -> Cut:
    """Generative adversarial learning: min over weights and masks m of similarity * mean((f_T - f_S)^2)
    + log loss of a discriminator taking f_S for f_T + sparsity * ||m||_1; f_T are the start's logits.

    Residual networks: y = relu(shortcut(x) + m * branch(x)), one m per block; other networks: one m per
    filter, at its batch norm. share: of the epochs, with masks, which FISTA moves a hundred times; then the
    smallest masks go until the target is met, whether they are zero or not, and the rest is fine-tuning
    with labels. sparsity, similarity: by default 0.6 and 1 for blocks, 0.001 and 0.1 for filters, as
    published, where the sparsity counts twice, in the gradient and in the threshold. masks: "ones", the
    network as it is, or "normal", as published, of which half are zero after the first step. lr: at the
    start of the phase, then a cosine; the published 0.01 leads a ResNet-20 away from its teacher within
    twenty steps. seed: of masks and discriminator.

    Without training blocks go by the mean |weight| of their last layer, filters as in "bn-gamma".
    """
    x = default_input(model, example_input)
    blocks, _ = masked_layers(model, x)
    if not blocks:
        return bn_gamma(model, groups=groups, example_input=x, data=data)
    scores = {n: float(model.get_submodule(n).get_parameter("weight").detach().abs().mean()) for n in blocks}
    return block_cut(model, blocks, {}, scores, x)
