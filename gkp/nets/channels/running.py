"""How a network is run to be looked at: on what, in which modes, in one precision, with gradients everywhere.

Every run gets its own copy of the example, because a network may work in place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gkp.nets.channels.copying import copied
from gkp.nets.models import CifarResNet, CifarVGG16
from gkp.utils.logits import weight_type

GUESSES = (32, 64, 224, 299)  # heights and widths that image classifiers are made for
RANDOM_DEPTH = ("StochasticDepth", "DropPath")  # of torchvision and timm: whole branches, no channels
_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
}  # fmt: skip
_NOISES = {
    torch.rand, torch.rand_like, torch.randn, torch.randn_like, torch.normal, torch.bernoulli,
    Tensor.bernoulli, Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_, Tensor.exponential_,
}  # fmt: skip
_CASTS = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}


# ---- examples ----------------------------------------------------------------------------------------


def default_input(model: nn.Module, example_input: Tensor | None) -> Tensor:
    """`example_input`, or one 32x32 image for the CIFAR networks of `gkp.nets.models`, on the model's device.

    Integers stay integers. ValueError for any other network without an example, and for an example that is
    no tensor, empty, complex, on the meta device, or not finite.
    """
    device, dtype = next((p.device for p in model.parameters()), torch.device("cpu")), weight_type(model)
    if example_input is not None:
        _check_example(example_input)
        return example_input.detach().to(device, dtype if example_input.is_floating_point() else None)
    if isinstance(model, (CifarResNet, CifarVGG16)):
        return torch.full((1, 3, 32, 32), 0.5, device=device, dtype=dtype)
    raise ValueError(
        "give example_input, a tensor (1, C, H, W) that the model accepts, such as torch.rand(1, 3, 224, 224)"
    )


def _check_example(example: Any) -> None:
    advice = "give a tensor (1, C, H, W) of finite numbers that the network accepts"
    if not isinstance(example, Tensor):
        raise ValueError(f"example_input is a {type(example).__name__}: give a tensor (1, C, H, W)")
    if example.is_meta:
        raise ValueError(f"example_input is on the meta device and has no values: {advice}")
    if example.is_complex():
        raise ValueError(f"example_input holds complex numbers ({example.dtype}): {advice}")
    if not example.numel():
        raise ValueError(f"example_input of shape {tuple(example.shape)} is empty: {advice}")
    if not torch.isfinite(example).all():
        raise ValueError(f"example_input holds NaN or infinity: {advice}")


def guessed_input(model: nn.Module, example_input: Tensor | None) -> Tensor:
    """As `default_input`; without an example the first square image of usual size that the model takes."""
    if example_input is not None or isinstance(model, (CifarResNet, CifarVGG16)):
        return default_input(model, example_input)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    depths = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    trial = copied(model).eval().float()
    for channels in sorted({*depths[:1], *(d for d in depths if d in (1, 3))}, reverse=True):
        for size in GUESSES:
            generator = torch.Generator().manual_seed(0)
            example = torch.rand(1, channels, size, size, generator=generator).to(device)
            try:
                with seeded(), torch.no_grad(), OnePrecision(torch.float32):
                    trial(example.clone())
            except Exception:  # noqa: S112  (a guess that the network does not take; the next one is tried)
                continue
            return example
    return default_input(model, None)


def run(model: nn.Module, x: Tensor) -> Any:
    """model(x) on a copy of x. ValueError, naming the shape, for a network that does not take it."""
    try:
        with plainly():
            return model(x.clone())
    except Exception as error:
        raise ValueError(
            f"the network does not run on an example of shape {tuple(x.shape)} and type {x.dtype}: "
            f"give example_input, a tensor (1, C, H, W) that it accepts ({type(error).__name__}: {error})"
        ) from error


def as_float(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """x in `dtype` where it holds floating-point numbers; words and other integers as they are."""
    return x.detach().to(dtype) if x.is_floating_point() else x.detach()


# ---- one precision -------------------------------------------------------------------------------------


class OnePrecision(TorchFunctionMode):
    """All floating-point numbers of a forward function in `dtype`, whatever it casts to.

    gradients: those that it switches off stay on. dropout: False leaves functional dropout out
    and makes noise one half everywhere, which does not depend on how many numbers are drawn.
    """

    def __init__(self, dtype: torch.dtype, *, gradients: bool = False, dropout: bool = True) -> None:
        super().__init__()
        self.dtype, self.gradients, self.dropout = dtype, gradients, dropout

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and self.gradients:
            return None
        if func in _DROPOUTS and not self.dropout:
            return args[0] if args else kwargs["input"]
        if func in _CASTS and not args[0].is_complex():
            return args[0].to(self.dtype)
        if func is Tensor.to or func is Tensor.type:
            args = tuple(self._ours(each) for each in args)
        out = func(*args, **{key: self._ours(each) for key, each in kwargs.items()})
        return out.fill_(0.5) if func in _NOISES and not self.dropout else out

    def _ours(self, value: Any) -> Any:
        floating = isinstance(value, torch.dtype) and value.is_floating_point
        return self.dtype if floating else value


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block a forward function runs without torch.utils.checkpoint and torch.inference_mode.

    Checkpointed layers would be called a second time where gradients are taken, and tensors of inference mode
    have none. What is computed stays.
    """

    def generator(*_: Any, **__: Any) -> Iterator[None]:
        yield

    plain = (
        (torch.utils.checkpoint, "CheckpointFunction", SimpleNamespace(apply=lambda part, _, *x: part(*x))),
        (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", generator),
        (torch.inference_mode, "__enter__", lambda _: None),
        (torch.inference_mode, "__exit__", lambda *_: None),
    )
    saved = [(place, name, getattr(place, name)) for place, name, _ in plain if hasattr(place, name)]
    try:
        for place, name, value in plain:
            if hasattr(place, name):
                setattr(place, name, value)
        yield
    finally:
        for place, name, value in saved:
            setattr(place, name, value)


# ---- two modes -------------------------------------------------------------------------------------------


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """`model` itself in eval mode; or in train mode but for the layers, norms and dropouts of PyTorch.

    So what differs between the modes is what the network's own forward functions do. Classes derived from
    PyTorch's norms count as these: statistics of one batch are of little use and much rounding.
    """
    model.train(training)
    for module in model.modules():
        kind = type(module)
        own = kind.__module__.startswith("torch.") or isinstance(module, (_NormBase, _DropoutNd))
        if training and (own or kind.__name__ in RANDOM_DEPTH):
            module.training = False
    return model


@dataclass(frozen=True)
class Modes:
    """In which modes a network has to be looked at.

    runs: (train mode?, example) each; the example of train mode may hold two images. note: why train mode is
    not among them although the network differs there. unread: {parameter or buffer: its owner} of floating
    point that no operation reads, in either mode.
    """

    runs: tuple[tuple[bool, Tensor], ...]
    note: str
    unread: dict[str, nn.Module]


class _Operations(TorchDispatchMode):
    """Notes which operations run, on which memory."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, tuple[int, ...]]] = []
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append((str(func), tuple(out.shape) if isinstance(out, Tensor) else ()))
        self.read.update(_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        return out


def _place(tensor: Tensor) -> int:
    """The address of what holds the tensor's numbers; 0 for layouts that have none of their own."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def modes(model: nn.Module, x: Tensor) -> Modes:
    """Eval mode, and train mode where other operations run there. ValueError where eval mode does not run."""
    model, x = copied(model).float().requires_grad_(False), as_float(x)
    owners = {
        name: model.get_submodule(name.rpartition(".")[0])
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.layout == torch.strided
    }
    whole, read = _operations(model, False, x, owners)
    note, runs = "", [(False, x)]
    trials = [x, torch.cat([x, x])] if len(x) == 1 else [x]
    for example in trials:
        try:
            other, also_read = _operations(model, True, example, owners)
        except ValueError as error:  # a norm of the user's own that needs two images, or labels
            note = f"in train mode {error}"
            continue
        note = ""
        read |= also_read
        if other != whole:
            runs.append((True, example))
        break
    return Modes(tuple(runs), note, {name: owner for name, owner in owners.items() if name not in read})


def _operations(
    model: nn.Module, training: bool, x: Tensor, owners: dict[str, nn.Module]
) -> tuple[list[tuple[str, tuple[int, ...]]], set[str]]:
    """(operations, those of the tensors in `owners` that they read) of one run."""
    places = {name: _place(getattr(owner, name.rpartition(".")[2])) for name, owner in owners.items()}
    noted = _Operations()
    with seeded(), torch.no_grad(), OnePrecision(torch.float32, dropout=not training), noted:
        run(set_mode(model, training), x)
    return noted.names, {name for name, place in places.items() if place in noted.read}


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers in every such block; those of the caller go on as if it were not there."""
    with undrawn():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed devices that nobody uses yet
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
        np.random.seed(0)  # noqa: NPY002  (a forward may draw from these)
        random.seed(0)
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """Afterwards the random numbers of torch, NumPy and Python go on as if none had been drawn within."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
