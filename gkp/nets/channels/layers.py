"""What a network is made of, as far as channels go: which layers mix them, which keep them apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from gkp.nets.channels.copying import copied as copied  # here for those who take layers apart

CHANNEL_NORMS = ("FrozenBatchNorm2d",)  # of torchvision and detectron2: buffers, one number a channel


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or "_orig_mod" in model._modules:
        model = model.get_submodule("module" if isinstance(model, wrappers) else "_orig_mod")
    return model


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


def channel_axis(module: nn.Module) -> int:
    """Where the channels stand in the input and output of a layer that `mixes` or has `in_groups`."""
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    return 1


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors inside tuples, lists, dictionaries and objects that hold them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from tensors_in(vars(value))


def run(model: nn.Module, x: Tensor) -> Any:
    """model(x). ValueError, naming the shape, for a network that does not take it."""
    try:
        return model(x)
    except Exception as error:
        raise ValueError(
            f"the network does not run on an example of shape {tuple(x.shape)} and type {x.dtype}: "
            f"give example_input, a tensor (1, C, H, W) that it accepts ({type(error).__name__}: {error})"
        ) from error
