"""NPPM: gates learned on the frozen network, with the help of a network that predicts their accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.filters import layers_to_cut
from gkp.pruners.common.gates import Costs, Gates
from gkp.pruners.common.images import batch_logits, gradients, sample, scoring_copy
from gkp.pruners.common.ranking import MINIMUM, global_cut
from gkp.pruners.common.registry import Cut, register
from gkp.train.augment import crop_and_flip, draw_epoch, stream_seed
from gkp.utils.whole import is_whole

OFFSET, TEMPERATURE = 3.0, 0.4  # of the gates: sigmoid((theta + OFFSET + Gumbel noise) / TEMPERATURE)
ELEMENTWISE = 3  # multiply-adds that a number written by a layer costs behind it, in batch norm and ReLU
ENTRIES = 64  # that the predictor learns from at a time; with more than these it takes part
ROUND = 20  # iterations, an epoch of the original: whether the predictor takes part is asked once in each


@register(
    "nppm",
    structure="filter",
    needs="images and labels",
    citation="Gao et al. 2021 (CVPR), Network Pruning via Performance Maximization",
    summary="gates learned against loss, multiply-adds and a predicted accuracy, one ranking for all layers",
)
def nppm(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 5000,
    iterations: int = 500,
    batch_size: int = 32,
    keep: float = 0.5,
    weight: float = 2.0,
    noise: float = 15.0,
    memory: int = 500,
    seed: int = 0,
    minimum: float = MINIMUM,
) -> Cut:
    """NPPM: logits theta of one gate for every filter, learned with the weights frozen, see `search`.

    The original takes 10% of the training images and 4,000 iterations of 256 (here `images`, `iterations`,
    `batch_size`; its keep, weight, noise and memory are the defaults). It then draws gates until a network
    tests well, at whatever cost, and prunes by yet another draw. Here the filters are ranked by theta, by
    which a gate is on with probability 1 - exp(-exp(theta + 3)), and cut at the multiply-adds; a layer keeps
    a share `minimum`, which is ours. Set keep, the share of the multiply-adds that the search aims at, near
    to the target. A memory's entry here is gates and the accuracy under these; in the original the accuracy
    is of other gates.
    """
    example_input = default_input(model, example_input)
    _check(iterations=iterations, memory=memory)
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep!r}: the share of the multiply-adds to search for, between 0 and 1")
    layers = layers_to_cut(model, example_input)
    channels = channels_of(model, example_input)
    sizes = [layer.filters for layer in layers.values()]
    units = [unit for name in layers for unit in channels.filters[name].tolist()]
    scored = scoring_copy(model).requires_grad_(False)
    gates, costs = Gates(scored, channels, units), Costs(model, channels, units, example_input)
    stream = _batches(sample(data, images, seed), batch_size, seed)
    theta = search(scored, gates, costs, sizes, stream, iterations, keep, weight, noise, memory, seed)
    scores = dict(zip(layers, theta.split(sizes), strict=True))
    return global_cut(model, scores, example_input, minimum)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if not is_whole(value):
            raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")


def _batches(data: Split, size: int, seed: int) -> Iterator[Split]:
    """Batches of `data`, cropped and flipped, over and over in new orders."""
    _check(batch_size=size)
    turn = 0
    while True:
        generator = torch.Generator().manual_seed(stream_seed("nppm", seed, turn))
        draws = draw_epoch(len(data), "crop+flip", 4, generator).to(data.images.device)
        for start in range(0, len(data), size):
            part = slice(start, start + size)
            batch = data.take(draws.order[part])
            yield replace(
                batch,
                images=crop_and_flip(batch.images, draws.top[part], draws.left[part], draws.flip[part], 4),
            )
        turn += 1


def search(
    model: nn.Module,
    gates: Gates,
    costs: Costs,
    sizes: Sequence[int],
    batches: Iterator[Split],
    iterations: int,
    keep: float,
    weight: float,
    noise: float,
    memory: int,
    seed: int,
) -> Tensor:
    """Logits theta (units,) of the gates after `iterations` steps of AdamW, on the CPU.

    Each iteration draws soft gates v for the network and hard ones h for the cost, and descends on

        CE(net, v) + 2 weight ln(max(R(h), keep) / keep) - ln P(clamp(v + noise N(0, 1), 0, 1)),

    R the multiply-adds of the gated layers, P the predicted accuracy, of whose gradient only the part
    orthogonal to that of CE in each layer counts (`without_part`).
    """
    generator = torch.Generator().manual_seed(seed)
    theta = nn.Parameter(torch.randn(sum(sizes), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = Predictor(sizes)
    optimizer = torch.optim.AdamW([theta], lr=5e-2, weight_decay=1e-2)
    learner = torch.optim.AdamW(predictor.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.8 * iterations)])
    seen, takes_part = Memory(memory, len(theta)), False
    for iteration in range(iterations):
        if iteration % ROUND == 0:
            takes_part = len(seen) > ENTRIES
        v, v_slope = soft_gates(theta.detach(), generator)
        gates.values = v.to(gates.values.device, copy=True).requires_grad_(True)
        ((output, labels),) = batch_logits(model, batch := next(batches), len(batch))
        loss = F.cross_entropy(output, labels)
        (by_gate,) = gradients(loss, [gates.values])
        gradient = from_loss = by_gate.cpu() * v_slope
        gradient = gradient + cost_gradient(theta.detach(), costs, keep, weight, generator)
        if takes_part:
            noisy = v.clone().requires_grad_(True)
            inputs = (noisy + noise * torch.randn(len(v), generator=generator)).clamp(0, 1)
            (by_noisy,) = torch.autograd.grad(-predictor(inputs[None]).log().sum(), noisy)
            gradient = gradient + without_part(by_noisy * v_slope, from_loss, sizes)
            architectures, accuracies = seen.draw(ENTRIES, generator)
            learner.zero_grad()
            F.l1_loss(predictor(architectures), accuracies).backward()
            learner.step()
        theta.grad = gradient
        optimizer.step()
        schedule.step()
        seen.add(v, float(output.argmax(1).eq(labels).float().mean()))
    return theta.detach()


def soft_gates(theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gates drawn for theta (units,), in (0, 1), and their derivatives by theta; on where they are >= 0.5."""
    uniform = torch.rand(theta.shape, generator=generator).clamp_min(1e-20)
    gumbel = -(-uniform.log() + 1e-20).log()
    gates = ((theta + OFFSET + gumbel) / TEMPERATURE).sigmoid()
    return gates, gates * (1 - gates) / TEMPERATURE


