"""DHP's hyper-network: convolutions whose weights are generated from a number per channel."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gkp.nets.channels.groups import Channels, channels_of
from gkp.nets.channels.layers import weights_reason
from gkp.nets.channels.surgery import FilterLayer

EMBEDDED = 8  # numbers per kernel
WEIGHT = "weight"


class Latents(nn.Module):
    """One number z per filter of every layer that is pruned, layer by layer; N(0, 1) at the start."""

    def __init__(self, layers: Mapping[str, FilterLayer], seed: int) -> None:
        super().__init__()
        self.names = list(layers)
        self.sizes = [layer.filters for layer in layers.values()]
        self.z = nn.Parameter(torch.randn(sum(self.sizes), generator=torch.Generator().manual_seed(seed)))
        self.register_buffer(
            "owner", torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        )

    owner: Tensor  # (N,): number of the layer

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(N,) -> {layer: (O,)}."""
        return dict(zip(self.names, flat.split(self.sizes), strict=True))


class Generated(nn.Module):
    """A parametrisation of a convolution's weight (O, I, kh, kw) by latents.

    Z = z_in z_out' + B0 (I, O); E[i, o] = Z[i, o] W1[i, o] + B1[i, o], `EMBEDDED` numbers;
    W[o, i] = W2[i, o] E[i, o] + B2[o, i]. B2 is what torch calls the original. W1 ~ U(+-sqrt(3)), W2 ~
    U(+-sqrt(3 / (EMBEDDED I kh kw))), biases 0: with latents of variance 1, W has variance 1 / (I kh kw).

    inputs (I,), outputs (O,): places among the latents, -1 for a channel that stays, whose latent is 1.
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(
        self, shape: torch.Size, inputs: Tensor, outputs: Tensor, latents: Latents, generator: torch.Generator
    ) -> None:
        super().__init__()
        filters, channels = shape[:2]
        area = shape[2:].numel()
        self.register_buffer("inputs", inputs)
        self.register_buffer("outputs", outputs)
        self.held = (latents,)  # in a tuple: the module is one convolution's alone, see `generate`

        def uniform(*size: int, bound: float) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*size, generator=generator) - 1) * bound)

        self.w1 = uniform(channels, filters, EMBEDDED, bound=math.sqrt(3))
        self.w2 = uniform(
            channels * filters, area, EMBEDDED, bound=math.sqrt(3 / (EMBEDDED * channels * area))
        )
        self.b0 = nn.Parameter(torch.zeros(channels, filters))
        self.b1 = nn.Parameter(torch.zeros(channels, filters, EMBEDDED))

    def forward(self, original: Tensor) -> Tensor:
        z = nn.functional.pad(self.held[0].z, (0, 1), value=1.0)  # the last one is that of channels that stay
        products = z[self.inputs][:, None] * z[self.outputs] + self.b0
        embedded = products[..., None] * self.w1 + self.b1
        # No matrix product, which autocast would round to bfloat16.
        kernels = (self.w2 * embedded.reshape(-1, 1, EMBEDDED)).sum(2)
        filters, channels = original.shape[:2]
        return kernels.view(channels, filters, *original.shape[2:]).transpose(0, 1) + original


def generate(
    model: nn.Module, layers: Mapping[str, FilterLayer], example_input: Tensor, seed: int
) -> tuple[Latents, list[str]]:
    """Replace, in place, the weights of all convolutions that write or read a filter of `layers`.

    Returns the latents, a part of the first of these convolutions, and the convolutions' names.
    """
    channels, like = channels_of(model, example_input), next(model.parameters())
    latents, generator = Latents(layers, seed), torch.Generator().manual_seed(seed + 1)
    number = _numbers(channels, latents)
    parametrisations: dict[str, Generated] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or name not in channels.filters:
            continue
        inputs, outputs = number[channels.inputs[name]], number[channels.filters[name]]
        if ((inputs >= 0).any() or (outputs >= 0).any()) and not weights_reason(module):
            parametrisations[name] = Generated(module.weight.shape, inputs, outputs, latents, generator)
    first = next(iter(parametrisations.values()))
    first.latents = latents
    for name, generated in parametrisations.items():
        module = model.get_submodule(name)
        nn.init.zeros_(module.get_parameter(WEIGHT))
        parametrize.register_parametrization(module, WEIGHT, generated.to(like))
    return latents, list(parametrisations)


def make_plain(model: nn.Module, names: list[str]) -> None:
    """Give these convolutions the weights that they generate now, and drop the hyper-network, in place."""
    for name in names:
        module = model.get_submodule(name)
        parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=True)
        module._parameters["bias"] = module._parameters.pop("bias")  # behind the weight again, as it was


def _numbers(channels: Channels, latents: Latents) -> Tensor:
    """By unit: its place among the latents, -1 where it has none."""
    sides = (*channels.filters.values(), *channels.inputs.values())
    number = torch.full((1 + max(int(owner.max()) for owner in sides),), -1)
    for name, places in latents.split(torch.arange(len(latents.z))).items():
        number[channels.filters[name]] = places
    return number
