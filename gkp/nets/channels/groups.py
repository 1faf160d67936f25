"""What must go together when a filter goes: the channels of a network, as sets that can be removed.

A node is an output channel or an input channel of a layer. A filter is joined to every input channel that
it reaches (`gkp.nets.channels.probe`), and a layer that keeps channels apart (batch norm, depthwise and
grouped convolution) joins its own ends. A connected set, a unit, can be removed as a whole and only as a
whole: what remains reads nothing of it. A unit that holds something that cannot go (a channel of the image or
of the network's output, one that is mixed with others, a weight that is not the layer's own) stays.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from gkp.nets.channels.feeds import Feed, feeds
from gkp.nets.channels.layers import in_groups, mixes, unwrapped
from gkp.nets.channels.probe import IMAGE, Probe, probe
from gkp.nets.channels.replacement import shared_weights

TIED = "its filters are summed with those of"
TO_OUTPUT = "its filters are the network's output"
ORDINARY = (TIED, TO_OUTPUT)  # reasons that are how networks are built, nothing to wonder about


@dataclass(frozen=True)
class Bundle:
    """Units that reach the same layers, in the order of the first producer's filters.

    producers: layers whose filters go, in the order of the network; readers: layers whose input channels
    go; between: norms, depthwise and grouped convolutions on the way. units: their numbers.
    """

    producers: tuple[str, ...]
    readers: tuple[str, ...]
    between: tuple[str, ...]
    units: tuple[int, ...]


@dataclass
class Channels:
    """The channels of one network on one example.

    filters, inputs: {layer: unit of each output channel, of each input channel}. bundles: all that can be
    removed. pinned: {unit: why it stays}. direct: {layer: layers between that its filters reach first}.
    readers_of_image: layers that read nothing but the image. calls: {layer: how often it runs}.
    """

    filters: dict[str, Tensor]
    inputs: dict[str, Tensor]
    bundles: list[Bundle]
    pinned: dict[int, str]
    direct: dict[str, list[str]]
    readers_of_image: frozenset[str]
    calls: dict[str, int]
    gates: dict[str, frozenset[str]] = field(default_factory=dict)
    refuted: dict[tuple[str, ...], str] = field(default_factory=dict)  # by the proof: producers -> why

    def removed(self, units: Iterable[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({layer: filters to drop}, {layer: input channels to drop}) without the layers that lose none."""
        gone = torch.tensor(sorted(units), dtype=torch.long)
        both: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for found, side in zip(both, (self.filters, self.inputs), strict=True):
            for name, owner in side.items():
                hit = torch.isin(owner, gone).nonzero()[:, 0]
                if len(hit):
                    found[name] = hit
        return both


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


def sizes(module: nn.Module) -> tuple[int, int]:
    """(input channels, output channels) of a layer that mixes channels or keeps them apart."""
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    count = module.num_channels if isinstance(module, nn.GroupNorm) else in_groups(module)
    return count, count


