"""How much faster pruned networks run: python benchmarks/deployment.py --network resnet20 --batch 1

Dense, SR-GKP and filter pruning (l1) at the same multiply-adds, each exported by `gkp.export`, then run in
turns in one process. Weights and, by default, kernels are random: the time does not depend on weights, and
on kernels only where filters that no group reads are removed ("removed_filters").
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import gkp
from gkp import deploy, pruners
from gkp.deploy import runtimes
from gkp.deploy.timing import rounds_of, summary
from gkp.nets import cost, models
from gkp.nets.grouped_base import GroupedKernels

RATE = 0.4375
BATCHES = {
    "resnet50": (1, 16),
    "vgg16_bn": (1, 16),
    "resnet20": (1, 64),
    "resnet56": (1, 64),
    "vgg16": (1, 64),
}
MATRIX, COPIED = 1536, 1 << 26  # rows of the product, numbers of the copy, with which the machine is measured


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of `gkp.nets.models`, else torchvision's, with random weights; one image of its size."""
    torch.manual_seed(0)
    if name in models.names():
        return models.create(name).eval(), torch.rand(1, 3, 32, 32)
    return torchvision.models.get_model(name).eval(), torch.rand(1, 3, 224, 224)


def measure(
    name: str,
    batch: int,
    runtime: str,
    *,
    groups: Any = "auto",
    strategy: str = "random",
    threads: int = 1,
    rounds: int = 30,
    cache: Path | None = None,
) -> dict[str, Any]:
    """One row: multiply-adds, milliseconds, and times by the dense network's, of each pruned network.

    groups: "auto" for `gkp.deploy.fastest_groups`, or what `gkp.prune` takes. rounds: of the networks, of
    each export's candidates and layers.
    """
    dense, x = network(name)
    if groups == "auto":
        common: dict[str, Any] = {"threads": threads, "cache": cache, "rounds": max(3, rounds // 2)}
        groups = deploy.fastest_groups(dense, RATE, x, runtime, batch, **common)
    ours = gkp.prune(dense, groups=groups, rate=RATE, strategy=strategy, example_input=x)
    macs = cost.count(ours, x).macs
    cut = pruners.prepare(dense, "l1", example_input=x)
    filters, rate = pruners.match_macs(dense, cut, macs, example_input=x, tolerance=math.inf)
    networks = {"dense": dense, "sr-gkp": ours, "l1": filters}
    reports, runs = {}, {}
    with tempfile.TemporaryDirectory() as folder, runtimes.threads_of(threads):
        for title, net in networks.items():
            path = Path(folder) / f"{title}{runtimes.SUFFIXES[runtime]}"
            options = {"example_input": x, "runtime": runtime, "batch": batch, "rounds": rounds}
            reports[title] = gkp.export(net, path, **options, threads=threads, cache=cache)
            runs[title] = runtimes.load(runtime, path, threads)
        times = rounds_of(runs, torch.rand(batch, *x.shape[1:]), rounds=rounds)
    return {
        "network": name,
        "batch": batch,
        "runtime": runtime,
        "version": runtimes.version(runtime),
        "threads": threads,
        "rounds": rounds,
        "groups": groups,
        "l1_rate": rate,
        "macs": {title: cost.count(net, x).macs for title, net in networks.items()},
        "ms": {title: asdict(summary(each)) for title, each in times.items()},
        "of_dense": {title: _of_dense(times, title) for title in networks if title != "dense"},
        "shipped": {title: report["shipped"] for title, report in reports.items()},
        "removed_filters": sum(reports["sr-gkp"]["removed_filters"].values()),
        "layers": reports["sr-gkp"]["layers"],
        "times": times,
    }


def _of_dense(times: Mapping[str, list[float]], title: str) -> dict[str, float]:
    """The least time by the dense network's least, and the quartiles of the rounds' ratios."""
    ratios = summary([a / b for a, b in zip(times[title], times["dense"], strict=True)])
    return asdict(ratios) | {"least": min(times[title]) / min(times["dense"])}


def machine(threads: int = 1) -> dict[str, float]:
    """Operations (multiplications and additions) and bytes per second: a large product, a large copy."""
    one, other = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    source, target = torch.rand(COPIED), torch.empty(COPIED)
    with runtimes.threads_of(threads):
        product = min(_seconds(lambda: one @ other) for _ in range(7))
        copy = min(_seconds(lambda: target.copy_(source)) for _ in range(7))
    return {"operations": 2 * MATRIX**3 / product, "bytes": 2 * 4 * COPIED / copy}


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def roofline(model: nn.Module, x: Tensor, of: Mapping[str, float]) -> list[dict[str, Any]]:
    """What bounds each convolution and linear layer from below on a machine, `of` as `machine` gives it.

    Per layer its operations, the bytes that must move at least once (weights, input, output; for grouped
    kernels the gathered channels, written and read, too), operations per byte, and milliseconds: the larger
    of computing at the peak and moving at full bandwidth.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        weight = layer.get_parameter("weight")
        numbers = weight.numel() + x.numel() + out.numel()
        if isinstance(layer, GroupedKernels):
            numbers += 2 * layer.kept.numel() * (x.numel() // x.shape[1])
        outputs = out.numel() // weight.shape[0]  # positions of all images
        operations, moved = 2 * weight.numel() * outputs, 4 * numbers
        computing, moving = operations / of["operations"], moved / of["bytes"]
        rows.append(
            {
                "layer": name,
                "operations": operations,
                "bytes": moved,
                "intensity": operations / moved,
                "ms": 1e3 * max(computing, moving),
                "bound": "computing" if computing > moving else "moving",
            }
        )

    handles = [
        module.register_forward_hook(lambda layer, inputs, out, name=name: add(name, layer, inputs[0], out))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | GroupedKernels)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return rows


def least_ratio(name: str, batch: int, groups: int, of: Mapping[str, float]) -> float:
    """The time of SR-GKP by the dense one, both at the roofline, with all channels gathered.

    A runtime can come below it: by Winograd's algorithm, which multiplies less, and without the filters that
    no group reads.
    """
    dense, x = network(name)
    ours = gkp.prune(dense, groups=groups, rate=RATE, strategy="random", example_input=x)
    images = x.expand(batch, -1, -1, -1)
    new, old = (sum(row["ms"] for row in roofline(net, images, of)) for net in (ours, dense))
    return new / old


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=BATCHES, help="repeatable; all without it")
    parser.add_argument("--runtime", action="append", choices=runtimes.SUFFIXES, help="repeatable")
    parser.add_argument("--batch", action="append", type=int, help="repeatable; by the network without it")
    parser.add_argument("--groups", default="auto", help="a number, or auto: measured for each layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cache", type=Path, help="a folder for the times of layers")
    given = parser.parse_args()
    groups = "auto" if given.groups == "auto" else int(given.groups)
    common = {"groups": groups, "threads": given.threads, "rounds": given.rounds, "cache": given.cache}
    print(json.dumps({"machine": machine(given.threads)}))
    for name, runtime in itertools.product(given.network or BATCHES, given.runtime or runtimes.SUFFIXES):
        for batch in given.batch or BATCHES[name]:
            print(json.dumps(measure(name, batch, runtime, **common)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
