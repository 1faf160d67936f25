"""Six networks side by side against one after the other: images trained per second, in one run.

    python -m pytest benchmarks/test_fleet.py --benchmark-only -s

On a CPU nothing is gained, nor should be: there the point is what the bookkeeping costs. On a GPU the same
command shows what graphs and streams bring.
"""

from __future__ import annotations

import copy

import torch

from gkp.data import Split
from gkp.nets import models
from gkp.train import Recipe, fine_tune
from gkp.train.fleet import Member, train_together

NETWORKS = 6


def data(images: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Split(pictures, labels, "random", "train", tuple("0123456789"), str(images), images)


def test_six_resnet20_side_by_side(benchmark) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = data(64 * (200 if device == "cuda" else 6))
    recipe = Recipe(epochs=2, batch_size=64, precision="bfloat16" if device == "cuda" else "float32")
    torch.manual_seed(0)
    model = models.create("resnet20")

    def rate(rows) -> float:
        """Images per second in the last epoch: the first chooses algorithms and records graphs."""
        return len(train) / rows[-1].seconds

    def together() -> float:
        members = [Member(copy.deepcopy(model), train, recipe, seed=seed) for seed in range(NETWORKS)]
        results = train_together(members, device=device, side_by_side=NETWORKS)
        return rate(results[0].epochs)  # a row has its network's share of the seconds

    fleet = benchmark.pedantic(together, rounds=1)
    alone = rate(fine_tune(copy.deepcopy(model), train, recipe, device=device).epochs)
    benchmark.extra_info.update(device=device, fleet=fleet, alone=alone, ratio=fleet / alone)
    print(
        f"\n{device}: {fleet:.0f} images per second side by side, {alone:.0f} one after the other, "
        f"ratio {fleet / alone:.2f}"
    )
