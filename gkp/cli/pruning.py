"""What `gkp prune` does between its arguments and the file: data, options, checks, and what it says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp import data, deploy, pruners
from gkp.data import Split
from gkp.nets import checkpoint, cost, zoo
from gkp.pruners import Method
from gkp.pruners.common.group_numbers import USUAL
from gkp.study.execute.context import pick_device
from gkp.train.recipe import SHORT
from gkp.utils import assignments
from gkp.utils.nearest import unknown
from gkp.utils.progress import Progress, showing


@dataclass(frozen=True)
class Wanted:
    """The arguments of `gkp prune` that say how; see its help."""

    method: str
    rate: float
    groups: int | str | None  # "auto" measures
    options: Sequence[str]
    snapshots: Sequence[Path]
    epochs: int | None
    device: str
    download: bool


def prune_to_file(output: Path, model: str, dataset: str | None, wanted: Wanted) -> list[str]:
    """Prune `model`, save it as `output`, and return the lines that say what it costs and where it is.

    ValueError or OSError, before anything is written, for what cannot be done.
    """
    method = checked_method(wanted)
    options = method_options(method, wanted)
    network, original, dataset = zoo.named_model(model, dataset)
    size = data.IMAGE_SIZES[dataset]
    example = torch.zeros(1, 3, size, size)
    zoo.check_fits(original, example, model, dataset)
    check_snapshots(original, options.get("snapshots", ()))
    before = cost.count(original, example)
    images = training_images(method, dataset, wanted)
    if "images" in options and images is not None and options["images"] > len(images):
        raise ValueError(f"--option images={options['images']}: {images} are all there are; give fewer")
    if images is not None:
        options["data"] = images
    if wanted.epochs is not None:
        # A mirrored digit is another digit or none.
        augment = "crop" if dataset == "digits" else SHORT.augment
        options["recipe"] = replace(SHORT.scaled(wanted.epochs), augment=augment)
    groups: Any = wanted.groups or USUAL
    device = pick_device(wanted.device)
    with showing(Progress(stream=sys.stderr)):  # standard output is for the result
        if groups == "auto":
            groups = deploy.fastest_groups(original, wanted.rate, example)
        pruned = pruners.prune(
            original.to(device),
            method.name,
            rate=wanted.rate,
            groups=groups,
            example_input=example.to(device),
            **options,
        ).cpu()
    after = cost.count(pruned, example)
    about: dict[str, Any] = {"method": method.name, "rate": wanted.rate, "start": model}
    about |= {"groups": groups} if method.structure == "grouped kernel" else {}
    about |= {"options": list(wanted.options)} if wanted.options else {}
    about |= {"epochs": wanted.epochs} if wanted.epochs is not None else {}
    checkpoint.save_model(pruned, output, network=network, dataset=dataset, about=about)
    return [
        *(
            f"{title:7}{counted.macs / 1e6:10.3f} M MACs {counted.params / 1e6:10.3f} M params, "
            f"one {size}x{size} image"
            for title, counted in (("before", before), ("after", after))
        ),
        f"saved  {output}",
    ]


def checked_method(wanted: Wanted) -> Method:
    """The method, when what is asked for goes with it; ValueError says what does not."""
    if wanted.method not in pruners.methods():
        raise ValueError(unknown("pruning method", wanted.method, pruners.methods()))
    method = pruners.get(wanted.method)
    if wanted.groups is not None and method.structure != "grouped kernel":
        raise ValueError(f"--groups {wanted.groups}: {method.name} groups no kernels; leave it out")
    if method.start is not None and wanted.epochs is None:
        raise ValueError(f"{method.name} prunes while it trains: give --epochs, such as --epochs 5")
    if method.start is None and wanted.epochs is not None:
        raise ValueError(
            f"--epochs {wanted.epochs}: {method.name} does not train; leave it out, and fine-tune the result "
            "in Python (gkp.fine_tune)"
        )
    if wanted.snapshots and "snapshots" not in method.options:
        raise ValueError(f"--snapshot: {method.name} does not look at snapshots; leave it out")
    if not wanted.snapshots and method.needs == "training snapshots":
        raise ValueError(
            f"{method.name} scores with {method.needs}: give --snapshot FILE, a .safetensors file of the "
            "same network from earlier in its training; once for each"
        )
    return method


def method_options(method: Method, wanted: Wanted) -> dict[str, Any]:
    """The method's own options, of the kinds of their defaults; ValueError for unknown ones."""
    options = assignments.assignments(wanted.options, "--option")
    known = {name: default for name, default in method.options.items() if name != "snapshots"}
    for name, value in options.items():
        if name not in known:
            more = "" if known else f"{method.name} has none; leave it out"
            raise ValueError(unknown(f"{method.name} option", name, known, more=more))
        assignments.like(name, value, known[name], f"--option of {method.name}")
    if wanted.snapshots:
        options["snapshots"] = [zoo.own_file(path)[0].state_dict() for path in wanted.snapshots]
    return options


def check_snapshots(network: nn.Module, snapshots: Sequence[dict[str, Tensor]]) -> None:
    """ValueError for a snapshot that is not of this network."""
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    for number, snapshot in enumerate(snapshots, start=1):
        if {name: value.shape for name, value in snapshot.items()} != shapes:
            raise ValueError(f"--snapshot number {number} is of another network: give files of this very one")


def training_images(method: Method, dataset: str, wanted: Wanted) -> Split | None:
    """What the method scores or trains with; None where it needs no images."""
    if not method.needs.startswith("images") and method.start is None:
        return None
    if dataset not in data.DATASETS:
        raise ValueError(
            f"{method.name} needs images, and those of {dataset} are not read here: in Python, give "
            f"gkp.prune(model, {method.name!r}, data=gkp.data.load_folder(...))"
        )
    return data.load(dataset, "train", download=wanted.download)
