"""What each choice of the search changes, on the kernels of published networks; nothing is trained.

Every variant searches the same layers as the reference (`gkp.search.select` with its defaults). It is
described by the share of groups that keep the same set, by the share of kernels (filter and input
channel) that it keeps too, and by what its sets are worth relative to the reference's: by Eq. 3, and by
the released code's frozen form of it, which is what the reference searches for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gkp.nets import zoo
from gkp.search import Selection, select
from gkp.search.objective import Problem, grouped_kernel_distance, resolve_beta, set_cost
from gkp.study.facts import anatomy

NETWORKS = (
    ("resnet20", "authors"),
    ("resnet20", "akamaster"),
    ("resnet32", "akamaster"),
    ("resnet56", "akamaster"),
)
REFERENCE = "reference"
ALL = "all networks"
FROZEN_16 = resolve_beta("reference", 16, 9, 4, 1)  # of a 16-channel layer, where all sets can be listed


@dataclass(frozen=True)
class Variant:
    """One search: options of `select`, and the widest layer it is tried on (wider ones take too long).

    regroups: the groups are others too, so that neither sets nor costs can be compared group by group.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 64
    regroups: bool = False


VARIANTS = (
    Variant(REFERENCE),
    *(Variant(f"alpha {alpha:g}", {"alpha": alpha}) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)),
    Variant("beta as in Eq. 3", {"beta": "exact"}),
    Variant("beam width 1", {"beam_width": 1}),
    Variant("beam width 4", {"beam_width": 4}, channels=32),
    Variant("beam width 8", {"beam_width": 8}, channels=16),
    Variant("check step 1", {"check_step": 1}),
    Variant("check step 2", {"check_step": 2}),
    Variant("check step 4", {"check_step": 4}, channels=32),
    Variant("neighbours 0", {"neighbours": 0}),
    Variant("neighbours 2", {"neighbours": 2}, channels=16),
    Variant("decide by smoothness", {"decision": "smoothness"}),
    Variant("greedy, beta as in Eq. 3", {"strategy": "greedy"}),
    Variant("optimum of the frozen cost", {"strategy": "exact", "beta": FROZEN_16}, channels=16),
    Variant("optimum of Eq. 3", {"strategy": "exact", "beta": "exact"}, channels=16),
    Variant("smoothest kernels", {"strategy": "smoothest"}),
    Variant("roughest kernels", {"strategy": "roughest"}),
    Variant("random kernels", {"strategy": "random"}),
    Variant("4 groups", {"groups": 4}, regroups=True),
    Variant("16 groups", {"groups": 16}, regroups=True),
    Variant("smoothness by |a - b|", {"variant": "absolute"}, regroups=True),
    Variant("smoothness by (a - b)^2", {"variant": "quadratic"}, regroups=True),
    Variant("random grouping", {"grouping": "random"}, regroups=True),
)


def search_facts(
    networks: Iterable[tuple[str, str]] = NETWORKS, variants: Iterable[Variant] = VARIANTS
) -> dict[str, Any]:
    """{"searches": {title: {network or "all networks": numbers}}, "smoother": {network: ...}, "sets"}.

    numbers: layers, groups, same_groups and same_percent, shared_percent (kernels that the reference
    keeps too), eq3_percent and frozen_percent (the objective, larger is better, reference 100); None
    where the groups are others.
    smoother: percent of all sets that are smoother than the reference's, see `smoother_than_kept`.
    sets: how many sets a wide layer's percentage is sampled from.
    """
    variants = list(variants)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {variant.title: {} for variant in variants}
    smoother = {}
    for network, publisher in networks:
        layers = anatomy.layers(zoo.load_model(network, weights=publisher))
        name = f"{network} ({publisher})"
        references = {layer: _search(weight, {}) for layer, weight in layers.items()}
        smoother[name] = smoother_than_kept(layers, references)
        for variant in variants:
            tried = {layer: w for layer, w in layers.items() if w.shape[1] <= variant.channels}
            rows[variant.title][name] = [
                compare_layer(weight, references[layer], variant) for layer, weight in tried.items()
            ]
    searches: dict[str, Any] = {}
    for variant in variants:
        by_network = rows[variant.title]
        per = {name: summarise(layer_rows) for name, layer_rows in by_network.items()}
        per[ALL] = summarise([row for layer_rows in by_network.values() for row in layer_rows])
        searches[variant.title] = {"widest_layer": variant.channels, "networks": per}
    return {"searches": searches, "smoother": smoother, "sets": anatomy.MAX_SETS}


