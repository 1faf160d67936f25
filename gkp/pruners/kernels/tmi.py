"""TMI-GKP: how much filters grew in training decides which clustering of filters is used."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gkp.pruners.common.group_numbers import Groups, groups_of
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.kernels.grouped import greedy_cut
from gkp.pruners.kernels.layers import layers_to_prune

NEAREST = 16  # neighbours in the graph of the spectral clustering
STARTS = 5
RADII = 20  # quantiles of the distances that are tried as DBSCAN's radius

Points = NDArray[np.float64]  # (filters, features)
Labels = NDArray[np.int64]  # (filters,) in 0..groups-1, every group as large as the others


def magnitude_increase(final: Tensor, snapshot: Tensor) -> Points:
    """Sum over a filter of | |w at the end| - |w in the snapshot| |: (O, I, kh, kw) twice -> (O,)."""
    return (final.abs() - snapshot.abs()).abs().double().sum((1, 2, 3)).cpu().numpy()


def nearest_with_room(points: Points, centres: Points) -> Labels:
    """Assign equally many points to each centre, with the least sum of squared distances."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    size = len(points) // len(centres)
    seats = np.repeat(cdist(points, centres, "sqeuclidean"), size, axis=1)  # a centre has `size` seats
    return linear_sum_assignment(seats)[1] // size


def equal_k_means(points: Points, groups: int) -> Labels:
    """k-means with clusters of equal size, the best of `STARTS` runs from k-means++ centres, seeded."""
    random = np.random.default_rng(0)
    runs: list[tuple[float, Labels]] = []
    for _ in range(STARTS):
        labels = nearest_with_room(points, _spread(points, groups, random))
        for _ in range(100):
            centres = np.stack([points[labels == group].mean(0) for group in range(groups)])
            before, labels = labels, nearest_with_room(points, centres)
            if np.array_equal(before, labels):
                break
        runs.append((float(((points - centres[labels]) ** 2).sum()), labels))
    return min(runs, key=lambda run: run[0])[1]


def _spread(points: Points, groups: int, random: np.random.Generator) -> Points:
    """k-means++: each centre is a point drawn in proportion to its squared distance from those before."""
    from scipy.spatial.distance import cdist

    centres = [int(random.integers(len(points)))]
    while len(centres) < groups:
        squared = cdist(points, points[centres], "sqeuclidean").min(1) + 1e-12  # equal ones too
        centres.append(int(random.choice(len(points), p=squared / squared.sum())))
    return points[centres]


def kernel_pca(filters: Points, groups: int) -> Labels:
    """Equal k-means on kernel principal components, kernel (x.y)^2 / 2 + exp(-||x-y||^2 / features) / 2."""
    from scipy.spatial.distance import cdist

    kernel = (filters @ filters.T) ** 2 / 2
    kernel += np.exp(-cdist(filters, filters, "sqeuclidean") / filters.shape[1]) / 2
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean()
    values, vectors = np.linalg.eigh(centred)
    return equal_k_means(vectors * np.sqrt(values.clip(0)), groups)


