"""Which channels of a network depend on which filters, found by experiment.

Every layer that mixes channels (convolution, linear layer, ...) is cut: instead of its result it gives
fresh numbers, and what reaches it is kept. Between the cuts only the network's own glue runs, whatever it
is: sums, gates, concatenations, shuffles, reshapes. How a layer's input depends on the fresh numbers is
then read off gradients. For an element y of some layer's output, the gradients of sum_c v_c t_c, with t the
input of another layer and v a code of its channels, are s v_c if y reaches channel c alone, whatever the
slope s: the quotients of a few codes name c and prove that it is the only one.

Nothing of this trusts a rule about an operation; what it cannot tell it calls mixed, and
`gkp.nets.channels.proof` tests what it concludes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from gkp.nets.channels.layers import channel_axis, copied, in_groups, mixes, tensors_in, unwrapped
from gkp.nets.channels.running import OnePrecision, as_float, plainly, run, seeded, set_mode

EXACT = {torch.float64: 1e-7, torch.float32: 1e-3}  # how near a quotient comes to a single channel's code
IMAGE, OUTPUT = "the image", "the network's output"


@dataclass
class Leaf:
    """Fresh numbers instead of one result of layer `name`."""

    name: str
    values: Tensor
    axis: int


@dataclass
class Reading:
    """What reached layer `name` in one call; axis None where only whether something reaches it matters."""

    name: str
    tensor: Tensor
    axis: int | None


@dataclass
class Probe:
    """One pass with all layers cut: `leaves` and `readings` in the order of the calls.

    opaque: layers whose inside is not looked into, {name: what it is}. calls: {name: number of calls}, in
    the order of the first.
    """

    leaves: list[Leaf] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    exact: float = EXACT[torch.float64]


@contextmanager
def probe(
    model: nn.Module, x: Tensor, silent: frozenset[str] = frozenset(), *, training: bool = False
) -> Iterator[Probe]:
    """Run `model` on x (N, C, H, W) once as it is, and once with its layers cut; `silent` ones give zeros.

    The model is copied; the copy runs in eval mode or, see `gkp.nets.channels.running.set_mode`, train mode,
    in float32 and then in float64. What it gives can be asked within the block only. ValueError where the
    network does not run, or takes another way with other numbers in its layers.
    """
    with torch.inference_mode(False):
        model, x = copied(unwrapped(model)).float().requires_grad_(False), as_float(x).clone()
        probed = Probe()
        shapes = watch(model, x, probed, training)  # before any stand-in
        # a network may work in place on what gradients need: only what is asked here has to bear that
        with torch.autograd.graph.allow_mutation_on_saved_tensors(), torch.enable_grad():
            out = _cut_pass(model, shapes, x, probed, silent, training)
            probed.readings += [Reading(OUTPUT, tensor, None) for tensor in tensors_in(out)]
            yield probed


def _cut_pass(
    model: nn.Module,
    shapes: dict[nn.Module, list[Any]],
    x: Tensor,
    probed: Probe,
    silent: frozenset[str],
    training: bool,
) -> Any:
    """The pass with the layers cut, in float64 if that goes; fills leaves and readings."""
    # Another precision may not meet float32 tensors that it makes of its own. Where it switches gradients off
    # it may do what they do not allow.
    trials = ((torch.float64, True), (torch.float32, True), (torch.float32, False))
    for dtype, gradients in trials:
        try:
            probed.leaves, probed.readings, probed.exact = [], [], EXACT[dtype]
            with OnePrecision(dtype, gradients=gradients, dropout=not training):
                return cut_run(model, shapes, as_float(x, dtype), probed, silent)
        except Exception as error:
            last = error
    mode = "in train mode " if training else ""
    raise ValueError(
        "the layers of this network cannot be looked at one by one: with other numbers in them "
        f"{mode}it takes another way ({type(last).__name__}: {last})"
    ) from last


def cut_run(
    model: nn.Module,
    shapes: dict[nn.Module, list[Any]],
    x: Tensor,
    probed: Probe,
    silent: frozenset[str],
    seeds: tuple[int, int] = (0, 1),
) -> Any:
    """One run with the layers cut. seeds: of the numbers instead of the image and of the layers' results."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    _cast(model, set(shapes), dtype)
    image, layers = (torch.Generator(x.device).manual_seed(seed) for seed in seeds)
    _cut(model, shapes, _Numbers(dtype, x.device, layers), probed, silent)
    with seeded(), plainly():
        if not x.is_floating_point():  # words: there is nothing between two of them
            return model(x.flip(-1) if seeds[0] else x.clone())
        probed.leaves.append(Leaf(IMAGE, _Numbers(dtype, x.device, image).fresh(x, False), 1))
        return model(probed.leaves[0].values * 1)