class _Nodes:
    """Numbers for the channels of all layers; joins and pins them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.filters: dict[str, Tensor] = {}
        self.count = 0
        self.joins: list[Tensor] = []
        self.reasons: dict[int, str] = {}
        for name, module in modules.items():
            read, written = sizes(module)
            groups = in_groups(module)
            if groups:
                node = self.count + torch.arange(groups)
                self.inputs[name] = node.repeat_interleave(read // groups)
                self.filters[name] = node.repeat_interleave(written // groups)
                self.count += groups
            else:
                self.inputs[name] = self.count + torch.arange(read)
                self.filters[name] = self.count + read + torch.arange(written)
                self.count += read + written

    def pin(self, nodes: Tensor, reason: str) -> None:
        for node in nodes.tolist():
            self.reasons.setdefault(node, reason)

    def units(self) -> Tensor:
        """The unit of every node: connected nodes take the smallest number among them."""
        one, other = torch.cat([torch.empty(2, 0, dtype=torch.long), *self.joins], 1)
        label = torch.arange(self.count)
        while True:
            lower = torch.minimum(label[one], label[other])
            joined = label.scatter_reduce(0, one, lower, "amin").scatter_reduce(0, other, lower, "amin")
            joined = joined[joined]  # follow pointers, so that long chains take few turns
            if torch.equal(joined, label):
                return label
            label = joined


def analyse(model: nn.Module, x: Tensor) -> Channels:
    """The channels of `model` on x (1, C, H, W). ValueError where the network does not run on x."""
    model = unwrapped(model)
    with probe(model, x) as found:
        edges = list(feeds(found))
    modules = {
        name: module
        for name, module in model.named_modules()
        if name in found.calls and name not in found.opaque and (mixes(module) or in_groups(module))
    }
    nodes = _Nodes(modules)
    _pin_layers(nodes, model, modules)
    for edge in edges:
        _enter(nodes, edge, found)
    unit = nodes.units()
    pinned: dict[int, str] = {}
    for node, reason in sorted(nodes.reasons.items()):
        pinned.setdefault(int(unit[node]), reason)
    filters = {name: unit[node] for name, node in nodes.filters.items()}
    inputs = {name: unit[node] for name, node in nodes.inputs.items()}
    direct: dict[str, list[str]] = {}
    sources: dict[str, set[str]] = {}
    for edge in edges:
        sources.setdefault(edge.target, set()).add(edge.source)
        if edge.target in modules and in_groups(modules[edge.target]):
            direct.setdefault(edge.source, []).append(edge.target)
    only_image = frozenset(name for name, known in sources.items() if known == {IMAGE})
    bundles = _bundles(modules, filters, inputs, pinned)
    channels = Channels(filters, inputs, bundles, pinned, direct, only_image, found.calls)
    channels.gates = _gates(model, x, channels, edges, modules)
    return channels


def _pin_layers(nodes: _Nodes, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    tied = shared_weights(model)
    for name, module in modules.items():
        reason = weights_reason(module) or tied.get(name)
        if reason:
            nodes.pin(torch.cat([nodes.inputs[name], nodes.filters[name]]), reason)


def _enter(nodes: _Nodes, edge: Feed, found: Probe) -> None:
    """Join what the edge joins, pin what it shows to be fixed."""
    target = nodes.inputs.get(edge.target)
    source = nodes.filters.get(edge.source)
    if target is None or source is None:
        if source is not None:
            kind = found.opaque.get(edge.target)
            reason = f"{edge.target}, a {kind}, mixes its filters" if kind else TO_OUTPUT
            nodes.pin(source[torch.cat([edge.filters, edge.mixed])], reason)
        elif target is not None:
            kind = found.opaque.get(edge.source)
            reason = f"its channels come from {edge.source}, a {kind}" if kind else "it reads the image"
            nodes.pin(target if len(edge.mixed) else target[edge.channels], reason)
        return
    if len(edge.mixed):
        reason = f"what lies between {edge.source} and {edge.target} mixes its filters"
        nodes.pin(source[edge.mixed], reason)
        nodes.pin(target, reason)
    nodes.joins.append(torch.stack([source[edge.filters], target[edge.channels]]))


def _bundles(
    modules: Mapping[str, nn.Module],
    filters: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    pinned: Mapping[int, str],
) -> list[Bundle]:
    """Units that can go, bundled by the layers they reach; only bundles that cover all their producers."""
    writers: dict[int, dict[str, None]] = {}
    readers: dict[int, dict[str, None]] = {}
    between: dict[int, dict[str, None]] = {}
    first: dict[int, int] = {}
    for name, module in modules.items():
        if in_groups(module):
            for unit in filters[name].unique().tolist():
                between.setdefault(unit, {})[name] = None
            continue
        for position, unit in enumerate(filters[name].tolist()):
            writers.setdefault(unit, {})[name] = None
            first.setdefault(unit, position)
        for unit in inputs[name].unique().tolist():
            readers.setdefault(unit, {})[name] = None
    members: dict[tuple[str, ...], list[int]] = {}
    for unit in sorted(writers, key=lambda u: first[u]):
        if unit in readers and unit not in pinned:
            members.setdefault(tuple(writers[unit]), []).append(unit)
    bundles = []
    for producers, units in members.items():
        if len(units) > 1 and all(set(filters[name].tolist()) == set(units) for name in producers):
            reached = [{n: None for u in units for n in side.get(u, ())} for side in (readers, between)]
            bundles.append(Bundle(producers, tuple(reached[0]), tuple(reached[1]), tuple(units)))
    return bundles


def _gates(
    model: nn.Module, x: Tensor, channels: Channels, edges: list[Feed], modules: Mapping[str, nn.Module]
) -> dict[str, frozenset[str]]:
    """{producer: the other producers of its bundle, where they only scale what it gives}.

    They do when, with zeros instead of what the producer gives, no reader depends on them any more
    (squeeze-and-excitation, gated linear units); the filters of a residual sum do not.
    """
    mains: dict[str, tuple[str, ...]] = {}
    for bundle in channels.bundles:
        by_call = sorted(bundle.producers, key=list(channels.calls).index)
        if len(by_call) > 1:
            mains[by_call[0]] = tuple(by_call[1:])
    if not mains:
        return {}

    def chain(name: str) -> set[str]:
        reached, todo = {name}, [name]
        while todo:
            for target in channels.direct.get(todo.pop(), ()):
                if target not in reached:
                    reached.add(target)
                    todo.append(target)
        return reached

    chains = {name: chain(name) for group in mains.items() for name in (group[0], *group[1])}
    silent = frozenset(name for main in mains for name in chains[main])
    heard: set[str] = set()
    with probe(model, x, silent) as found:
        for edge in feeds(found):
            if edge.target not in modules or mixes(modules[edge.target]):
                heard.add(edge.source)
    return {
        main: frozenset(others)
        for main, others in mains.items()
        if not any(chains[other] & (heard | chains[main]) for other in others)
    }


_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, Channels]] = weakref.WeakKeyDictionary()


def _signature(model: nn.Module, x: Tensor) -> tuple:
    """What the channels depend on and a user may change: the layers, their shapes, the example's shape."""
    layers = tuple((name, id(m), type(m)) for name, m in model.named_modules())
    tensors = tuple((name, id(p), tuple(p.shape)) for name, p in model.named_parameters())
    return (layers, tensors, tuple(x.shape))


def channels_of(model: nn.Module, x: Tensor) -> Channels:
    """`analyse`, proved by `gkp.nets.channels.proof`, once for every network and shape of the example."""
    from gkp.nets.channels.proof import proved

    signature = _signature(model, x)
    known = _KNOWN.get(model)
    if known is None or known[0] != signature:
        known = (signature, proved(model, analyse(model, x), x))
        _KNOWN[model] = known
    return known[1]
