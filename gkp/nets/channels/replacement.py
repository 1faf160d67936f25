"""Putting one layer in the place of another: where it stands, what it owes, and when that is wrong.

A layer may stand under several names, carry hooks and flags, or not compute what its type says. What
cannot be replaced without a change of the function is named by `altered` and `shared_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gkp.nets.channels.copying import with_attributes

Layer = TypeVar("Layer", bound=nn.Module)

# Not those of the state_dict: they are written for the old tensors.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
# What a class body may hold without a change of what the layer computes or of what it can do.
_HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate_func__",
    "__annotations_cache__", "__parameters__", "__orig_bases__", "__constants__", "__firstlineno__",
    "__static_attributes__", "extra_repr", "__repr__", "reset_parameters",
}  # fmt: skip
_TENSORS = {
    "weight", "bias", "filter_order", "kept", "positions", "unpermute", "running_mean", "running_var",
    "num_batches_tracked",
}  # fmt: skip
_CALLED = ("forward", "_conv_forward", "__call__", "_call_impl", "dense_weight")
# Attributes of convolutions and linear layers themselves; others were set by the user.
_OWN = {
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "groups",
    "output_padding", "padding_mode", "in_features", "out_features", "in_order",
}  # fmt: skip


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` stands in `model`, in place, under every name, and in plain lists of modules.

    ValueError when `old` is the model itself or does not stand in it.
    """
    if old is model:
        raise ValueError("a network cannot take its own place: use the new module instead of the network")
    replaced = False
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
                replaced = True
        for name, value in vars(parent).items():
            if name not in ("_modules", *_HOOKS) and isinstance(value, (nn.Module, list, tuple, dict)):
                vars(parent)[name] = _substituted(value, old, new)
    if not replaced:
        raise ValueError(f"this {type(old).__name__} does not stand in the network: take a module of it")


def _substituted(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """`value` with `new` for `old`: lists and dictionaries in place, tuples made anew when they hold it."""
    if value is old:
        return new
    if type(value) is list:
        value[:] = [_substituted(each, old, new) for each in value]
    elif type(value) is dict:
        value.update({key: _substituted(each, old, new) for key, each in value.items()})
    elif type(value) is tuple:
        parts = tuple(_substituted(each, old, new) for each in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    return value


def hooked(module: nn.Module) -> bool:
    """Whether something is called before or after the module, forward or backward."""
    return any(getattr(module, table) for table in _HOOKS)


def take_over(new: Layer, old: nn.Module) -> Layer:
    """Give `new`, in place, what the layer `old` (with a weight and perhaps a bias) had; returns `new`.

    Type and device of the weight, its layout (channels last), requires_grad of weight and bias each (of a
    `new` of several layers all weights follow the weight), train mode, hooks before and after forward and
    backward, and attributes that a user set, on its parameters, too. Not taken over: gradients, hooks of
    tensors, and hooks of the state_dict, which are written for the old tensors. Both have their own lists of
    hooks, so that a handle got from `old` removes nothing from `new`.
    """
    weight = _weight(old)
    new.to(weight)
    if channels_last(weight):
        new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bias = getattr(old, "bias", None)
    for name, parameter in new.named_parameters():
        like = bias if name.rpartition(".")[2] == "bias" and bias is not None else weight
        with_attributes(parameter.requires_grad_(like.requires_grad), like)
    for table in _HOOKS:
        getattr(new, table).update(getattr(old, table))
    new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in _OWN and not hasattr(new, name):
            setattr(new, name, value)
    return new.train(old.training)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)  # every layer that is replaced has one
    return weight


def channels_last(weight: Tensor) -> bool:
    """Whether `weight` (O, I, kh, kw) lies in channels last; False where both layouts are the same."""
    return (
        weight.dim() == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
    )


def altered(layer: nn.Module, *bases: type[nn.Module]) -> str:
    """Why `layer` (linear, convolution, norm) does not compute what its class among `bases` does, or "".

    A reason for: subclasses with anything of their own but a constructor, a forward replaced on the
    instance, parametrised weights (weight norm, spectral norm, masks; old and new ways), uninitialised
    lazy layers, weights that are not plain tensors of real numbers, and further tensors or modules.
    """
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        return "it has no weights yet: run the network once on an example"
    if parametrize.is_parametrized(layer):
        names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first"
    foreign = sorted({*layer._parameters, *layer._buffers} - _TENSORS)
    if "weight" not in layer._parameters or foreign:
        return (
            f"it holds {', '.join(foreign) or 'no weight of its own'}, as weight norm, spectral norm and "
            "masks of torch.nn.utils do: remove them first"
        )
    return _altered_class(layer, bases) or _unusual(layer._parameters["weight"]) or _children(layer)


def _altered_class(layer: nn.Module, bases: Iterable[type[nn.Module]]) -> str:
    changed = [name for name in _CALLED if name in vars(layer)]
    if changed:
        return f"its {', '.join(changed)} was replaced on the instance"
    base = next((each for each in bases if isinstance(layer, each)), None)
    if base is None:
        return f"it is a {type(layer).__name__}"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its weight is read by nn.MultiheadAttention, which never calls it"
    for kind in type(layer).__mro__[: type(layer).__mro__.index(base)]:
        own = sorted(set(vars(kind)) - _HARMLESS)
        if own:
            return f"it is a {type(layer).__name__}, whose class {kind.__name__} has its own {', '.join(own)}"
    return ""


def _unusual(weight: Tensor | None) -> str:
    if weight is None:  # a batch norm without scale
        return ""
    if type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}"
    if not weight.is_floating_point():
        return f"its weight holds {weight.dtype}, not floating point numbers"
    if weight.layout != torch.strided:
        return f"its weight has the layout {weight.layout}"
    return "its weight is on the meta device and has no values" if weight.is_meta else ""


