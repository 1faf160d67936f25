"""What must go together when a filter goes: the channels of a network, as sets that can be removed.

A node is an output channel or an input channel of a layer. A filter is joined to every input channel that
it reaches (`gkp.nets.channels.probe`), and a layer that keeps channels apart (batch norm, depthwise and
grouped convolution) joins its own ends. A connected set, a unit, can be removed as a whole and only as a
whole: what remains reads nothing of it. A unit that holds something that cannot go (a channel of the image or
of the network's output, one that is mixed with others, a weight that is not the layer's own) stays.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gkp.nets.channels.feeds import Feed, feeds, gates
from gkp.nets.channels.layers import in_groups, mixed_by, mixes, signature, sizes, unwrapped, weights_reason
from gkp.nets.channels.probe import probe
from gkp.nets.channels.replacement import shared_weights
from gkp.nets.channels.running import Modes, modes
from gkp.utils.precision import full_precision

TIED = "its filters are summed with those of"
TO_OUTPUT = "its filters are the network's output"
UNREACHED = (
    "{reader}, which the example does not reach, may read its filters or be summed with them (it has {width} "
    "channels): give an example that reaches it, or take it out of the network"
)
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
    removed. pinned: {unit: (layer or "", why it stays)}, the layer where the reason is about that one's
    weights. direct: {layer: layers between that its filters reach first}. calls: {layer: how often it runs}.
    modes: how the network has to be looked at. unread: weights that the example does not reach and that would
    leave nothing to remove if whatever may feed them stayed.
    """

    filters: dict[str, Tensor]
    inputs: dict[str, Tensor]
    bundles: list[Bundle]
    pinned: dict[int, tuple[str, str]]
    direct: dict[str, list[str]]
    calls: dict[str, int]
    modes: Modes
    unread: str = ""
    gates: dict[str, frozenset[str]] = field(default_factory=dict)
    refuted: dict[tuple[str, ...], str] = field(default_factory=dict)  # by the proof: producers -> why

    def removed(self, units: Iterable[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({layer: filters to drop}, {layer: input channels to drop}) without the layers that lose none."""
        gone = torch.tensor(sorted(units), dtype=torch.long)
        both: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for dropped, side in zip(both, (self.filters, self.inputs), strict=True):
            for name, owner in side.items():
                hit = torch.isin(owner, gone).nonzero()[:, 0]
                if len(hit):
                    dropped[name] = hit
        return both


class _Nodes:
    """Numbers for the channels of all layers; joins and pins them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.filters: dict[str, Tensor] = {}
        self.count = 0
        self.joins: list[Tensor] = []
        self.reasons: dict[int, tuple[str, str]] = {}
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

    def pin(self, nodes: Tensor, reason: str, of: str = "") -> None:
        """They stay. of: the layer whose weights are the reason."""
        for node in nodes.tolist():
            self.reasons.setdefault(node, (of, reason))

    def pinned(self, unit: Tensor) -> dict[int, tuple[str, str]]:
        """{unit: (layer or "", why it stays)} as far as is known now."""
        reasons: dict[int, tuple[str, str]] = {}
        for node, reason in sorted(self.reasons.items()):
            reasons.setdefault(int(unit[node]), reason)
        return reasons

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


@full_precision()
def analyse(model: nn.Module, x: Tensor) -> Channels:
    """The channels of `model` on x (1, C, H, W), in both modes. ValueError where it does not run on x."""
    model = unwrapped(model)
    ways = modes(model, x)
    edges: list[Feed] = []
    calls: dict[str, int] = {}
    opaque: dict[str, str] = {}
    for training, example in ways.runs:
        with probe(model, example, training=training) as probed:
            edges += feeds(probed)
        calls |= {name: count for name, count in probed.calls.items() if name not in calls}
        opaque |= probed.opaque
    modules = {
        name: module
        for name, module in model.named_modules()
        if name in calls and name not in opaque and (mixes(module) or in_groups(module))
    }
    nodes = _Nodes(modules)
    _pin_layers(nodes, model, modules)
    for edge in edges:
        _enter(nodes, edge, opaque)
    unit = nodes.units()
    filters = {name: unit[node] for name, node in nodes.filters.items()}
    inputs = {name: unit[node] for name, node in nodes.inputs.items()}
    direct: dict[str, list[str]] = {}
    for edge in edges:
        if edge.target in modules and in_groups(modules[edge.target]):
            direct.setdefault(edge.source, []).append(edge.target)
    known = nodes.pinned(unit)
    _pin_for_unread(nodes, modules, ways.unread)
    pinned = nodes.pinned(unit)
    bundles = _bundles(modules, filters, inputs, pinned)
    unread = ""
    if not bundles and (
        bundles := _bundles(modules, filters, inputs, known)
    ):  # better a warning than nothing
        pinned, unread = known, ", ".join(sorted({_owner(name) for name in ways.unread}))
    channels = Channels(filters, inputs, bundles, pinned, direct, calls, ways, unread)
    order = list(calls)
    groups = [tuple(sorted(bundle.producers, key=order.index)) for bundle in bundles]
    channels.gates = gates(model, x, groups, direct, {n for n, m in modules.items() if in_groups(m)})
    return channels


def _pin_layers(nodes: _Nodes, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    tied = shared_weights(model)
    for name, module in modules.items():
        reason = weights_reason(module) or tied.get(name)
        if reason:
            nodes.pin(torch.cat([nodes.inputs[name], nodes.filters[name]]), reason, of=name)


def _pin_for_unread(nodes: _Nodes, modules: Mapping[str, nn.Module], unread: Mapping[str, nn.Module]) -> None:
    """Pin whatever may meet weights that the example does not reach: all channels whose number is theirs.

    Nobody can know who feeds an exit that is not taken, a layer of another method or the tensor of a loss,
    nor what the features of an input that was not given are added to.
    """
    widths: dict[tuple[int, bool], str] = {}  # (number of channels, may they be flattened maps?): who has it
    for name, owner in unread.items():
        known = mixes(owner) or in_groups(owner)
        if known and name.rpartition(".")[2] != "weight":
            continue
        for place, width in enumerate(sizes(owner) if known else _owner_shape(owner, name)):
            flattened = isinstance(owner, nn.Linear) and not place
            widths.setdefault((width, flattened), _owner(name) if known else name)
    for name, module in modules.items():
        if in_groups(module):
            continue
        for channels, side in zip(sizes(module), (nodes.inputs, nodes.filters), strict=True):
            for (width, flattened), reader in widths.items():
                if width == channels or (flattened and _flattened(width, channels)):
                    nodes.pin(side[name], UNREACHED.format(reader=reader, width=width))


def _owner(name: str) -> str:
    """ "gate.weight" -> "gate"."""
    return name.rpartition(".")[0] or name


def _owner_shape(owner: nn.Module, name: str) -> tuple[int, ...]:
    """The sizes of the tensor `name` of `owner` that may be numbers of channels."""
    return tuple(size for size in getattr(owner, name.rpartition(".")[2]).shape if size > 1)


def _flattened(width: int, channels: int) -> bool:
    """Whether `width` may be square maps of so many channels in a row."""
    pixels = width // channels
    return width == pixels * channels and math.isqrt(pixels) ** 2 == pixels


def _enter(nodes: _Nodes, edge: Feed, opaque: Mapping[str, str]) -> None:
    """Join what the edge joins, pin what it shows to be fixed."""
    target = nodes.inputs.get(edge.target)
    source = nodes.filters.get(edge.source)
    if target is None or source is None:
        if source is not None:
            kind = opaque.get(edge.target)
            reason = mixed_by(edge.target, kind) if kind else TO_OUTPUT
            nodes.pin(source[torch.cat([edge.filters, edge.mixed])], reason)
        elif target is not None:
            kind = opaque.get(edge.source)
            reason = f"its channels come from {edge.source}, a {kind}" if kind else "it reads the image"
            nodes.pin(target[edge.channels], reason)
        return
    nodes.pin(source[edge.mixed], f"what lies between {edge.source} and {edge.target} mixes its filters")
    nodes.joins.append(torch.stack([source[edge.filters], target[edge.channels]]))


def _bundles(
    modules: Mapping[str, nn.Module],
    filters: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    pinned: Mapping[int, tuple[str, str]],
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


_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, Channels]] = weakref.WeakKeyDictionary()


def is_known(model: nn.Module) -> bool:
    """Whether `channels_of` has looked at `model` before."""
    return model in _KNOWN


def forget(model: nn.Module) -> None:
    """`channels_of` looks at `model` anew next time: a forward may read what `signature` does not see."""
    _KNOWN.pop(model, None)


def channels_of(model: nn.Module, x: Tensor) -> Channels:
    """`analyse`, proved by `gkp.nets.channels.proof`, once for every network and shape of the example."""
    from gkp.nets.channels.proof import proved

    now = signature(model, x)
    known = _KNOWN.get(model)
    if known is None or known[0] != now:
        known = (now, proved(model, analyse(model, x), x))
        _KNOWN[model] = known
    return known[1]
