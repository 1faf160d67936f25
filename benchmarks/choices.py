"""What other choices of kernels are worth by Eq. 3: sets that groups share, and the proved optimum."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gkp.nets import zoo
from gkp.search import Selection, exact, select
from gkp.search.objective import set_cost
from gkp.search.optimality import eq3_problem
from gkp.study.facts import ablations, anatomy

BETAS = ("reference", "exact")  # the released code's, frozen at its first use, and Eq. 3's
SHARES = (0.0, 0.01, 0.05, 0.1)
PROVED_LAYERS = ("layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2", "layer2.2.conv1")  # 32 input channels


def authors_layers() -> dict[str, Tensor]:
    """Name -> weight of the 18 layers of the authors' ResNet-20."""
    return anatomy.layers(zoo.load_model("resnet20", weights="authors"))


def sharing() -> list[dict[str, Any]]:
    """A row for each beta and share, of all layers together, beside share 0 with the same beta.

    sets: mean number of distinct sets of a layer. eq3_percent: Eq. 3 (larger is better), mean and least of
    the layers. changed_percent: of the kept kernels.
    """
    layers = authors_layers()
    rows = []
    for beta in BETAS:
        own = {name: select(weight, beta=beta) for name, weight in layers.items()}
        for share in SHARES:
            found = {name: select(weight, beta=beta, share=share) for name, weight in layers.items()}
            rows.append({"beta": beta, "share": share, **_price(layers, own, found)})
    return rows


def _price(
    layers: dict[str, Tensor], own: dict[str, Selection], found: dict[str, Selection]
) -> dict[str, float]:
    worth, sets, kept, same = [], [], 0, 0
    for name, weight in layers.items():
        worth.append(ablations.objective(weight, found[name]) / ablations.objective(weight, own[name]))
        sets.append(len(found[name].kept.unique(dim=0)))
        ours, theirs = (ablations.kept_kernels(each[name], weight.shape[1]) for each in (found, own))
        kept, same = kept + int(ours.sum()), same + int((ours & theirs).sum())
    return {
        "layers": len(layers),
        "sets": round(sum(sets) / len(sets), 3),
        "eq3_percent": round(100 * sum(worth) / len(worth), 3),
        "eq3_least_percent": round(100 * min(worth), 3),
        "changed_percent": round(100 * (1 - same / kept), 3),
    }


def optimality(seconds: float = 60.0) -> dict[str, Any]:
    """How much more than the least cost of Eq. 3 the beam's sets cost, in percent of it, group by group.

    seconds: for the proof of each group. rows: one per layer; `gap_percent` {beta: of each group}; `proved`
    groups; `open_percent`, how much lower than known the least cost may be where it is not proved.
    """
    layers = authors_layers()
    rows = []
    for name in PROVED_LAYERS:
        weight, started = layers[name], time.perf_counter()
        found = {beta: select(weight, beta=beta) for beta in BETAS}
        problem = eq3_problem(weight, found["exact"])
        optimum = exact.solve(problem, seconds)
        gap = {
            beta: 100 * (set_cost(problem, each.kept) - optimum.cost) / optimum.cost.abs()
            for beta, each in found.items()
        }
        rows.append(
            {
                "layer": name,
                "channels": weight.shape[1],
                "groups": len(optimum.kept),
                "proved": int(optimum.proved.sum()),
                "open_percent": round(100 * float((optimum.gap * ~optimum.proved).max()), 3),
                "gap_percent": {beta: [round(each, 3) for each in own.tolist()] for beta, own in gap.items()},
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    pooled = {
        beta: torch.tensor([each for row in rows for each in row["gap_percent"][beta]]) for beta in BETAS
    }
    return {
        "layers": rows,
        "groups": sum(row["groups"] for row in rows),
        "proved": sum(row["proved"] for row in rows),
        "mean_gap_percent": {beta: round(float(own.mean()), 3) for beta, own in pooled.items()},
        "most_gap_percent": {beta: round(float(own.max()), 3) for beta, own in pooled.items()},
    }