def cost_ratio(gates: Tensor, costs: Costs) -> Tensor:
    """Multiply-adds under gates (units,), those of batch norm and ReLU included, over those without gates."""
    ones = torch.ones_like(gates)
    whole = costs.macs(ones) + ELEMENTWISE * costs.elements(ones)
    return (costs.macs(gates) + ELEMENTWISE * costs.elements(gates)) / whole


def cost_gradient(
    theta: Tensor, costs: Costs, keep: float, weight: float, generator: torch.Generator
) -> Tensor:
    """Gradient by theta (units,) of 2 weight ln(max(R, keep) / keep) at hard gates, straight through."""
    soft, slope = soft_gates(theta, generator)
    hard = (soft >= 0.5).to(soft).requires_grad_(True)
    penalty = 2 * weight * (cost_ratio(hard, costs).clamp_min(keep) / keep).log()
    return torch.autograd.grad(penalty, hard)[0] * slope


def without_part(gradient: Tensor, along: Tensor, sizes: Sequence[int]) -> Tensor:
    """gradient (units,) without what lies along `along` (units,), layer by layer."""
    parts = []
    for part, direction in zip(gradient.split(list(sizes)), along.split(list(sizes)), strict=True):
        scale = (part @ direction) / (direction @ direction).clamp_min(torch.finfo(part.dtype).tiny)
        parts.append(part - scale * direction)
    return torch.cat(parts)


class Predictor(nn.Module):
    """Accuracy (n,), in (0, 1), of gates (n, units): a recurrent network over the layers."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Linear(size, 128, bias=False)) for size in sizes
        )
        self.norm = nn.LayerNorm(128)
        self.recurrent = nn.GRU(128, 64, bidirectional=True)
        self.last = nn.Linear(128, 1, bias=False)

    def forward(self, gates: Tensor) -> Tensor:
        parts = zip(self.layers, gates.split(self.sizes, 1), strict=True)
        sequence = torch.stack([F.relu(self.norm(layer(part))) for layer, part in parts])
        states = self.recurrent(sequence)[1]  # (2, n, 64): the last of each direction
        return self.last(states.transpose(0, 1).flatten(1)).sigmoid()[:, 0]


class Memory:
    """Up to `size` pairs of gates (units,) and accuracy, each the mean of two that were added in a row.

    When it is full, the pair of nearest accuracy becomes its mean with the new one.
    """

    AVERAGED, BINS = 2, 10

    def __init__(self, size: int, units: int) -> None:
        self.gates, self.accuracies = torch.zeros(size, units), torch.zeros(size)
        self.count = 0
        self._waiting: list[tuple[Tensor, float]] = []

    def __len__(self) -> int:
        return self.count

    def add(self, gates: Tensor, accuracy: float) -> None:
        self._waiting.append((gates, accuracy))
        if len(self._waiting) < self.AVERAGED:
            return
        mean = torch.stack([g for g, _ in self._waiting]).mean(0)
        level = sum(a for _, a in self._waiting) / self.AVERAGED
        self._waiting = []
        if self.count < len(self.accuracies):
            self.gates[self.count], self.accuracies[self.count] = mean, level
            self.count += 1
        else:
            nearest = (self.accuracies - level).abs().argmin()
            self.gates[nearest] = (self.gates[nearest] + mean) / 2
            self.accuracies[nearest] = (self.accuracies[nearest] + level) / 2

    def weights(self) -> Tensor:
        """How likely each pair is drawn, up to a factor: 1 by the number of pairs in its bin of accuracy."""
        known = self.accuracies[: self.count]
        width = (known.max() - known.min()).clamp_min(1e-12) / self.BINS
        number = ((known - known.min()) / width).long().clamp_max(self.BINS - 1)
        return 1 / number.bincount(minlength=self.BINS)[number]

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`number` pairs, gates (number, units) and accuracies (number,), with replacement."""
        pairs = self.weights().multinomial(number, replacement=True, generator=generator)
        return self.gates[pairs], self.accuracies[pairs]
