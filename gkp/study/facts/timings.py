"""How long pruning takes and what it saves: seconds of the pruning step, latency of the pruned network.

Times belong to one machine at one moment: compare those of one record with one another, not with others.
To measure again on a quiet machine, delete results/cost/ and run `python -m gkp run --suite cost`.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from gkp import pruners
from gkp.nets import cost, grouped, zoo
from gkp.search import grouping
from gkp.study.facts import anatomy
from gkp.study.runs.run import GROUPS, RATE
from gkp.study.runs.suites.stages import EARLY

RESNETS = (
    ("resnet20", "authors"),
    ("resnet32", "akamaster"),
    ("resnet56", "akamaster"),
    ("resnet110", "random"),  # the time hardly depends on the values, and this needs no download
)
VGG = (("vgg16", "random"),)
LATENCY_NETWORKS = ("resnet20",)
BATCHES = (1, 64)
GROUPED, GROUPED_EARLY = "pruned, grouped", "pruned 6:3:1 (sr-gkp-b), grouped"
# At the same rate, so at the same multiply-adds but for rounding; the second as sr-gkp-b over the stages.
FILTERS, FILTERS_EARLY = "filters removed (l1)", "filters removed 6:3:1 (l1)"
OTHER_METHODS = {GROUPED_EARLY: "sr-gkp-b", FILTERS: "l1", FILTERS_EARLY: "l1"}  # not pruned by sr-gkp
REPEATS = 3
ROUNDS = 9  # at batch 64; small batches get ten times as many


def pruning_time(networks: Iterable[tuple[str, str]] = RESNETS, repeats: int = REPEATS) -> dict[str, Any]:
    """{"threads", "repeats", "networks": {name: {"weights", "layers", "seconds", "least", "most", ...}}}.

    seconds: the median of the whole pruning step by SR-GKP, from the network to its pruned copy;
    grouping_seconds: smoothness snaking alone.
    """
    times = {}
    for name, weights in networks:
        model = _load(name, weights)
        layers = anatomy.layers(model)
        times[name] = {
            "weights": weights,
            "layers": len(layers),
            **repeated(partial(prune, model, "sr-gkp"), repeats),
            "grouping_seconds": repeated(partial(snake, layers), repeats)["seconds"],
        }
    return {"threads": torch.get_num_threads(), "repeats": repeats, "networks": times}


def method_time(repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of the pruning step of every one-shot method that needs no data, on the authors' ResNet-20."""
    model, times = _load("resnet20", "authors"), {}
    for name in pruners.methods():
        if pruners.get(name).needs == "nothing" and pruners.get(name).schedule == "one-shot":
            times[name] = repeated(partial(prune, model, name), repeats)
    return {"threads": torch.get_num_threads(), "repeats": repeats, "rate": RATE, "methods": times}


def latency(
    networks: Iterable[str] = LATENCY_NETWORKS, batches: Iterable[int] = BATCHES, rounds: int = ROUNDS
) -> dict[str, Any]:
    """{"threads", "networks": {name: {"batch N": {execution: {"seconds", "low", "high", "ratio"}}}}}.

    Untrained networks, because time does not depend on the values; low and high are quartiles over
    the rounds, ratio is that of the medians to the unpruned network's.
    """
    batches, table = list(batches), {}
    for name in networks:
        variants = executions(_load(name, "random"))
        by_batch = {}
        for batch in batches:
            images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            measured = cost.latency(variants, images, rounds=rounds if batch > 8 else 10 * rounds)
            dense = measured["unpruned"].median
            by_batch[f"batch {batch}"] = {
                title: {
                    "seconds": round(timing.median, 6),
                    "low": round(timing.low, 6),
                    "high": round(timing.high, 6),
                    "ratio": round(timing.median / dense, 3),
                }
                for title, timing in measured.items()
            }
        table[name] = by_batch
    return {"threads": torch.get_num_threads(), "rounds": rounds, "networks": table}


def executions(model: nn.Module) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The unpruned network, the ways to run the pruned one (they compute the same), L1 filter pruning.

    And both, the grouped kernels and the filters, by the profile 6:3:1 of `sr-gkp-b`.
    """
    pruned = prune(model, "sr-gkp", strategy="smoothest").eval()  # which kernels stay costs no time
    early = prune(model, "sr-gkp-b", strategy="smoothest").eval()
    return {
        "unpruned": model,
        "pruned, zeros stored": grouped.to_dense(pruned),
        "pruned, masked dense": pruned,
        GROUPED: grouped.set_execution(copy.deepcopy(pruned), "grouped"),
        "pruned, grouped, permutations folded": grouped.set_execution(
            grouped.fold_permutations(pruned), "grouped"
        ),
        GROUPED_EARLY: grouped.set_execution(early, "grouped"),
        FILTERS: prune(model, "l1").eval(),
        FILTERS_EARLY: prune(model, "l1", profile=EARLY).eval(),
    }


def prune(model: nn.Module, method: str, **options: Any) -> nn.Module:
    """One pruning step as the paper's main results have it."""
    example = torch.zeros(1, 3, 32, 32)
    return pruners.prepare(model, method, groups=GROUPS, example_input=example, data=None, **options)(RATE)


def snake(layers: dict[str, torch.Tensor]) -> None:
    """The grouping stage alone, over all layers."""
    for weight in layers.values():
        grouping.snaking(weight, GROUPS)


def repeated(step: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median, least and most seconds of `step`, called once more before, so that imports do not count."""
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {
        "seconds": round(statistics.median(times), 4),
        "least": round(min(times), 4),
        "most": round(max(times), 4),
    }


def _load(name: str, weights: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.load_model(name, weights=weights)
