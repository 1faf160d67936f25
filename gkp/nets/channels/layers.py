"""What a network is made of, as far as channels go: which layers mix them, which keep them apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from gkp.nets.channels.copying import copied as copied  # here for those who take layers apart
from gkp.nets.channels.replacement import replace_module
from gkp.utils.functions import fingerprint

CHANNEL_NORMS = ("FrozenBatchNorm2d",)  # of torchvision and detectron2: buffers, one number a channel


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or "_orig_mod" in model._modules:
        model = model.get_submodule("module" if isinstance(model, wrappers) else "_orig_mod")
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """As `unwrapped`; where layers inside are in torch.compile, a copy of the network without that.

    Compiled code cannot be looked into: hooks, modes of dispatch and gradients stop at it. Names of layers
    lose their "_orig_mod".
    """
    model = unwrapped(model)
    if any("_orig_mod" in module._modules for module in model.modules()):
        model = copied(model)
        for wrapper in [module for module in model.modules() if "_orig_mod" in module._modules]:
            replace_module(model, wrapper, wrapper.get_submodule("_orig_mod"))
    return model


def convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called `name`. TypeError when the layer of that name is another kind."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"{name} is a {type(layer).__name__}, not a convolution")
    return layer


def spatial(layer: nn.Conv2d) -> bool:
    """Whether its kernels are larger than 1x1."""
    return max(layer.kernel_size) > 1


def filter_weight(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as (O, I, kh, kw), detached; kw alone in one dimension."""
    weight = layer.get_parameter("weight").detach()
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.transpose(0, 1)
    return weight if weight.dim() == 4 else weight.reshape(*weight.shape[:2], 1, -1)


def mixes(module: nn.Module) -> bool:
    """Whether `module` is a layer whose filters and input channels can be taken one by one."""
    return isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1)


def in_groups(module: nn.Module) -> int:
    """Groups of channels that `module` keeps apart: of a grouped convolution, GroupNorm, ...; else 0."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        return module.groups
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else 0
    if type(module).__name__ in CHANNEL_NORMS:
        return module.get_buffer("weight").numel()
    return 0


def weights_reason(module: nn.Module) -> str:
    """Why filters of `module` cannot be cut out of its tensors, empty when they can."""
    if parametrize.is_parametrized(module):
        return (
            "its weight is computed from others (a parametrisation): remove_parametrizations makes it plain"
        )
    own = dict(module.named_parameters(recurse=False))
    if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in own | module._buffers:
        return (
            "its weight is computed from others (weight norm or a mask of torch.nn.utils): remove that first"
        )
    if "forward" in vars(module):
        return "its forward function was replaced"
    if any(isinstance(p, nn.UninitializedParameter) for p in own.values()):
        return "its weight has no shape yet"
    return ""


def mixed_by(name: str, kind: str) -> str:
    """Why filters stay that `name` reads: of class `kind`, with weights, and nobody looks into it."""
    reason = f"{name}, a {kind}, mixes its filters"
    if hasattr(nn, kind) or "Norm" in kind:
        return reason
    return (
        f"{reason} or has a weight for each: where it only scales and shifts them, a depthwise 1x1 "
        "convolution in its place can shrink with them"
    )


def sizes(module: nn.Module) -> tuple[int, int]:
    """(input channels, output channels) of a layer that mixes channels or keeps them apart."""
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    count = module.num_channels if isinstance(module, nn.GroupNorm) else in_groups(module)
    return count, count


def channel_axis(module: nn.Module) -> int:
    """Where the channels stand in the input and output of a layer that `mixes` or has `in_groups`."""
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    return 1


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors inside tuples, lists, dictionaries and objects that hold them."""
    return (each for each in answers_in(value) if each.is_floating_point())


def answers_in(value: Any) -> Iterator[Tensor]:
    """As `tensors_in`, tensors of any type; NumPy's arrays and plain numbers become tensors."""
    yield from _answers(value, set())


def _answers(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (bool, int, float, complex)):
        yield torch.tensor(value)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        yield torch.as_tensor(value)
    elif id(value) not in seen:  # an object may hold itself
        seen.add(id(value))
        for part in _parts(value):
            yield from _answers(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    """What a container or an object holds."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list, set, frozenset)):
        return value
    if isinstance(value, (nn.Module, type, str, bytes)) or callable(value):
        return ()
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    held = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*held, *getattr(value, "__dict__", {}).values()]


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


# ---- what may have changed -------------------------------------------------------------------------

# Attributes that every module has and that its function does not depend on, or that are looked at apart.
_SEEN_AGAIN = {"_forward_hooks", "_forward_pre_hooks", "_buffers"}
_EVERY = {*vars(nn.Module()), "_compiled_call_impl"} - _SEEN_AGAIN


def signature(model: nn.Module, x: Tensor) -> tuple:
    """What the channels depend on and a user may change: layers, settings, shapes, the example's shape."""
    layers = tuple((name, id(m), type(m), _settings(m)) for name, m in model.named_modules())
    tensors = tuple((name, id(p), fingerprint(p), tuple(p.shape)) for name, p in model.named_parameters())
    return (layers, tensors, tuple(x.shape), x.dtype)


def _settings(module: nn.Module) -> Hashable:
    """Its attributes, its hooks and, but for those of a norm, which learn, its buffers: as they are now."""
    if isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules:
        return ()  # what it wraps does not change, or is looked at itself
    own = {name: value for name, value in vars(module).items() if name not in _EVERY}
    if isinstance(module, _NormBase):
        del own["_buffers"]
    return fingerprint(own)
