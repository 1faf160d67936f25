"""Why some pruned networks are more robust than others: what can be measured of a network in seconds.

A bound of how far the logits can move, how steep the loss is, which frequencies its gradient has, and how
large the kernels are that stayed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp import data
from gkp.attacks.frequency import radius
from gkp.nets.checkpoint import load_file
from gkp.nets.deploy import folded
from gkp.nets.models import BasicBlock, CifarResNet
from gkp.study.runs import suites
from gkp.study.runs.provenance import CODE
from gkp.study.runs.store import Store

SUITE, FINALISTS = "cifar10-resnet20-profiles", "cifar10-resnet20-profiles-autoattack"
IMAGES, BATCH = 256, 64  # the first of the test set
HIGH = 0.5  # of the Nyquist frequency
STEPS, CONVERGED = 200, 1e-5  # of the power iteration; relative


def explanations() -> dict[str, Any]:
    """What `of_network` finds for every trained network of the profiles' suite that has its checkpoint.

    {"suite", "images", "networks": [{"label", "seed", "hash", ...}, ...]}. FileNotFoundError where one of
    those that AutoAttack is for is missing.
    """
    store = Store(CODE)
    first = data.load("cifar10", "test").take(IMAGES)
    needed = {run.hash for run in suites.get(FINALISTS).runs}
    networks = []
    for run in suites.get(SUITE).runs:
        record = store.find(run)
        file = record.kept["last"].file if record else None
        if file is not None:
            about = {"label": run.label, "seed": run.seed, "hash": run.hash}
            model = load_file(store.root / file).eval()
            networks.append(about | of_network(model, first.pixels(), first.labels))
        elif run.hash in needed:
            raise FileNotFoundError(
                f"no checkpoint of {run.label}, seed {run.seed}: run the suite {SUITE} first"
            )
    return {"suite": SUITE, "images": len(first), "networks": networks}


def of_network(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """x (N, 3, H, W) in [0, 1], labels y (N,). Batch norm is folded into the convolutions before.

    bound: log10 of `lipschitz_bound`; norms: {layer: spectral norm}; kernel, spread: mean norm of the
    kernels that are there, and the mean over layers of their deviation in units of the layer's mean;
    steepness: mean over images of the L1 norm of the loss's gradient, the rise of the loss per unit of eps
    (in L-infinity); high: share of the gradients' energy at `HIGH` of the Nyquist frequency or above.
    """
    plain = folded(model)
    norms = spectral_norms(plain, x[:1])
    sizes = [_kernel_norms(m.weight) for m in plain.modules() if isinstance(m, nn.Conv2d)]
    gradient = input_gradient(plain, x, y)
    measurements: dict[str, Any] = {
        "kernel": torch.cat(sizes).mean(),
        "spread": torch.stack([size.std() / size.mean() for size in sizes]).mean(),
        "steepness": gradient.abs().sum((1, 2, 3)).mean(),
        "high": high_share(gradient),
    }
    if isinstance(plain, CifarResNet):
        measurements["bound"] = math.log10(lipschitz_bound(plain, norms, x.shape[-2:]))
    rounded = {name: round(float(value), 5) for name, value in measurements.items()}
    return rounded | {"norms": {name: round(norm, 4) for name, norm in norms.items()}}


def _kernel_norms(weight: Tensor) -> Tensor:
    """L2 norms of the kernels of a weight (O, I, kh, kw) that are not zero: (K,)."""
    norms = weight.detach().double().flatten(2).norm(dim=2).flatten()
    return norms[norms > 0]


def spectral_norms(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The largest gain in L2 norm of every convolution and linear layer, without its bias, on maps like x's.

    By power iteration on the layer itself, with its stride and zero padding; x (1, C, H, W).
    """
    inputs: dict[str, Tensor] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}

    def watch(name: str) -> Any:
        return layers[name].register_forward_pre_hook(lambda _, args: inputs.update({name: args[0]}))

    handles = [watch(name) for name in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return {name: spectral_norm(layers[name], inputs[name].shape) for name in inputs}


def spectral_norm(layer: nn.Conv2d | nn.Linear, shape: torch.Size) -> float:
    """The largest singular value of `layer` without its bias, as a map of inputs of this shape."""
    generator = torch.Generator().manual_seed(0)
    weight = layer.weight.detach().double()
    v = torch.randn(shape, generator=generator, dtype=torch.float64)
    gain = 0.0
    for _ in range(STEPS):
        v = (v / v.norm()).requires_grad_()
        if isinstance(layer, nn.Linear):
            out = F.linear(v, weight)
        else:
            out = F.conv2d(v, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        before, gain = gain, float(out.detach().norm())
        if gain == 0 or abs(gain - before) <= CONVERGED * gain:
            break
        (v,) = torch.autograd.grad(out, v, out.detach())  # the transposed map of the output
    return gain


def lipschitz_bound(model: CifarResNet, norms: dict[str, float], size: tuple[int, ...]) -> float:
    """Upper bound of |f(x) - f(x')| / |x - x'|, both L2, of a network without batch norms; x (3, *size).

    Normalisation, stem, a factor 1 + a b for each block (ReLU and shortcut gain 1 at most), the mean over
    the positions of the last feature maps, and the linear layer.
    """
    stds = model.normalize.std
    bound = norms["conv1"] * norms["linear"] / float(stds.min())
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock):
            bound *= 1 + norms[f"{name}.conv1"] * norms[f"{name}.conv2"]
    return bound / math.sqrt(math.prod(-(-side // 4) for side in size))


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy by its pixels: x (N, C, H, W), y (N,) -> (N, C, H, W)."""
    gradients = []
    for some, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        pixels = some.clone().requires_grad_()
        loss = F.cross_entropy(model(pixels), labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, pixels)[0])
    return torch.cat(gradients)


def high_share(images: Tensor) -> Tensor:
    """Mean over images (N, C, H, W) of the share of their energy at `HIGH` of the Nyquist frequency or above.

    Images that are zero have no share; NaN where all are.
    """
    power = torch.fft.fft2(images.double()).abs().square().sum(1)
    high = (power * (radius(*images.shape[-2:]) >= HIGH)).sum((1, 2))
    whole = power.sum((1, 2))
    return (high / whole)[whole > 0].mean()
