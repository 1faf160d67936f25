"""Filter pruning while the network trains: soft filter pruning, FPGM as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.surgery import FilterLayer, convolution, default_input
from gkp.pruners.common.filters import convolutions_to_cut, filters_to_drop, uniform_cut
from gkp.pruners.common.ranking import own_norm
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.geometry import distance_to_others, fpgm
from gkp.pruners.norms import l2
from gkp.train.hooks import Hooks, Step

MASKED_SHARE = 0.8
Criterion = Callable[[Tensor], Tensor]  # weight (O, I, kh, kw) -> scores (O,), the lowest go


@dataclass
class Masks:
    """Filters that are held at zero, or were set to zero, and how they are chosen.

    dropped: {convolution's name: indices}, the only state. Epoch 0 is the start.
    """

    layers: Mapping[str, FilterLayer]
    criterion: Criterion
    rate: float
    last_epoch: int
    dropped: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def select(self, model: nn.Module, epoch: int) -> None:
        """Choose anew and set the chosen filters to zero; after the last epoch their batch norms, too.

        A batch norm turns a filter of zeros into its shift, which ReLU lets through: only without it
        is the masked network the one that is left when the filters are gone.
        """
        for name, layer in self.layers.items():
            conv, norm = convolution(model, name), own_norm(model, layer)
            self.dropped[name] = filters_to_drop(self.criterion(conv.weight), self.rate)
            masked: list[nn.Conv2d | nn.BatchNorm2d] = [conv]
            if norm is not None and epoch >= self.last_epoch:
                masked.append(norm)
                if norm.running_mean is not None and not norm.affine:  # no shift: zeros less the mean
                    norm.running_mean[self.dropped[name]] = 0
            for parameter in (p for module in masked for p in (module.weight, module.bias)):
                if parameter is not None:
                    parameter[self.dropped[name]] = 0

    def freeze(self, model: nn.Module, at: Step) -> None:
        """Zero the gradients of the masked filters."""
        for name, indices in self.dropped.items():
            gradient = convolution(model, name).weight.grad
            if gradient is None:  # a frozen layer: its masked filters stay at zero anyway
                continue
            if indices.device != gradient.device:  # after loading a state; a GPU would wait at every step
                self.dropped[name] = indices = indices.to(gradient.device)
            gradient.index_fill_(0, indices, 0)

    def cut(self, model: nn.Module, example_input: Tensor | None) -> Cut:
        """By the criterion, the masked filters before all others."""
        scores = {}
        for name in self.layers:
            scores[name] = self.criterion(convolution(model, name).weight.detach()).clone()
            if name in self.dropped:
                scores[name][self.dropped[name]] = -torch.inf
        return uniform_cut(model, scores, default_input(model, example_input))

    def state_dict(self) -> dict:
        return {"dropped": dict(self.dropped)}

    def load_state_dict(self, state: dict) -> None:
        self.dropped = dict(state["dropped"])


def _masking_session(
    model: nn.Module,
    method: str,
    criterion: Criterion,
    *,
    rate: float,
    epochs: int,
    example_input: Tensor | None,
    share: float,
    frozen: bool,
) -> Session:
    """Masks chosen now and anew after every epoch; frozen: their gradients are zeroed in between."""
    layers = convolutions_to_cut(model, default_input(model, example_input), method)
    grouped = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    shared = [layer.norm for layer in layers.values() if layer.norm and own_norm(model, layer) is None]
    if grouped or shared:
        raise ValueError(
            f"{method} sets filters to zero, and the batch norm at or behind {(grouped + shared)[0]}, not "
            "the filters' own, would turn the zeros into other values: use a one-shot method for this network"
        )
    masks = Masks(layers, criterion, rate, Session.hooked_epochs(epochs, share))
    masks.select(model, 0)
    hooks = Hooks(
        before_step=masks.freeze if frozen else None,
        after_epoch=masks.select,
        state_dict=masks.state_dict,
        load_state_dict=masks.load_state_dict,
    )
    return Session(hooks, lambda trained: masks.cut(trained, example_input), share)


def _l2_norm(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)


def start_sfp(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    share: float = MASKED_SHARE,
) -> Session:
    """Zero the filters of smallest L2 norm, now and after every epoch; in between they may regrow."""
    return _masking_session(
        model,
        "sfp",
        _l2_norm,
        rate=rate,
        epochs=epochs,
        example_input=example_input,
        share=share,
        frozen=False,
    )


@register(
    "sfp",
    structure="filter",
    schedule="in training",
    citation="He et al. 2018 (IJCAI), arXiv:1808.06866",
    summary="filters of smallest L2 norm set to zero after every epoch, free to grow again; cut at the end",
    start=start_sfp,
)
def sfp(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    share: float = MASKED_SHARE,
) -> Cut:
    """Soft filter pruning: W_i = 0 for the round(rate * N) filters of least ||W_i||_2.

    At the start and after each epoch; in between every filter trains, masked or not. Only filters that
    can be removed on their own are masked; the original also masks those tied by residual sums, and
    keeps the batch norms as they are. Here the last masking zeroes the scale and shift of masked filters
    as well, without which cutting them would change the network.

    share: of the epochs that are trained so; the rest fine-tunes the cut network. The original does not
    fine-tune (share=1): late in its 200 to 300 epochs the learning rate is so low that masked filters
    hardly grow before the next masking. Where they still do, the last masking costs most of the accuracy,
    because a batch norm brings the smallest regrown filter back to full size. From scratch the original
    starts at learning rate 0.1, from a trained network at a tenth of it. Without training this is "l2".
    """
    return l2(model, groups=groups, example_input=example_input, data=data)


def start_fpgm_training(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    share: float = MASKED_SHARE,
) -> Session:
    """Zero the filters nearest to the geometric median, now and after every epoch, and their gradients."""
    return _masking_session(
        model,
        "fpgm-training",
        distance_to_others,
        rate=rate,
        epochs=epochs,
        example_input=example_input,
        share=share,
        frozen=True,
    )


@register(
    "fpgm-training",
    structure="filter",
    schedule="in training",
    citation="He et al. 2019 (CVPR), arXiv:1811.00250",
    summary="filters nearest to the geometric median, chosen after every epoch and held at zero till the cut",
    start=start_fpgm_training,
)
def fpgm_training(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    share: float = MASKED_SHARE,
) -> Cut:
    """FPGM as published: W_i = 0 for the round(rate * N) filters of least sum_j ||W_i - W_j||_2.

    At the start and after each epoch; in between the gradients of the masked filters are zeroed. What
    momentum a filter had when it was chosen still moves it, as in the original. Its norm criterion is
    off (norm rate 1), as in its FPGM-only results; 200 epochs at learning rate 0.1 from scratch or 0.01.
    share, which filters, and the last masking: see "sfp". Without training this is "fpgm".
    """
    return fpgm(model, groups=groups, example_input=example_input, data=data)
