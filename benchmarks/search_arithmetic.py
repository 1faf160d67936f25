"""How often the last bits of the search's sums decide: python benchmarks/search_arithmetic.py

Layers of normal weights, and all 3x3 layers of published networks, searched with `arithmetic="fast"` and
"released"; small layers in plain Python with sums from left to right and with Python 3.12's compensated one.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gkp.nets import zoo
from gkp.search import select
from gkp.study.facts import anatomy
from gkp.study.facts.ablations import NETWORKS

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from plain_search import plain_select

WIDTHS = (8, 16, 32)
SMALL = 16  # channels of the layers in plain Python
OTHERS = {
    "rate": (0.25, 0.4375, 0.625),
    "beam_width": (1, 2, 3, 4),
    "check_step": (1, 2, 3),
    "alpha": (0.0, 0.25, 0.5, 0.9, 1.0),
    "decision": ("cost", "smoothness"),
}


def drawn(layers: int, widths: tuple[int, ...]) -> Iterator[torch.Tensor]:
    for seed in range(layers):
        generator = torch.Generator().manual_seed(seed)
        width = widths[seed % len(widths)]
        yield torch.randn(width, width, 3, 3, generator=generator) * 0.1


def others(seed: int) -> dict[str, Any]:
    """Options of the search, drawn."""
    draw = random.Random(seed)
    return {name: draw.choice(values) for name, values in OTHERS.items()}


def differ(weight: torch.Tensor, options: dict) -> tuple[int, int]:
    """(groups that keep other kernels, groups)."""
    fast, released = (select(weight, groups=8, arithmetic=a, **options) for a in ("fast", "released"))
    if not torch.equal(fast.filter_order, released.filter_order):
        return 8, 8
    return int((fast.kept != released.kept).any(1).sum()), 8


def line(title: str, found: list[tuple[int, int]]) -> str:
    layers = sum(other > 0 for other, _ in found)
    groups = [sum(column) for column in zip(*found, strict=True)]
    return f"{title}: {layers} of {len(found)} layers, {groups[0]} of {groups[1]} groups"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=600, help="how many random layers of each kind")
    layers = parser.parse_args().layers
    print("fast and released keep other kernels in")
    weights = list(drawn(layers, WIDTHS))
    print(line("  random layers, default options", [differ(w, {}) for w in weights]), flush=True)
    mixed = [differ(weight, others(seed)) for seed, weight in enumerate(weights)]
    print(line("  random layers, drawn options", mixed), flush=True)
    for network, publisher in NETWORKS:
        real = anatomy.layers(zoo.load_model(network, weights=publisher)).values()
        print(line(f"  {network} ({publisher})", [differ(w, {}) for w in real]), flush=True)
    changed = 0
    for seed, weight in enumerate(drawn(layers, (SMALL,))):
        some, options = weight[:8], others(seed)
        choices = [plain_select(some, groups=2, **options, **sums) for sums in ({}, {"add": math.fsum})]
        changed += choices[0] != choices[1]
    print(f"Python 3.12's sum: {changed} of {layers} layers of {SMALL} channels, drawn options")


if __name__ == "__main__":
    main()