def _cast(model: nn.Module, but: set[nn.Module], dtype: torch.dtype) -> None:
    """The tensors of all modules in `dtype`, but for those that are cut and may be huge."""
    for module in set(model.modules()) - but:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(dtype) if buffer.is_floating_point() else buffer


def watch(model: nn.Module, x: Tensor, probed: Probe, training: bool) -> dict[nn.Module, list[Any]]:
    """The plain pass: {layer to cut: the shapes of its results, call by call}; fills calls and opaque.

    ValueError where a layer runs inside torch.vmap.
    """
    set_mode(model, training)
    names = {module: name for name, module in model.named_modules()}
    results: dict[nn.Module, list[Any]] = {}
    inside: dict[nn.Module, bool] = {}  # does a layer that mixes run inside it?
    stack: list[nn.Module] = []

    mapped: list[str] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        stack.append(module)
        if (mixes(module) or in_groups(module)) and any(map(is_batchedtensor, tensors_in(inputs))):
            mapped.append(names[module])
        probed.calls[names[module]] = probed.calls.get(names[module], 0) + 1
        inside.setdefault(module, False)

    def leave(module: nn.Module, _: object, output: Any) -> None:
        stack.pop()
        results.setdefault(module, []).append(_ghost(output))
        if mixes(module) or in_groups(module):
            inside.update(dict.fromkeys(stack, True))

    handles = [m.register_forward_pre_hook(enter) for m in names]
    handles += [m.register_forward_hook(leave) for m in names]
    with torch.no_grad(), seeded(), OnePrecision(torch.float32, dropout=not training):
        run(model, x)
    for handle in handles:
        handle.remove()
    if mapped:
        raise ValueError(
            f"{mapped[0]} runs inside torch.vmap, where its results cannot be looked at: give it the whole "
            "batch at once, or prune a network that does"
        )
    for module in results:
        if not inside[module] and not mixes(module) and not in_groups(module) and _holds_weights(module):
            probed.opaque[names[module]] = type(module).__name__
    return {m: r for m, r in results.items() if mixes(m) or in_groups(m) or names[m] in probed.opaque}


def _holds_weights(module: nn.Module) -> bool:
    """Whether it has tensors of more than one number, which may belong to channels."""
    return any(p.numel() > 1 for p in module.parameters())


def _ghost(result: Any) -> Any:
    """`result` with tensors that have the shapes of its floating-point tensors and hold one number."""
    return _mapped(result, lambda tensor: torch.zeros(()).expand(tensor.shape))


def _mapped(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        return change(result) if result.is_floating_point() else result
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*(_mapped(each, change) for each in result))
    if isinstance(result, (tuple, list)):
        return type(result)(_mapped(each, change) for each in result)
    if isinstance(result, dict):
        return type(result)((key, _mapped(each, change)) for key, each in result.items())
    return result


@dataclass(frozen=True)
class _Numbers:
    """Where fresh numbers come from."""

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def fresh(self, like: Tensor, silent: bool) -> Tensor:
        """Random positive numbers in (1, 2), so that no activation is at rest; zeros where `silent`."""
        values = torch.rand(like.shape, device=self.device, dtype=self.dtype, generator=self.generator)
        return values.add_(1).mul_(not silent).requires_grad_(torch.is_grad_enabled())


def _cut(
    model: nn.Module,
    results: dict[nn.Module, list[Any]],
    numbers: _Numbers,
    probed: Probe,
    silent: frozenset[str],
) -> None:
    """Replace the forward functions of the layers in `results`."""
    for name, module in model.named_modules():
        if module in results:
            axis = None if name in probed.opaque else channel_axis(module)
            module.forward = _stand_in(name, axis, results[module], numbers, probed, name in silent)


def _stand_in(
    name: str, axis: int | None, ghosts: list[Any], numbers: _Numbers, probed: Probe, silent: bool
) -> Callable[..., Any]:
    turns = iter(ghosts)

    def leaf(ghost: Tensor) -> Tensor:
        values = numbers.fresh(ghost, silent)
        probed.leaves.append(Leaf(name, values, -1 if axis is None else axis))
        return values * 1

    def forward(*inputs: Any, **named: Any) -> Any:
        for tensor in tensors_in([inputs, named]):
            # multiplied, so that a later operation in place leaves what was read alone
            probed.readings.append(Reading(name, tensor * 1, axis))
        ghost = next(turns, probed)
        if ghost is probed:
            raise ValueError(
                f"{name} runs once more than before, as layers do under gradient checkpointing: switch "
                "checkpointing off, or prune a network that does not decide by its numbers"
            )
        return _mapped(ghost, leaf)

    return forward
