"""FGSM and PGD here, in torchattacks and in ART, on the same network and images: python benchmarks/attacks.py

All ways take turns in one process, so that other work on the machine slows each alike. Times are those of the
processor on a CPU and of the clock on a GPU. float32 everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkp import data
from gkp.attacks import fgsm, pgd
from gkp.evaluate import quick
from gkp.nets import cost, zoo

EPS, STEP = 8 / 255, 2 / 255
ATTACKS = {"FGSM": 1, "PGD-10": 10, "PGD-50": 50}  # iterations
Way = Callable[[], Tensor]


def compare(
    attack: str = "PGD-10", images: int = 100, rounds: int = 5, device: str = "cpu", root: str | None = None
) -> dict[str, Any]:
    """One attack on the authors' ResNet-20: seconds, ratios and what differs, per way.

    {"attack", "images", "rounds", "threads", "device", "ways": {way: {"seconds", "low", "high", "times as
    long as folded", "largest difference", "images that differ", "outcomes that differ"}}, "seconds": {way:
    those of each round}, "operations": see there}. low and high are quartiles; differences are to our own
    attack on the network as it is, outcomes those of that network.
    """
    model = zoo.load_model("resnet20", weights="authors").to(device).eval()
    split = data.load("cifar10", "test", root=root or os.environ.get("GKP_DATA")).take(images)
    x, y = split.pixels().to(device), split.labels.to(device)
    found, seconds = measured(ways(model, x, y, attack), rounds)
    own, folded = found["unfolded"], statistics.median(seconds["folded"])
    right = {way: answers(model, adversarial, y) for way, adversarial in found.items()}
    rows = {}
    for way, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        apart = (found[way] - own).abs().flatten(1).amax(1)
        rows[way] = {
            "seconds": median,
            "low": low,
            "high": high,
            "times as long as folded": median / folded,
            "largest difference": float(apart.max()),
            "images that differ": int((apart > 1e-6).sum()),
            "outcomes that differ": int((right[way] != right["unfolded"]).sum()),
        }
    about = {"images": images, "rounds": rounds, "threads": torch.get_num_threads(), "device": device}
    needed = operations(model, x, ATTACKS[attack])
    return {"attack": attack, **about, "ways": rows, "seconds": seconds, "operations": needed}


def operations(model: nn.Module, x: Tensor, iterations: int) -> int:
    """Multiplications and additions that an attack of x (N, C, H, W) cannot do without.

    In every iteration to the loss and back to the images, as often each way: weights need no gradients.
    """
    return 2 * 2 * cost.count(model, x[:1]).macs * len(x) * iterations


def ways(model: nn.Module, x: Tensor, y: Tensor, attack: str) -> dict[str, Way]:
    """Each gives the adversarial images of x."""
    import torchattacks

    iterations, folded = ATTACKS[attack], quick(model, x)
    if attack == "FGSM":
        own: dict[str, Way] = {
            "unfolded": lambda: fgsm(model, x, y, eps=EPS),
            "folded": lambda: fgsm(folded, x, y, eps=EPS),
        }
        theirs = torchattacks.FGSM(model, eps=EPS)
    else:
        options: dict[str, Any] = {"eps": EPS, "step": STEP, "iterations": iterations}
        own = {
            "unfolded": lambda: pgd(model, x, y, **options),
            "folded": lambda: pgd(folded, x, y, **options),
        }
        theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=iterations, random_start=False)
    return {**own, "torchattacks": lambda: theirs(x, y), "ART": of_art(model, x, y, iterations)}


def of_art(model: nn.Module, x: Tensor, y: Tensor, iterations: int) -> Way:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    kind = "gpu" if x.is_cuda else "cpu"
    loss = nn.CrossEntropyLoss()
    network = PyTorchClassifier(model, loss, x.shape[1:], 10, clip_values=(0, 1), device_type=kind)
    options: dict[str, Any] = {"eps": EPS, "batch_size": len(x)}
    if iterations == 1:
        attack = FastGradientMethod(network, **options)
    else:
        options |= {"eps_step": STEP, "max_iter": iterations, "verbose": False}
        attack = ProjectedGradientDescent(network, **options)
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels)).to(x.device)


def measured(ways: Mapping[str, Way], rounds: int) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """What each way gives, and its seconds in each round, after one that does not count."""
    found, seconds = {}, {way: list[float]() for way in ways}
    for turn in range(rounds + 1):
        for way, attack in ways.items():
            started = now()
            found[way] = attack().detach()
            if turn:
                seconds[way].append(now() - started)
    return found, seconds


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """bool (N,): which images are classified right."""
    right: Tensor = model(x).argmax(1) == y
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", default=["FGSM", "PGD-10"], help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the other libraries
    for attack in given.attacks:
        print(json.dumps(compare(attack, given.images, given.rounds, given.device), indent=1), flush=True)


if __name__ == "__main__":
    main()
