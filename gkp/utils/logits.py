"""Logits of anybody's network, or a sentence that says what came instead; labels that fit them.

Everything that evaluates, attacks, trains or scores with images calls a network through here. Pixels are
float32 and are cast to the type of the network's weights; logits of half precision come back as float32, so
that losses are taken in the same type for all networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
NO_GRADIENT = (
    "no gradient of the logits reaches the pixels: the forward pass runs under torch.no_grad() or "
    "inference_mode(), detaches, or takes an argmax or integers; take that out of it, or attack with "
    'what needs no gradient, gkp.attacks.autoattack.autoattack(version="custom", attacks=("square",))'
)


class NotFinite(ValueError):
    """Something of one image is NaN or infinite. `image`: its position among the images that were given."""

    def __init__(self, what: str, image: int) -> None:
        super().__init__(
            f"{what} of image {image} (counted from 0) are NaN or infinite: look for such values in the "
            "weights, and for divisions by zero, overflows and half precision in the forward pass"
        )
        self.what, self.image = what, image


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """What `forward` gives, known to be finite; NotFinite otherwise. Waits for a GPU."""
    outputs = forward(model, x)
    refuse_not_finite(peaks(outputs))
    return outputs


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes), float32 or float64, of pixels x (N, C, H, W), which stay as they are.

    They may be NaN: asking would make a GPU wait, so that who calls this looks at `peaks` later.
    ValueError for a network that cannot take x or gives anything but one row of floats per image.
    """
    return as_logits(run(model, x), len(x))


def run(model: nn.Module, x: Tensor) -> Any:
    """model(x) on a copy of x in the type of the network's weights; ValueError where it cannot take x."""
    try:
        # A copy, because a network that works in place would change the images of its caller.
        return model(x.to(weight_type(model) or x.dtype, copy=True))
    except (RuntimeError, AssertionError) as error:
        if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
            raise
        raise ValueError(
            f"the network fails on images of shape {tuple(x.shape)}: give images of the channels and the "
            f"size that it was made for, and weights of one type ({type(error).__name__}: {error})"
        ) from error


def usable(x: Tensor) -> Tensor:
    """x, or outside of inference mode a copy of a tensor made inside it, which alone can have a gradient."""
    return x.clone() if x.is_inference() else x


def weight_type(model: nn.Module) -> torch.dtype | None:
    """The type of the first floating-point parameter; None for a network without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def as_logits(output: Any, images: int) -> Tensor:
    """The output of a network if it can be logits of `images` images, at least float32; else ValueError."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network returned {_described(output)} where gkp needs a tensor of logits (N, classes): "
            f"wrap it in a module that returns the logits alone, {_remedy(output)}"
        )
    if output.ndim != 2 or len(output) != images or output.shape[1] < 2:
        raise ValueError(
            f"the network returned shape {tuple(output.shape)} for {images} images where gkp needs logits "
            f"({images}, classes), two classes or more: wrap it in a module that pools and flattens them "
            "(a single logit z of two classes: torch.cat([-z, z], 1))"
        )
    if not output.is_floating_point():
        raise ValueError(
            f"the network returned {output.dtype} where gkp needs logits of a floating-point type: "
            "return the scores themselves, not the classes that they choose or their quantised values"
        )
    return output if output.dtype in (torch.float32, torch.float64) else output.float()


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"an object of type {type(output).__name__}"


def _remedy(output: Any) -> str:
    if isinstance(output, Mapping):
        name = next((key for key in output if key in ("logits", "out")), next(iter(output), "logits"))
        return f'e.g. output["{name}"]'
    return "e.g. output[0]" if isinstance(output, (tuple, list)) else "e.g. output.logits"


@contextmanager
def told_of_in_place_changes() -> Iterator[None]:
    """Inside, a gradient that the network's own changes in place prevent is a ValueError that says so."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ValueError(
            "the network has no gradient, because its forward pass changes numbers in place that the "
            f"gradient needs: write x = x * 2 for x.mul_(2), x = x + y for x += y ({error})"
        ) from error


# ---- finite numbers ------------------------------------------------------------------------------


def peaks(values: Tensor) -> Tensor:
    """(N, ...) -> (N,): the largest magnitude; NaN where there is a NaN."""
    # vector_norm(..., inf) gives the same and takes nine times as long on a CPU.
    return values.detach().flatten(1).abs().amax(1)


def refuse_not_finite(largest: Tensor, what: str = "the logits") -> None:
    """NotFinite names the first image whose entry of `largest` (N,), from `peaks`, is NaN or infinite."""
    finite = torch.isfinite(largest)
    if not finite.all():
        raise NotFinite(what, int(finite.logical_not().nonzero()[0]))


@contextmanager
def counted_from(first: int) -> Iterator[None]:
    """Inside, images are numbered within a batch; outside, in the list whose image `first` begins it."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(error.what, first + error.image) from error


# ---- labels --------------------------------------------------------------------------------------


def class_labels(y: Tensor, images: int) -> Tensor:
    """y as int64 (N,). ValueError unless it holds one number of an integer type for each of `images`."""
    if not isinstance(y, Tensor):
        raise ValueError(f"the labels are a {type(y).__name__}: give a tensor, torch.as_tensor(labels)")
    if y.ndim == 2 and y.shape[1] > 1:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, which looks like one-hot or soft labels: give one integer label "
            f"per image, ({images},), for instance y.argmax(1)"
        )
    if y.shape != (images,) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(
            f"y has shape {tuple(y.shape)} and type {y.dtype}: give as many labels as images, one integer "
            f"label per image, ({images},), for instance y.flatten().long()"
        )
    return y.to(torch.int64)


def check_classes(lowest: int, highest: int, classes: int) -> None:
    """ValueError unless the labels lie in 0 ... classes - 1."""
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"label {wrong} but the model has {classes} outputs: give labels from 0 to {classes - 1}, "
            "or a model with more classes"
        )


def check_network(model: nn.Module) -> None:
    """TypeError for what is no nn.Module, ValueError where its parameters have no values."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}: give an nn.Module, whose forward it is")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the network's parameters are on the meta device and have no values: load weights into it, for "
            "instance with load_state_dict(weights, assign=True)"
        )


def device_of(model: nn.Module, x: Tensor) -> torch.device:
    """Where the model's parameters are; where x is for a model without any."""
    return next((parameter.device for parameter in model.parameters()), x.device)
