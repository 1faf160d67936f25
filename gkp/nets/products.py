"""The products that a network computes: multiply-adds at PyTorch's dispatcher, one operation after the other.

Everything that runs passes the dispatcher: modules, functional calls, attention, scripted and compiled
code. So nothing depends on the type of a module or on how it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from gkp.nets.channels.copying import CopyError, copied, left_alone
from gkp.nets.channels.running import seeded
from gkp.nets.grouped_base import GroupedKernels

aten = torch.ops.aten
CONVOLUTIONS = frozenset({aten.convolution, aten._convolution, aten.conv_tbc})
UNREGISTERED_ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten._scaled_dot_product_attention_math_for_mps,
)
# PyTorch's kernels that hide products and have no formula here; what of nn takes them is told not to.
HIDING = frozenset({aten._native_multi_head_attention, aten._transformer_encoder_layer_fwd, aten.miopen_rnn})
OPEN = frozenset(
    {"aten", "prim", "prims", "profiler", "torchvision"}
)  # operators elsewhere may hide products

Found = list[tuple[Any, int]]
Watch = Callable[[nn.Module], Iterable[RemovableHandle]]


def products(model: nn.Module, example_input: Tensor) -> Found:
    """What one image costs in eval mode, in the order of the run: [(operator, multiply-adds)].

    `gkp.nets.cost` says what counts. example_input: (N, C, H, W), of which the first image runs. The model is
    left as it was. ValueError: it does not run on the example, or runs an operator that nobody can count.
    """
    return _counted(model, example_input, {})


def by_layer(model: nn.Module, names: Iterable[str], example_input: Tensor) -> dict[str, int]:
    """Multiply-adds that one image costs in each named module, however often and however it is called."""
    counts: dict[str, int] = dict.fromkeys(names, 0)
    _counted(model, example_input, counts)
    return counts


def run_once(model: nn.Module, example_input: Tensor, watch: Watch = lambda _: ()) -> None:
    """Run the first image of `example_input` in eval mode without gradients; the model is left as it was.

    What runs is a copy, whose forward may change it; the model where none can be made, and then its buffers
    and attributes are put back. watch: puts hooks into what runs and returns their handles. The image takes
    the device of the parameters and, where they share one, their floating type. Grouped kernels run as such,
    and attention without its fused kernel. ValueError names the shape when it fails.
    """
    if not isinstance(example_input, Tensor) or example_input.dim() < 2 or not len(example_input):
        raise ValueError(
            "example_input must be a tensor of at least one image, such as torch.rand(1, 3, 32, 32)"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("the network has layers without shapes yet: run it once on an image first")
    image = _like_parameters(model, example_input[:1].clone())  # it may work in place
    trial: nn.Module = model
    handles: list[RemovableHandle] = []
    with suppress(CopyError):  # only a forward that changes what `left_alone` cannot put back needs the copy
        trial = copied(model)
    try:
        with left_alone(model), _only_products(trial), torch.no_grad(), seeded():
            handles += watch(trial)
            trial(image)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"the network does not run on an input of shape {tuple(image.shape)} and type {image.dtype} "
            f"({reason}): give an example_input (N, C, H, W) of the size that it is for"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _counted(model: nn.Module, example_input: Tensor, layers: dict[str, int]) -> Found:
    counter = _Counter()

    def watch(trial: nn.Module) -> Iterator[RemovableHandle]:
        for name in layers:
            yield from _add_up(counter, trial.get_submodule(name), name, layers)
        for module in trial.modules():
            yield from _leave_out(counter, module)

    with counter:
        run_once(model, example_input, watch)
    if counter.unknown:
        raise ValueError(
            f"cannot count the operators {', '.join(sorted(counter.unknown))} of this network: say what they "
            "cost with torch.utils.flop_counter.register_flop_formula, two operations to a multiply-add"
        )
    return counter.products


def _add_up(
    counter: _Counter, module: nn.Module, name: str, layers: dict[str, int]
) -> Iterator[RemovableHandle]:
    """Hooks that add to layers[name] what the calls of `module` cost."""
    before: list[int] = []
    yield module.register_forward_pre_hook(lambda *_: before.append(len(counter.products)), prepend=True)

    def add(*_: Any) -> None:
        layers[name] += sum(number for _, number in counter.products[before.pop() :])

    yield module.register_forward_hook(add)


def _leave_out(counter: _Counter, module: nn.Module) -> Iterator[RemovableHandle]:
    """Hooks that pause the counter while a parametrization or a hook of torch.nn.utils makes a weight."""

    def pause(*_: Any) -> None:
        counter.paused = True

    def go_on(*_: Any) -> None:
        counter.paused = False

    hooks = module._forward_pre_hooks.values()
    if isinstance(module, ParametrizationList):
        yield module.register_forward_pre_hook(pause)
        yield module.register_forward_hook(go_on)
    elif any(type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks):
        yield module.register_forward_pre_hook(pause, prepend=True)
        yield module.register_forward_pre_hook(go_on)


def _like_parameters(model: nn.Module, image: Tensor) -> Tensor:
    parameters = list(model.parameters())
    types = {p.dtype for p in parameters if p.is_floating_point()}
    if parameters:
        image = image.to(parameters[0].device)
    return image.to(types.pop()) if image.is_floating_point() and len(types) == 1 else image


@contextmanager
def _only_products(model: nn.Module) -> Iterator[None]:
    """Eval mode, grouped kernels without their zeros, attention in its parts; afterwards all as it was."""
    modes = [(module, module.training) for module in model.modules()]
    executions = [(m, m.execution) for m in model.modules() if isinstance(m, GroupedKernels)]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for grouped, _ in executions:
            grouped.execution = "grouped"
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for grouped, execution in executions:
            grouped.execution = execution
        for module, training in modes:
            module.training = training


class _Counter(TorchDispatchMode):
    """Notes the multiply-adds of every operator that runs, unless paused."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.products: Found = []
        self.unknown: set[str] = set()
        self.paused = False
        self.formulas = _formulas()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Operators that take functions (flex_attention, cond) have no overloads, and hide what they call.
        higher_order = isinstance(func, HigherOrderOperator)
        operator = func if higher_order else func._overloadpacket
        if not higher_order and operator not in self.formulas and func._can_decompose():
            with self:  # inference mode hands over linear, matmul, conv2d and attention whole
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if self.paused:
            return out
        if operator in self.formulas:
            self.products.append((operator, self.formulas[operator](*args, **kwargs, out_val=out)))
        elif higher_order or operator in HIDING or func.namespace not in OPEN:
            self.unknown.add(str(operator))
        return out


