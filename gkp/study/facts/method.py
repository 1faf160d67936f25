"""Checks of the method itself that need no training: search equality, the paper's cost figures, and others.

Each fact is a function that returns JSON-able numbers; `record_facts` stores them as a record, so that
the claims table reads them like every other number.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp.nets import cost, models, zoo
from gkp.nets.channels.surgery import kernel_layers, replace_kernels
from gkp.search import Selection, select
from gkp.search.objective import Problem, grouped_kernel_distance, kept_count, resolve_beta, set_cost
from gkp.search.smoothness import smoothness
from gkp.study.facts import ablations, attacked, explanations, timings
from gkp.study.runs.provenance import CODE, provenance
from gkp.study.runs.record import Fact
from gkp.study.runs.run import GROUPS, RATE
from gkp.study.runs.store import Store

GOLDEN = CODE / "expected" / "golden"
KINDS = ("macs", "params")
PAPER_TABLES = CODE / "expected" / "paper_cifar10.csv"
OPTIONS = (
    "groups",
    "rate",
    "beam_width",
    "check_step",
    "alpha",
    "beta",
    "neighbours",
    "outer_in_beam",
    "decision",
)
EXACTLY = {"arithmetic": "released"}  # to the last bits, which may decide between two sets


def search_equality() -> dict[str, Any]:
    """How many layers keep the kernels of the released search: 24 random layers, 18 of the ResNet-20."""
    cases = json.loads((GOLDEN / "kept_kernels_random.json").read_text("utf-8"))
    random_equal = 0
    for case in cases:
        options = {name: case[name] for name in OPTIONS} | EXACTLY
        shape = (case["out_channels"], case["in_channels"], 3, 3)
        generator = np.random.RandomState(case["weight_seed"])  # noqa: NPY002 - the golden file's generator
        weight = torch.from_numpy((generator.standard_normal(shape) * 0.1).astype(np.float32))
        random_equal += equal(weight, select(weight, **options), case, options)
    layers = json.loads((GOLDEN / "kept_kernels_resnet20_ba.json").read_text("utf-8"))
    state = zoo.load_model("resnet20", weights="authors").state_dict()
    options = {"groups": GROUPS, "rate": RATE, **EXACTLY}
    layer_equal, seconds = 0, 0.0
    for name, golden in layers.items():
        weight = state[_our_name(name)]
        started = time.perf_counter()
        selection = select(weight, **options)
        seconds += time.perf_counter() - started
        layer_equal += equal(weight, selection, golden, options)
    return {
        "random_equal": random_equal,
        "random_layers": len(cases),
        "resnet20_equal": layer_equal,
        "resnet20_layers": len(layers),
        "resnet20_seconds": round(seconds, 3),
    }


def equal(weight: Tensor, selection: Selection, golden: dict[str, Any], options: dict[str, Any]) -> bool:
    """Same filter order and kept sets; a set that costs exactly the same (to 1e-9) is as right."""
    if selection.filter_order.tolist() != golden["filter_order"]:
        return False
    kept = torch.tensor(golden["kept"])
    if torch.equal(selection.kept, kept):
        return True
    weight, order = weight.detach().double(), selection.filter_order.view(options["groups"], -1)
    keep, neighbours = kept_count(weight.shape[1], options["rate"]), options.get("neighbours", 1)
    step = options.get("check_step", 3)
    first = 1 + step if options.get("outer_in_beam", True) and step < keep else keep
    beta = resolve_beta(options.get("beta", "reference"), weight.shape[1], keep, first, neighbours)
    problem = Problem(
        grouped_kernel_distance(weight, order), smoothness(weight)[order].sum(1), keep, beta, neighbours
    )
    return torch.allclose(set_cost(problem, selection.kept), set_cost(problem, kept), rtol=0, atol=1e-9)


def _our_name(name: str) -> str:
    """stage_1.0.conv_a -> layer1.0.conv1.weight."""
    stage, block, conv = name.split(".")
    return f"layer{stage[-1]}.{block}.conv{'ab'.index(conv[-1]) + 1}.weight"


def cost_table() -> dict[str, Any]:
    """Every MACs and parameter count that the paper prints for SR-GKP and the unpruned CIFAR-10 networks."""
    rows = [_cost_row(*printed) for printed in printed_costs(PAPER_TABLES)]
    totals: dict[str, Any] = {}
    for method in ("Unpruned", "SR-GKP"):
        of_method = [row for row in rows if row["method"] == method]
        equal = {f"{kind}_equal": sum(row[f"{kind}_equal"] for row in of_method) for kind in KINDS}
        totals[method] = {"networks": len(of_method), **equal}
    return {"rows": rows, **totals}


def _cost_row(network: str, rate: float, printed: dict[str, str]) -> dict[str, Any]:
    """The printed numbers beside ours, rounded to as many decimals."""
    counted = paper_cost(network, rate)
    row: dict[str, Any] = {"network": network, "method": "SR-GKP" if rate else "Unpruned", "rate": rate}
    for kind in KINDS:
        ours = f"{getattr(counted, kind) / 1e6:.{_decimals(printed[kind])}f}"
        row |= {f"{kind}_paper": printed[kind], kind: ours, f"{kind}_equal": ours == printed[kind]}
    return row


def printed_costs(path: Path) -> list[tuple[str, float, dict[str, str]]]:
    """(network, rate, {"macs", "params"} as printed, in millions), once per network and rate."""
    costs: dict[tuple[str, float], dict[str, str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["method"] in ("SR-GKP", "Unpruned") and row["macs_m"]:
                rate = float(row["pruning_rate_percent"]) / 100 if row["method"] == "SR-GKP" else 0.0
                network = row["network"].lower().replace("-", "")
                costs.setdefault((network, rate), {"macs": row["macs_m"], "params": row["params_m"]})
    return [(network, rate, printed) for (network, rate), printed in sorted(costs.items())]


def paper_cost(network: str, rate: float) -> cost.Cost:
    """Cost of a CIFAR network after grouped kernel pruning, in the paper's convention.

    Only how many kernels stay matters here, so the first ones do; and no weight may be zero, because
    the paper's convention counts those that are not.
    """
    model = models.create(network)
    if rate:
        layers, _ = kernel_layers(model, GROUPS)
        model = replace_kernels(model, {name: _first_kernels(conv, rate) for name, conv in layers.items()})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    return cost.count(model, torch.zeros(1, 3, 32, 32), convention="paper")


def _first_kernels(conv: nn.Conv2d, rate: float) -> Selection:
    kept = torch.arange(kept_count(conv.in_channels, rate)).repeat(GROUPS, 1)
    return Selection(torch.arange(conv.out_channels), kept, torch.zeros(GROUPS))


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


FACTS: dict[str, Callable[[], dict[str, Any]]] = {
    "search-equality": search_equality,
    "cost-table": cost_table,
    "search-ablations": ablations.search_facts,
    "pruning-time": timings.pruning_time,
    "pruning-time-vgg16": lambda: timings.pruning_time(timings.VGG, repeats=1),
    "method-time": timings.method_time,
    "latency": timings.latency,
    "attacked-digit": attacked.attacked_digit,
    "robustbench": attacked.robustbench,
    "explanations": explanations.explanations,
    "repeated": lambda: attacked.repeated("cifar10-resnet56-57"),
}


# These read what was trained, and so come after a suite's runs.
OF_RECORDS = ("explanations", "repeated")


def record_facts(name: str, suite: str, store: Store) -> Fact:
    """The record of a fact: read when it exists, else computed and written."""
    known = store.fact(suite, name)
    if known is not None:
        return known
    started = time.monotonic()
    facts = FACTS[name]()
    about = {**provenance("cpu"), "seconds": round(time.monotonic() - started, 1)}
    fact = Fact.of(name, suite, facts, about)
    store.write(fact)
    return fact