def titles(facts: Mapping[str, Any]) -> list[str]:
    """The searches of a recorded fact in the order of `VARIANTS`, which JSON does not keep."""
    order = {variant.title: place for place, variant in enumerate(VARIANTS)}
    return sorted(facts["searches"], key=lambda title: order.get(title, len(order)))


def compare_layer(weight: Tensor, reference: Selection, variant: Variant) -> dict[str, Any]:
    """One layer's numbers: groups, same (groups), kept and shared (kernels), eq3 and frozen (relative)."""
    selection = _search(weight, variant.options)
    ours, theirs = (kept_kernels(s, weight.shape[1]) for s in (selection, reference))
    kept, shared = int(ours.sum()), int((ours & theirs).sum())
    row: dict[str, Any] = {"groups": selection.groups, "kept": kept, "shared": shared}
    if variant.regroups:
        return row | {"same": None, "eq3": None, "frozen": None}
    row["same"] = int(anatomy.same_groups(selection, reference).sum())
    for name, beta in (("eq3", "exact"), ("frozen", "reference")):
        row[name] = objective(weight, selection, beta) / objective(weight, reference, beta)
    return row


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Layers' rows as one: groups and kernels are pooled, objectives are means over the layers."""
    groups, kept = (sum(row[key] for row in rows) for key in ("groups", "kept"))
    summary: dict[str, Any] = {"layers": len(rows), "groups": groups}
    summary |= dict.fromkeys(("same_groups", "same_percent", "eq3_percent", "frozen_percent"))
    if all(row["same"] is not None for row in rows):
        same = sum(row["same"] for row in rows)
        summary |= {"same_groups": same, "same_percent": round(100 * same / groups, 3)}
        for name in ("eq3", "frozen"):
            summary[f"{name}_percent"] = round(100 * sum(row[name] for row in rows) / len(rows), 3)
    return summary | {"shared_percent": round(100 * sum(row["shared"] for row in rows) / kept, 3)}


def kept_kernels(selection: Selection, channels: int) -> Tensor:
    """bool (O, channels): which input channels each filter keeps, rows in the order of the filters."""
    members = len(selection.filter_order) // selection.groups
    kept = torch.zeros(selection.groups, channels, dtype=torch.bool).scatter(1, selection.kept, True)
    return kept.repeat_interleave(members, 0)[selection.filter_order.argsort()]


def objective(weight: Tensor, selection: Selection, beta: str = "exact") -> float:
    """Eq. 3 of the kept sets, summed over the groups: larger is better. beta: "exact" or "reference"."""
    weight = weight.detach().double().cpu()
    order = selection.filter_order.view(selection.groups, -1)
    channels, keep = weight.shape[1], selection.kept.shape[1]
    value = resolve_beta(beta, channels, keep, 4, 1)  # 4: kept kernels when the reference freezes it
    smooth = weight.new_zeros(len(order), channels)  # no part of Eq. 3
    problem = Problem(grouped_kernel_distance(weight, order), smooth, keep, value, 1)
    return -float(set_cost(problem, selection.kept).sum())


def smoother_than_kept(layers: Mapping[str, Tensor], kept: Mapping[str, Selection]) -> dict[str, Any]:
    """Percent of all sets that are smoother than the kept one: mean and least group, and each layer's mean.

    All sets of a layer with 16 input channels, a sample of `anatomy.MAX_SETS` of a wider one.
    """
    shares = {}
    for name, weight in layers.items():
        draw = torch.Generator().manual_seed(0)
        shares[name] = 100 * anatomy.share_smoother(weight, kept[name], generator=draw)
    pooled = torch.cat(list(shares.values()))
    widths = sorted({weight.shape[1] for weight in layers.values()})
    by_width = {
        str(width): round(
            float(torch.cat([s for n, s in shares.items() if layers[n].shape[1] == width]).mean()), 3
        )
        for width in widths
    }
    return {
        "mean_percent": round(float(pooled.mean()), 3),
        "least_percent": round(float(pooled.min()), 3),
        "median_percent": round(float(pooled.median()), 3),
        "groups": len(pooled),
        "by_channels": by_width,
        "layers": {name: round(float(share.mean()), 3) for name, share in shares.items()},
    }


def _search(weight: Tensor, options: Mapping[str, Any]) -> Selection:
    return select(weight, **options, generator=torch.Generator().manual_seed(0))