def _children(layer: nn.Module) -> str:
    names = [name for name, _ in layer.named_children()]
    return f"it holds modules ({', '.join(names)})" if names else ""


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Layers whose own weight or bias something else uses as well: {name: reason}, under all their names.

    Two modules with one tensor (or with tensors that overlap in memory), and layers whose weights
    nn.MultiheadAttention and nn.TransformerEncoderLayer read without calling them. Replacing such a layer
    would untie it or break its reader. A module under two names is no such layer.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    reasons: dict[str, str] = {}
    for module, other in _tied(list(names)).items():
        reasons |= dict.fromkeys(
            names[module], f"its weights are also those of {names[other][0] or 'the network'}"
        )
    for parent, own_names in names.items():
        if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            reader = f"{own_names[0] or 'the network'}, an nn.{type(parent).__name__}, reads its weights"
            for layer in parent.modules():
                if layer is not parent:
                    reasons |= dict.fromkeys(names[layer], reader)
    return reasons


def _tied(modules: list[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Each module that shares memory of a parameter of its own with another one, and that one."""
    places = sorted(
        (
            (*_memory(parameter), index)
            for index, module in enumerate(modules)
            for parameter in module._parameters.values()
            if parameter is not None and not nn.parameter.is_lazy(parameter) and parameter.numel()
        ),
        key=lambda place: (str(place[0]), *place[1:]),
    )
    partners: dict[nn.Module, nn.Module] = {}
    reach: tuple[Any, int, int] | None = None  # storage, end of what was seen of it, index of its module
    for storage, start, end, index in places:
        if reach is not None and reach[0] == storage and start < reach[1]:
            if index != reach[2]:
                partners.setdefault(modules[index], modules[reach[2]])
                partners.setdefault(modules[reach[2]], modules[index])
            reach = (storage, max(end, reach[1]), index if end > reach[1] else reach[2])
        else:
            reach = (storage, end, index)
    return partners


def _memory(parameter: Tensor) -> tuple[Any, int, int]:
    """What holds the parameter, and from which byte to which; without memory (meta) the tensor itself."""
    try:
        address = parameter.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # tensor subclasses and sparse layouts have no storage
        address = 0
    if not address:
        return id(parameter), 0, 1
    spans = zip(parameter.shape, parameter.stride(), strict=True)
    last = sum((size - 1) * abs(stride) for size, stride in spans)
    start = int(parameter.storage_offset()) * parameter.element_size()
    return address, start, start + int(last + 1) * parameter.element_size()