def spectral(filters: Points, groups: int) -> Labels:
    """Equal k-means on the first eighth of the eigenvectors of a neighbourhood graph's random walk.

    Filters are joined when each is among the 16 nearest of the other by cosine distance. Layers of up to
    17 filters are fully joined, as in the release: the eigenvectors then say nothing.
    """
    from scipy.spatial.distance import cdist

    cosine = cdist(_unit(filters), _unit(filters), "sqeuclidean")
    near = np.zeros_like(cosine, dtype=bool)
    order = cosine.argsort(1, kind="stable")[:, : NEAREST + 1]
    np.put_along_axis(near, order, True, axis=1)
    graph = (near & near.T | np.eye(len(near), dtype=bool)).astype(float)
    root = np.sqrt(graph.sum(1))
    values, vectors = np.linalg.eigh(np.eye(len(graph)) - graph / root / root[:, None])
    walk = vectors[:, : max(1, len(graph) // 8)] / root[:, None]
    return equal_k_means(walk / np.linalg.norm(walk, axis=0), groups)


def density(filters: Points, groups: int) -> Labels:
    """DBSCAN on unit filters; its largest clusters are then given equally many filters each.

    Radius and smallest cluster are chosen by rank: number of labels nearest to groups + 1 (one is
    noise), and half as much for even sizes. Missing clusters start at the filters farthest from the rest.
    """
    from scipy.spatial.distance import cdist

    points = _unit(filters)
    labels = _best_dbscan(cdist(points, points), groups)
    largest = [label for label, _ in Counter(labels[labels >= 0].tolist()).most_common(groups)]
    centres = [points[labels == label].mean(0) for label in largest] or [points.mean(0)]
    while len(centres) < groups:
        centres.append(points[cdist(points, np.stack(centres)).min(1).argmax()])
    return nearest_with_room(points, np.stack(centres))


def _best_dbscan(distance: Points, groups: int) -> Labels:
    from scipy.stats import rankdata
    from sklearn.cluster import DBSCAN

    size = len(distance) / groups
    radii = np.quantile(distance[np.triu_indices(len(distance), 1)], np.linspace(0, 0.5, RADII))
    trials = []
    for share, radius in itertools.product((0.5, 0.75, 1.0), np.unique(radii.clip(1e-12))):
        trial = DBSCAN(eps=radius, min_samples=math.ceil(share * size), metric="precomputed")
        labels = trial.fit(distance).labels_
        sizes = np.unique(labels, return_counts=True)[1]
        trials.append((labels, abs(len(sizes) - groups - 1), sizes.var()))
    score = rankdata([trial[1] for trial in trials]) + 0.5 * rankdata([trial[2] for trial in trials])
    return trials[int(score.argmin())][0]


def _unit(filters: Points) -> Points:
    return filters / np.linalg.norm(filters, axis=1, keepdims=True).clip(1e-12)


SCHEMES: dict[str, Callable[[Points, int], Labels]] = {
    "kernel PCA": kernel_pca,
    "spectral": spectral,
    "density": density,
}


def preferred(clusterings: Mapping[str, Labels], increase: Points) -> str:
    """The clustering whose clusters grew most evenly: small and even intervals between their totals.

    increase: (O,) of `magnitude_increase`. The clusters' totals are sorted; the clustering of smallest
    0.5 * rank(mean interval) + rank(variance of the intervals) wins, the first of equals.
    """
    from scipy.stats import rankdata

    means, variances = [], []
    for labels in clusterings.values():
        intervals = np.diff(np.sort(np.bincount(labels, increase)))
        means.append(intervals.mean())
        variances.append(intervals.var())
    score = 0.5 * rankdata(means) + rankdata(variances)
    return list(clusterings)[int(score.argmin())]


def vote(choices: Sequence[str]) -> str:
    """The scheme chosen most often; of equals the one of the longest run, then the first."""
    counts = Counter(choices)
    most = [name for name in counts if counts[name] == max(counts.values())]
    runs = dict.fromkeys(most, 0)
    for name, run in itertools.groupby(choices):
        if name in runs:
            runs[name] = max(runs[name], len(list(run)))
    return max(most, key=runs.__getitem__)


def ticket_groups(weight: Tensor, snapshots: Sequence[Tensor], groups: int) -> Tensor:
    """Groups of filters by TMI-GKP: weight (O, I, kh, kw) and earlier ones of it -> (groups, O / groups).

    The filters are clustered by every scheme of `SCHEMES`, each snapshot prefers one, the majority wins.
    """
    if groups == 1:
        return torch.arange(len(weight))[None]
    filters = weight.detach().double().cpu().flatten(1).numpy()
    clusterings = {name: scheme(filters, groups) for name, scheme in SCHEMES.items()}
    choices = [
        preferred(clusterings, magnitude_increase(weight.detach(), snapshot)) for snapshot in snapshots
    ]
    labels = clusterings[vote(choices)]
    return torch.from_numpy(labels.argsort(kind="stable")).view(groups, -1)


@register(
    "tmi-gkp",
    structure="grouped kernel",
    needs="training snapshots",
    citation="Zhong et al. 2022 (ICLR), Revisit Kernel Pruning with Lottery Regulated Grouped Convolutions",
    summary="filters clustered by how training changed them, then a greedy choice of distant kernels",
)
def tmi_gkp(
    model: nn.Module,
    *,
    groups: Groups,
    example_input: Tensor | None,
    data: object,
    snapshots: Sequence[Mapping[str, Tensor]] | None = None,
    beta: str | float = "exact",
    compared: float = 0.2,
    execution: str = "dense",
    indivisible: str = "skip",
    share: float = 0.0,
) -> Cut:
    """TMI-GKP: groups by `ticket_groups`, kernels by `gkp.pruners.kernels.grouped.greedy_selection`.

    snapshots: state_dicts of the same network from its training, in order (the original takes epochs 35
    to 70 of 300). Per snapshot a filter's ticket magnitude increase is sum | |w_final| - |w_t| |. beta,
    compared, share: see "gkp-greedy".

    Differences: DBSCAN runs on the filters, not on the best of many t-SNE embeddings, and clusters become
    equal by one optimal assignment, not by moving filters one at a time; both were most of the original's
    47 minutes for a ResNet-32. ValueError without snapshots or when one does not fit the network.
    """
    if not snapshots:
        raise ValueError(
            "tmi-gkp compares the weights with earlier ones: give snapshots=[state_dict, ...] from the "
            "training of this network, or use gkp-greedy, which needs none"
        )
    if isinstance(snapshots, Mapping) or not all(isinstance(snapshot, Mapping) for snapshot in snapshots):
        raise ValueError("snapshots is no list of state_dicts: give [state_dict, ...], also of one alone")
    layers = layers_to_prune(model, groups, indivisible, example_input)
    earlier = {name: [_weight(s, name, conv) for s in snapshots] for name, conv in layers.items()}
    orders = {
        name: ticket_groups(conv.weight, earlier[name], groups_of(groups, name))
        for name, conv in layers.items()
    }
    return greedy_cut(model, layers, orders, beta, compared, execution, example_input, share=share)


def _weight(snapshot: Mapping[str, Tensor], name: str, conv: nn.Conv2d | nn.Linear) -> Tensor:
    weight = snapshot.get(f"{name}.weight")
    if weight is None or weight.shape != conv.weight.shape:
        state = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
        raise ValueError(
            f"{name}.weight {state} in a snapshot and is {tuple(conv.weight.shape)} in the model: "
            "give state_dicts of this very network"
        )
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}.weight holds NaN or infinity in a snapshot: leave that snapshot out")
    return weight.to(conv.weight)
