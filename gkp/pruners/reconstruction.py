"""Filter pruning by how well the next layer's output can be rebuilt: ThiNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.copying import copied
from gkp.nets.channels.groups import Channels, channels_of
from gkp.nets.channels.surgery import FilterLayer, convolution, default_input, remove_filters
from gkp.pruners.common.filters import convolutions_to_cut, filters_to_drop
from gkp.pruners.common.gates import places_of
from gkp.pruners.common.images import batches, sample, scoring_copy
from gkp.pruners.common.registry import Cut, register
from gkp.utils.logits import run
from gkp.utils.whole import is_whole

TOLERANCE = 1e-2  # of the largest output: what tf32 products may lose, far below a wrong border


@dataclass(frozen=True)
class Reader:
    """The layer that reads a convolution's filters.

    order: its inputs (I,), those of one filter after those of another, I / filters of each.
    """

    layer: str
    order: Tensor


@register(
    "thinet",
    structure="filter",
    needs="images",
    citation="Luo et al. 2017 (ICCV), arXiv:1707.06342",
    summary="filters without which the next layer's output is rebuilt best; the kept ones are rescaled",
)
def thinet(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 1000,
    locations: int = 10,
    batch_size: int = 100,
    seed: int = 0,
    rescale: bool = True,
) -> Cut:
    """ThiNet: greedy selection on sampled outputs of the next layer, then least-squares channel scales.

    A scalar of the next layer's output, without its bias, is y = sum_c x_c over input channels c. With m
    samples of x (m, C), channels join the removed set T one by one, each time the one with the least
    sum_m (sum_{c in T} x_c)^2. The scales w = argmin sum_m (y - sum_{c kept} w_c x_c)^2 are folded into
    the next layer's weight (rescale=False leaves them out). Both need only G = x^T x, so that images are
    seen once, whatever the rate. Per image, `locations` outputs are drawn at random: filter and position.

    Left out: the original goes through the network layer by layer, fine-tunes 1 to 2 epochs after each one
    and samples the next one from the network pruned so far; here all layers are sampled from the unpruned
    network and there is no fine-tuning in between. Its 10 images per class and 10 locations per image are
    quoted from memory (not verified); 1000 images here, so that samples outnumber 512 channels amply.

    Layers whose channels several layers read (DenseNet) are left unpruned. ValueError if that leaves none.
    """
    example_input = default_input(model, example_input)
    layers, channels = convolutions_to_cut(model, example_input, "thinet"), channels_of(model, example_input)
    candidates = {name: _reader(model, layer, channels) for name, layer in layers.items()}
    readers = {name: reader for name, reader in candidates.items() if reader is not None}
    if not readers:
        raise ValueError(
            "thinet needs a 2d convolution that exactly one other layer reads, a 2d or linear one that reads "
            f"nothing else, and {', '.join(layers)} {'is' if len(layers) == 1 else 'are'} not read so: use "
            "another method, such as l1"
        )
    grams = sampled_grams(model, readers, sample(data, images, seed), locations, batch_size, seed)
    order = {name: removal_order(gram) for name, gram in grams.items()}

    def cut(rate: float) -> nn.Module:
        drop = {name: filters_to_drop(scores, rate) for name, scores in order.items()}
        if not rescale:
            return remove_filters(model, drop, example_input)
        rescaled = copied(model)
        for name, reader in readers.items():
            scales = least_squares_scales(grams[name], drop[name])
            _scale_inputs(_weighted(rescaled, reader.layer), scales, reader.order)
        return remove_filters(rescaled, drop, example_input)

    return cut


def removal_order(gram: Tensor) -> Tensor:
    """Greedy order of removal as scores: G (C, C) -> (C,), 0 for the channel that goes first.

    With T removed, adding c makes the error e_T + 2 (G 1_T)_c + G_cc. Ties: the earlier channel goes.
    """
    position = torch.empty(len(gram), dtype=torch.long)
    cost = gram.diagonal().clone()
    for turn in range(len(gram)):
        channel = int(cost.argmin())
        position[channel] = turn
        cost += 2 * gram[channel]
        cost[channel] = torch.inf
    return position


def least_squares_scales(gram: Tensor, dropped: Tensor) -> Tensor:
    """(C,): argmin_w sum (y - sum_{kept} w_c x_c)^2 with y = sum_c x_c; 1 for dropped channels.

    From the normal equations G_kk w = G_k 1; the solution of least norm where they are singular.
    """
    scales = torch.ones(len(gram), dtype=gram.dtype)
    if len(dropped):
        kept = torch.ones(len(gram), dtype=torch.bool)
        kept[dropped] = False
        right = gram[kept].sum(1, keepdim=True)
        scales[kept] = torch.linalg.lstsq(gram[kept][:, kept], right, driver="gelsd").solution[:, 0]
    return scales


def sampled_grams(
    model: nn.Module, readers: dict[str, Reader], data: Split, locations: int, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """{layer: G = x^T x (C, C), float64 on the CPU} of samples of what each layer's reader sums up.

    ValueError for images that the network cannot take, and for a reader whose output is no such sum.
    """
    if not is_whole(locations):
        raise ValueError(f"locations={locations!r}: give the number of sampled outputs per image, 1 or more")
    channels = {name: convolution(model, name).out_channels for name in readers}
    grams = {name: torch.zeros(size, size, dtype=torch.float64) for name, size in channels.items()}
    generator = torch.Generator().manual_seed(seed)
    model = scoring_copy(model)

    def watch(name: str, order: Tensor, reader: nn.Conv2d | nn.Linear) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, scalars = drawn(reader, inputs[0], output, order, channels[name], locations, generator)
            if not (x.sum(1) - scalars).abs().max() <= TOLERANCE * scalars.abs().max():
                raise ValueError(
                    f"thinet cannot rebuild the output of {readers[name].layer}, which computes "
                    "something else than its weight says (a forward pass or a hook of its own, or NaN): "
                    "use another method"
                )
            x = x.double()
            grams[name] += (x.mT @ x).cpu()

        reader.register_forward_hook(hook)

    for name, reader in readers.items():
        watch(name, reader.order, _weighted(model, reader.layer))
    with torch.no_grad():
        for pixels, _ in batches(data, batch_size, next(model.parameters()).device):
            run(model, pixels)
    return grams


def drawn(
    reader: nn.Conv2d | nn.Linear,
    x: Tensor,
    output: Tensor,
    order: Tensor,
    channels: int,
    locations: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """What each channel adds to randomly drawn scalars of the reader's output, (B * locations, channels), and
    these scalars less the bias, (B * locations,), which are the sums of the rows.

    x: its input, (B, I, H, W), or (B, I) for a linear layer after flattening, or (B, ..., I) for one at every
    position. order: (I,), see `Reader`.
    """
    image = torch.arange(len(x)).repeat_interleave(locations)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (len(image),), generator=generator)

    if isinstance(reader, nn.Linear):
        unit = draw(output.shape[-1])
        if x.ndim > 2:
            position = draw(x.shape[1:-1].numel())
            x, output = (t.flatten(1, -2)[image, position] for t in (x, output))
        else:
            x, output = x[image], output[image]
        terms = x * reader.weight[unit]
        scalars = output[torch.arange(len(image)), unit]
    else:
        unit, row, column = (draw(size) for size in output.shape[1:])
        terms = patches(reader, x, image, row, column).mul(reader.weight[unit]).sum((2, 3))
        scalars = output[image, unit, row, column]
    if reader.bias is not None:
        scalars = scalars - reader.bias[unit]
    return terms[:, order.to(terms.device)].view(len(image), channels, -1).sum(2), scalars


def patches(reader: nn.Conv2d, x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(samples, C, kh, kw): what the reader sees of x (B, C, H, W) at its output's rows and columns."""
    spans = [d * (k - 1) for k, d in zip(reader.kernel_size, reader.dilation, strict=True)]
    if isinstance(reader.padding, str):  # an odd pixel of "same" goes behind
        pads = [(s // 2, s - s // 2) if reader.padding == "same" else (0, 0) for s in spans]
    else:
        pads = [(p, p) for p in reader.padding]
    mode = "constant" if reader.padding_mode == "zeros" else reader.padding_mode
    padded = nn.functional.pad(x, (*pads[1], *pads[0]), mode=mode)
    sides = zip((row, column), reader.kernel_size, reader.stride, reader.dilation, strict=True)
    rows, columns = (place[:, None] * s + torch.arange(k) * d for place, k, s, d in sides)
    windows = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (samples, kh, kw, C)
    return windows.permute(0, 3, 1, 2)


def _reader(model: nn.Module, layer: FilterLayer, channels: Channels) -> Reader | None:
    """The one layer that reads the filters' feature maps and nothing else; None where there is none such."""
    if len(layer.consumers) != 1:
        return None
    name, reader = layer.consumers[0], model.get_submodule(layer.consumers[0])
    plain = isinstance(reader, nn.Conv2d) and reader.groups == 1 and reader.in_channels == layer.filters
    if not (plain or isinstance(reader, nn.Linear)):
        return None
    place = places_of(channels.filters[layer.name].tolist(), channels.inputs[name])
    counts = place.bincount(minlength=layer.filters)
    alike = len(counts) == layer.filters and bool((counts == counts[0]).all())
    return Reader(name, place.argsort(stable=True)) if alike else None


def _weighted(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))  # _reader takes no others
    return layer


def _scale_inputs(reader: nn.Conv2d | nn.Linear, scales: Tensor, order: Tensor) -> None:
    """Multiply the weights of what is read of each filter by its scale; scales (C,), order as in `Reader`."""
    by_input = torch.empty(len(order), dtype=scales.dtype)
    by_input[order] = scales.repeat_interleave(len(order) // len(scales))
    with torch.no_grad():
        reader.weight.mul_(by_input.to(reader.weight).view(1, -1, *[1] * (reader.weight.dim() - 2)))
