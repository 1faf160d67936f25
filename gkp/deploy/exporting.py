"""A pruned network as a file: in the form that ran fastest here, dense where no other was clearly faster."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.deploy import graphs, quantised, runtimes
from gkp.deploy.choice import GAIN, Choice, Setting, Times, choices, positive
from gkp.deploy.grouping import groupings, reordered
from gkp.deploy.timing import Timing, interleaved
from gkp.nets.channels.copying import copied
from gkp.nets.channels.layers import uncompiled
from gkp.nets.channels.running import default_input, run, seeded
from gkp.nets.deploy import folded
from gkp.pruners.common.weights_check import refuse_non_finite
from gkp.utils.files import atomic_write_text, writable_place

TOLERANCE = 1e-4  # of the logits' standard deviation
CLEAR = 0.85  # of the dense time: forms that win clearly, tried without the others
DENSE = "dense"


@seeded()
def export(
    model: nn.Module,
    path: str | Path,
    *,
    example_input: Tensor | None = None,
    runtime: str = "onnxruntime",
    batch: int = 1,
    threads: int | None = None,
    cache: str | Path | None = None,
    int8: bool = False,
    data: Any = None,
    rounds: int = 20,
) -> dict[str, Any]:
    """Write `model` to `path` in the fastest form that computes the same, and return the report.

    Every layer of grouped kernels is measured in its forms (`gkp.deploy.forms`), then the whole network with
    the forms that won and as a dense one; the fastest is shipped. Any network of one image tensor goes,
    pruned or not, by any method. The report also goes to `path` + ".json".

    path: ends in .onnx for "onnxruntime" and "openvino", in .pt2 for "torch" (torch.export.load reads it).
    example_input: (N, C, H, W); the CIFAR networks of `gkp.nets.models` need none.
    batch: images at once; the file takes just so many. threads: for it to be fast with, torch's by default.
    cache: a folder for the times of layers, which later calls read. int8: quantise for ONNX Runtime, and ship
    that where it is faster; data: a `gkp.data.Split`, calibration images first, then those whose accuracy
    the report tells. rounds: of each measurement.

    ValueError for what cannot be exported, for weights that are not finite, and where the file's logits
    differ from the model's by more than `TOLERANCE` of their standard deviation; nothing is written then.
    """
    runtimes.check(runtime)
    target = _target(path, runtime)
    threads = positive("threads", torch.get_num_threads() if threads is None else threads)
    setting = Setting(runtime, threads, positive("rounds", rounds), Times(cache))
    quantised.check(int8, data, runtime)
    model = copied(uncompiled(model)).cpu().float().eval().requires_grad_(False)
    refuse_non_finite(model)
    x = _images(default_input(model, example_input), positive("batch", batch))
    expected = run(model, x)
    if not isinstance(expected, Tensor):
        raise ValueError(f"the network returns a {type(expected).__name__}: wrap it to return its logits")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export.") as folder:
        layers, removed, files = _candidates(model, x, setting, Path(folder))
        with runtimes.threads_of(threads):
            runs = {name: runtimes.load(runtime, file, threads) for name, file in files.items()}
            times = interleaved(runs, x, rounds=setting.rounds)
            shipped = min(times, key=lambda name: times[name].least)
            if times[shipped].least >= GAIN * times[DENSE].least:
                shipped = DENSE
            error = _error(runs[shipped](x), expected, shipped)
            report: dict[str, Any] = {
                "runtime": runtime,
                "version": runtimes.version(runtime),
                "threads": threads,
                "input": list(x.shape),
                "shipped": shipped,
                "form_wins": shipped != DENSE,
                "network_ms": {name: _ms(timing) for name, timing in times.items()},
                "largest_error_of_logits_std": error,
                "removed_filters": removed,
                "layers": [asdict(layer) | {"taken": layer.taken} for layer in layers],
            }
            if int8:
                report["int8"], smaller = quantised.report(files[shipped], runs[shipped], x, data, setting)
                if report["int8"]["shipped"]:
                    files[shipped] = smaller
        _move(files[shipped], target)
    atomic_write_text(f"{target}.json", json.dumps(report, indent=1) + "\n")
    return report


def _candidates(
    model: nn.Module, x: Tensor, setting: Setting, folder: Path
) -> tuple[list[Choice], dict[str, int], dict[str, Path]]:
    """(choices of the layers, removed filters, {candidate: file}) of a network on the CPU."""
    runtime, grouped = setting.runtime, groupings(model)
    dense = folded(model, x).requires_grad_(False)
    graph = None if runtime == "torch" else graphs.exported(dense, x)
    runtimes.writer(runtime, dense, {}, x, graph)({}, _new(folder, DENSE, runtime))
    if runtime == "torch":
        plain = copied(model)
        runtimes.writer(runtime, plain, {}, x)({}, _new(folder, "as it is", runtime))
    network, grouped, removed = reordered(dense, grouped)
    if graph is not None:
        others = (name for name, _ in network.named_modules() if name not in graph.layers)
        if any(_changed(dense, network, name) for name in others):
            graph = graphs.exported(network, x)
        grouped = {name: grouping for name, grouping in grouped.items() if name in graph.layers}
    layers = choices(network, grouped, x, setting)
    write = runtimes.writer(runtime, network, grouped, x, graph)
    for name, forms in _combinations(layers, bool(removed)).items():
        write(forms, _new(folder, name, runtime))
    return layers, removed, {file.stem: file for file in sorted(folder.iterdir())}


def _combinations(layers: Sequence[Choice], removed: bool) -> dict[str, Mapping[str, str]]:
    """What is tried on the whole network beside the dense one: {name: forms of the layers}."""
    forms = {layer.layer: layer.taken for layer in layers if layer.taken != "dense"}
    clear = {layer.layer: layer.taken for layer in layers if layer.gain < CLEAR}
    combinations: dict[str, Mapping[str, str]] = {"unread filters removed": {}} if removed else {}
    if forms:
        combinations["forms"] = forms
    if clear and clear != forms:
        combinations["clear forms"] = clear
    return combinations


def _changed(one: nn.Module, other: nn.Module, name: str) -> bool:
    """Whether the own parameters of a module differ in two networks of one structure."""
    pairs = zip(
        one.get_submodule(name).parameters(recurse=False),
        other.get_submodule(name).parameters(recurse=False),
        strict=True,
    )
    return any(not torch.equal(a, b) for a, b in pairs)


def _new(folder: Path, name: str, runtime: str) -> Path:
    return folder / f"{name}{runtimes.SUFFIXES[runtime]}"


def _images(example: Tensor, batch: int) -> Tensor:
    """(batch, C, H, W): random numbers in the range of the example's, in [0, 1] where it has one value."""
    if example.dim() != 4 or not example.is_floating_point():
        raise ValueError(
            f"example_input has shape {tuple(example.shape)} and type {example.dtype}: give images "
            "(N, C, H, W) of floating-point numbers"
        )
    low, high = example.min().item(), example.max().item()
    low, high = (low, high) if high > low else (0.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, *example.shape[1:], generator=generator) * (high - low) + low


def _error(logits: Tensor, expected: Tensor, name: str) -> float:
    """Largest difference of the logits by their standard deviation; ValueError beyond `TOLERANCE`."""
    spread = float(expected.std(correction=0)) or float(expected.abs().max()) or 1.0
    same = logits.shape == expected.shape
    error = float((logits - expected).abs().max()) / spread if same else float("inf")
    if not error <= TOLERANCE:
        raise ValueError(
            f"the exported network ({name}) misses the model's logits by {error:.2g} of their standard "
            f"deviation, more than {TOLERANCE:g}: check that it gives one answer, or try another runtime"
        )
    return error


def _target(path: str | Path, runtime: str) -> Path:
    suffix = runtimes.SUFFIXES[runtime]
    if Path(path).suffix != suffix or not Path(path).stem.strip():
        raise ValueError(f"{path}: give a name that ends in {suffix}, which {runtime} reads")
    return writable_place(path)


def _ms(times: Timing) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(times).items()}


def _move(file: Path, target: Path) -> None:
    """Put the file, once it is on the disk, in place of what was there."""
    with open(file, "rb") as written:
        os.fsync(written.fileno())
    os.replace(file, target)
