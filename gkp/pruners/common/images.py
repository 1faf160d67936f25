"""Images through a network: what methods that score with data have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.copying import copied
from gkp.nets.channels.surgery import FilterLayer
from gkp.pruners.common.ranking import own_norm
from gkp.utils.logits import (
    HALF,
    NO_GRADIENT,
    check_classes,
    class_labels,
    logits,
    run,
    told_of_in_place_changes,
    weight_type,
)
from gkp.utils.whole import is_whole


def sample(data: Split, images: int, seed: int) -> Split:
    """`images` random images of `data`, all of them where it has fewer.

    ValueError for less than one, and for data that are no `Split` of uint8 images.
    """
    if not isinstance(data, Split) or data.images.dtype != torch.uint8 or not len(data):
        kind = f"{len(data)} {data.images.dtype} images" if isinstance(data, Split) else type(data).__name__
        raise ValueError(f"the data are {kind}: give a gkp.data.Split, of one uint8 image (C, H, W) or more")
    if not is_whole(images):
        raise ValueError(f"images={images!r}: give the number of images to score with, 1 or more")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.take(order[:images].to(data.labels.device))


def batches(data: Split, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels (b, C, H, W), labels (b,)) on `device`, in order; the last batch may be smaller."""
    if not is_whole(size):
        raise ValueError(f"batch_size={size!r}: give a number of images, 1 or more")
    for start in range(0, len(data), size):
        part = slice(start, start + size)
        yield data.pixels(part).to(device), data.labels[part].to(device)


def scoring_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode to score with; of half precision in float32, where sums do not overflow."""
    scored = copied(model).eval()
    return scored.float() if weight_type(model) in HALF else scored


def batch_logits(model: nn.Module, data: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (b, classes) with a gradient, labels (b,) int64) of every batch, on the model's device.

    ValueError for labels that are no classes of the network, and where no gradient can reach its weights.
    """
    classes = class_labels(data.labels, len(data.images))
    span = int(classes.min()), int(classes.max())
    for pixels, labels in batches(data, batch_size, next(model.parameters()).device):
        output = logits(model, pixels)
        check_classes(*span, output.shape[1])
        if not output.requires_grad:
            raise ValueError(NO_GRADIENT.replace("the pixels", "the weights"))
        yield output, labels.long()


def gradients(loss: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a scalar, zeros where it does not depend on a tensor; ValueError for a network that prevents it."""
    with told_of_in_place_changes():
        return torch.autograd.grad(loss, of, materialize_grads=True)


def visit_feature_maps(
    model: nn.Module,
    layers: Mapping[str, FilterLayer],
    data: Split,
    batch_size: int,
    visit: Callable[[str, Tensor], None],
) -> None:
    """Call visit(layer's name, feature maps (b, O, H, W)) for every batch and layer, in eval mode.

    A feature map is what the layer's batch norm gives, after ReLU; of a layer without a batch norm of
    its own, the plain output. ValueError for images that the network cannot take and for maps that hold NaN.
    """
    model = scoring_copy(model)
    for name, layer in layers.items():
        norm = own_norm(model, layer)
        _report(norm or model.get_submodule(name), name, norm is not None, visit)
    with torch.no_grad():
        for pixels, _ in batches(data, batch_size, next(model.parameters()).device):
            run(model, pixels)


def _report(module: nn.Module, name: str, relu: bool, visit: Callable[[str, Tensor], None]) -> None:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        if not torch.isfinite(output).all():
            raise ValueError(f"the feature maps of {name} hold NaN or infinity: look for them in its weights")
        visit(name, F.relu(output) if relu else output)

    module.register_forward_hook(hook)
