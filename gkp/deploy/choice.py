"""The fastest form of each layer, measured on this machine in the runtime that will run it."""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.deploy import graphs, runtimes
from gkp.deploy.forms import forms_of, in_forms, span
from gkp.deploy.grouping import Grouping
from gkp.deploy.timing import interleaved, processor
from gkp.nets.channels.replacement import channels_last
from gkp.nets.grouped_layers import window
from gkp.utils.files import atomic_write_text
from gkp.utils.progress import each_shown
from gkp.utils.whole import is_whole

GAIN = 0.97  # of the dense time: what a form must at least come down to
NEIGHBOURS = 16  # channels at the far ends of the 1x1 convolutions around a measured one
CACHE = "forms.json"


class Times:
    """Milliseconds of each form by what was measured; kept in a file of `folder` where one is given.

    Processes and machines may share the folder: times that two write at once, of which one is lost, are
    measured again. ValueError for a file that is no such table.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.file = None if folder is None else Path(folder) / CACHE
        self.known: dict[str, dict[str, float]] = self._stored()

    def _stored(self) -> dict[str, dict[str, float]]:
        """What the file holds now."""
        if self.file is None or not self.file.exists():
            return {}
        try:
            stored = json.loads(self.file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.file} is damaged ({error}): delete it, and measure again") from error
        if not isinstance(stored, dict):
            raise ValueError(f"{self.file} is no table of times: delete it, or give another cache folder")
        return stored

    def add(self, key: str, ms: dict[str, float]) -> None:
        self.known |= {key: ms}
        if self.file is not None:
            self.known = self._stored() | self.known  # with what others measured meanwhile
            atomic_write_text(self.file, json.dumps(self.known, indent=1) + "\n")


@dataclass(frozen=True)
class Setting:
    """What runs: the runtime, its threads, the rounds of each measurement, and the times known so far."""

    runtime: str
    threads: int
    rounds: int = 20
    times: Times = field(default_factory=Times)

    def key(self, layer: nn.Module, grouping: Grouping, shape: torch.Size) -> str:
        """All that the times of a layer depend on, in words; shape: of its input, with the batch."""
        parts = [
            f"{self.runtime} {runtimes.version(self.runtime)}",
            f"{processor()} {torch.backends.cpu.get_cpu_capability()}",
            f"{self.threads} threads, {layer}, input {tuple(shape)}",
            f"filters {[len(f) for f in grouping.filters]}",
            f"channels {[f'{len(c)} in a row' if span(c) else len(c) for c in grouping.channels]}",
            "filters in order" if grouping.back is None else "filters put in order",
        ]
        return "; ".join(parts)


@dataclass(frozen=True)
class Choice:
    """One layer: what it is, the shape of its input, milliseconds of each form, and the one taken."""

    layer: str
    kind: str
    shape: list[int]
    groups: int
    keep: int
    ms: dict[str, float]

    @property
    def taken(self) -> str:
        best = min(self.ms, key=lambda form: self.ms[form])
        return best if self.ms[best] < GAIN * self.ms["dense"] else "dense"

    @property
    def gain(self) -> float:
        """Time of the form taken, a share of the dense one's."""
        return self.ms[self.taken] / self.ms["dense"]


def choices(network: nn.Module, grouped: Mapping[str, Grouping], x: Tensor, setting: Setting) -> list[Choice]:
    """The choice of every layer named in `grouped` of the dense `network`, which takes x (N, C, H, W)."""
    per_layer, shapes = [], input_shapes(network, grouped, x)
    shares = {name: work(network, name, shape) for name, shape in shapes.items()}
    for name, shape in each_shown("export", shapes, shares):
        layer, grouping = network.get_submodule(name), grouped[name]
        ms = measured(layer, grouping, shape, setting)
        keep = max(len(channels) for channels in grouping.channels)
        per_layer.append(Choice(name, describe(layer), list(shape), len(grouping.filters), keep, ms))
    return per_layer


def work(network: nn.Module, name: str, shape: torch.Size) -> float:
    """How much a layer that reads `shape` computes, to tell the time left: multiply-adds at stride 1."""
    weight = network.get_submodule(name).get_parameter("weight")
    return float(weight.numel() * (shape.numel() // weight.shape[1]))


def input_shapes(network: nn.Module, names: Mapping[str, Any], x: Tensor) -> dict[str, torch.Size]:
    """Shape of what each named layer reads when the network takes x; layers that run once alone."""
    calls: dict[str, list[torch.Size]] = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: calls.setdefault(name, []).append(inputs[0].shape)
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: calls[name][0] for name in names if len(calls.get(name, ())) == 1}


def measured(layer: nn.Module, grouping: Grouping, shape: torch.Size, setting: Setting) -> dict[str, float]:
    """Milliseconds of each form of a dense `layer`, the least of interleaved rounds, or as read.

    A convolution stands between two 1x1 convolutions to and from a few channels: from its neighbours come the
    layouts that a runtime computes in, and what it costs a form to leave them.
    """
    key = setting.key(layer, grouping, shape)
    if key not in setting.times.known:
        network, x = _probe(layer, shape)
        grouped = {"layer": grouping}
        variants: dict[str, runtimes.Run] = {}
        with tempfile.TemporaryDirectory() as folder, runtimes.threads_of(setting.threads):
            for form in forms_of(layer, grouping):
                if setting.runtime == "torch":  # its programs run the same operators, and take long to make
                    variants[form] = in_forms(network, grouped, {"layer": form})
                    continue
                path, graph = Path(folder) / f"{form}.onnx", graphs.chain(network, x)
                runtimes.writer(setting.runtime, network, grouped, x, graph)({"layer": form}, path)
                variants[form] = runtimes.load(setting.runtime, path, setting.threads)
            times = interleaved(variants, x, rounds=setting.rounds)
        setting.times.add(key, {form: timing.least for form, timing in times.items()})
    return dict(setting.times.known[key])


def _probe(layer: nn.Module, shape: torch.Size) -> tuple[nn.Sequential, Tensor]:
    """The layer among neighbours, all in its layout, and an input; random, by a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not isinstance(layer, nn.Conv2d):
            return nn.Sequential(OrderedDict(layer=layer)).eval(), torch.rand(shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            before=nn.Conv2d(NEIGHBOURS, layer.in_channels, 1),
            layer=layer,
            after=nn.Conv2d(layer.out_channels, NEIGHBOURS, 1),
        )
        x = torch.rand(shape[0], NEIGHBOURS, *shape[2:])
    network = nn.Sequential(layers).eval()
    if channels_last(layer.weight):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, x


def positive(name: str, value: Any) -> int:
    """`value`; ValueError unless it is a positive whole number."""
    if not is_whole(value):
        raise ValueError(f"{name}={value!r}: give a positive whole number, fixed for the file")
    return value


def describe(layer: nn.Module) -> str:
    """The layer's kind and size: "3x3, 64 to 128, stride 2"."""
    if not isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.get_parameter("weight").shape
        return f"linear, {inputs} to {outputs}"
    of = window(layer)
    height, width = of["kernel_size"]
    text = f"{height}x{width}, {layer.in_channels} to {layer.out_channels}"
    text += "" if of["stride"] == (1, 1) else f", stride {of['stride'][0]}"
    text += "" if of["dilation"] == (1, 1) else f", dilation {of['dilation'][0]}"
    return text + ("" if of["padding"] == (height // 2, width // 2) else f", padding {of['padding']}")
