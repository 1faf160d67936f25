"""Images trained per second by the usual recipe and by `gkp.train.fine_tune`: python benchmarks/training.py

The usual recipe: torchvision's transforms on PIL images, a DataLoader with two workers, float32, PyTorch's
defaults for layout and optimiser. Both train the same networks with the same crops and flips in distribution,
batches, learning rate and number of threads, in slices of some hundred images that take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gkp import pruners
from gkp.data import Split
from gkp.nets import models
from gkp.study.runs.run import GROUPS, RATE
from gkp.train import Recipe, fine_tune

BATCH, LR, WORKERS = 64, 0.01, 2
Slice = Callable[[], float]  # trains once on all images; returns seconds


def compare(
    images: int = 384,
    rounds: int = 3,
    threads: int = 1,
    precisions: tuple[str, ...] = ("float32", "bfloat16"),
) -> dict[str, Any]:
    """{"images", "rounds", "threads", "networks": {network: {way: {"images/s", "low", "high", "ratio"}}}}.

    And "seconds": {network: {way: those of each round}}.

    Images are those of a slice, images/s the median over the slices with quartiles, ratio that to the usual
    recipe on the same network. The networks are a ResNet-20 and the same pruned by SR-GKP.
    """
    before, split = torch.get_num_threads(), pictures(images)
    torch.set_num_threads(threads)
    slices: dict[tuple[str, str], Slice] = {}
    for name, network in networks().items():
        slices[name, "usual"] = usual(copy.deepcopy(network), split)
        for precision in precisions:
            slices[name, precision] = ours(copy.deepcopy(network), split, precision)
    seconds = {key: list[float]() for key in slices}
    for turn in range(rounds + 1):
        for key, train in slices.items():
            took = train()
            if turn:  # the first starts workers and chooses algorithms
                seconds[key].append(took)
    torch.set_num_threads(before)
    table: dict[str, dict[str, Any]] = {}
    for (name, way), times in seconds.items():
        high, median, low = (images / t for t in statistics.quantiles(times, n=4, method="inclusive"))
        row = {"images/s": median, "low": low, "high": high}
        row["ratio"] = statistics.median(seconds[name, "usual"]) / statistics.median(times)
        table.setdefault(name, {})[way] = row
    by_network: dict[str, dict[str, list[float]]] = {}
    for (name, way), times in seconds.items():
        by_network.setdefault(name, {})[way] = times
    about = {"images": images, "rounds": rounds, "threads": threads}
    return {**about, "networks": table, "seconds": by_network}


def pictures(images: int) -> Split:
    """Random ones: time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Split(drawn, labels, "random", "train", tuple("0123456789"), str(images), images)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense, example = models.create("resnet20"), torch.zeros(1, 3, 32, 32)
    options: dict[str, Any] = {"strategy": "smoothest"}  # which kernels stay costs no time
    pruning = pruners.prepare(dense, "sr-gkp", groups=GROUPS, example_input=example, data=None, **options)
    return {"dense": dense, "sr-gkp": pruning(RATE)}


def ours(model: nn.Module, split: Split, precision: str) -> Slice:
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=LR, precision=precision)
    return lambda: fine_tune(model, split, recipe).epochs[0].seconds


class Pictures(Dataset):
    """PIL images through torchvision's transforms, as torchvision.datasets.CIFAR10 has them."""

    def __init__(self, split: Split) -> None:
        from torchvision import transforms

        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[place])), self.labels[place]


def usual(model: nn.Module, split: Split) -> Slice:
    """The networks normalise themselves, so that the transforms need not."""
    loader = DataLoader(
        Pictures(split), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    recipe = Recipe()
    optimizer = torch.optim.SGD(model.parameters(), LR, recipe.momentum, weight_decay=recipe.weight_decay)

    def train() -> float:
        started, total = time.perf_counter(), 0.0
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        return time.perf_counter() - started

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384, help="of a slice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    given = parser.parse_args()
    for threads in given.threads:
        print(json.dumps(compare(given.images, given.rounds, threads), indent=1), flush=True)


if __name__ == "__main__":
    main()