def _formulas() -> dict[Any, Callable[..., int]]:
    """Multiply-adds by operator: PyTorch's registry, which counts two operations to each, and what it lacks.

    Formulas take the operator's arguments and `out_val`.
    """
    from torch.utils.flop_counter import flop_registry, sdpa_flop  # half a second, so where it is used

    def multiply_adds(operations: Callable[..., int]) -> Callable[..., int]:
        return lambda *args, **kwargs: operations(*args, **kwargs) // 2

    attention = multiply_adds(sdpa_flop)
    formulas = {operator: multiply_adds(operations) for operator, operations in flop_registry.items()}
    formulas |= dict.fromkeys(UNREGISTERED_ATTENTION, attention)
    formulas |= dict.fromkeys((aten.mv, aten.dot, aten.vdot, aten._int_mm), _first_times_last)
    formulas |= dict.fromkeys((aten.addmv, aten.addbmm, aten._addmm_activation), _added)
    formulas |= {
        aten._trilinear: _bilinear,
        aten.conv_tbc: lambda x, w, *_, out_val: out_val.numel() * w[:, :, 0].numel(),
        aten.mkldnn_rnn_layer: lambda x, *rest, **_: _recurrent(x, rest[:4]),
        aten._cudnn_rnn: lambda x, weights, *_, **__: _recurrent(x, weights),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # where torchvision is imported
        deform = torch.ops.torchvision.deform_conv2d
        formulas[deform] = lambda x, w, *_, out_val: w[0].numel() * out_val.numel()
    return formulas


def _first_times_last(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """(..., m, k) by (..., k, n), or by (k,)."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _added(_: Tensor, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return _first_times_last(a, b)


def _bilinear(
    a: Tensor, b: Tensor, c: Tensor, in_a: list[int], in_b: list[int], in_c: list[int], *_: Any, **__: Any
) -> int:
    """One for each product of three: nn.Bilinear's weights, once for each row of its inputs."""
    shapes = []
    for tensor, places in ((a, in_a), (b, in_b), (c, in_c)):
        for place in places:
            tensor = tensor.unsqueeze(place)
        shapes.append(tensor.shape)
    return prod(torch.broadcast_shapes(*shapes))


def _recurrent(x: Tensor, weights: Iterable[Tensor]) -> int:
    """Every matrix of the layers, once for each step of each sequence in x (..., features)."""
    return prod(x.shape[:-1]) * sum(weight.numel() for weight in weights if weight.dim() == 2)
