"""What the command line is given, checked before anything is loaded or written.

Nothing here imports PyTorch: a mistyped number is answered at once. Every check raises with a sentence that
names the value and what to give instead.
"""

from __future__ import annotations

import math
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gkp.utils.nearest import shown, unknown

Misuse: Any = typer.BadParameter.__base__  # click's UsageError, of whichever click this typer carries

MOST_MINUTES = 60 * 24 * 365
MOST_TRAINED = 1024
MOST_EPOCHS = 10_000
MOST_IMAGES = 10_000_000
MOST_GROUPS = 1_000_000
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def most_jobs() -> int:
    """More processes than a few for each core only take each other's memory."""
    return max(16, 4 * (os.cpu_count() or 1))


def whole(option: str, low: int, high: int) -> Callable[[Any], int]:
    """A parser of whole numbers from `low` to `high`, in digits."""

    def parse(text: Any) -> int:
        if isinstance(text, int):  # a default
            return text
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise Misuse(f"{option} {shown(text)}: give a whole number from {low} to {high}")
        return int(text)

    return parse


def number(option: str, right: Callable[[float], bool], what: str) -> Callable[[Any], float]:
    """A parser of numbers for which `right` holds; `what` says in words which these are."""

    def parse(text: Any) -> float:
        if isinstance(text, float):  # a default
            return text
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not right(value) or "_" in text:
            raise Misuse(f"{option} {shown(text)}: give {what}")
        return value

    return parse


def minutes(option: str) -> Callable[[Any], float]:
    """A parser of times in minutes."""
    what = f"minutes, above 0 and up to {MOST_MINUTES} (a year)"
    return number(option, lambda value: 0 < value <= MOST_MINUTES, what)


def rate(option: str) -> Callable[[Any], float]:
    """A parser of fractions to remove."""
    what = "the fraction to remove, above 0 and below 1, such as 0.4375"
    return number(option, lambda value: 0 < value < 1, what)


def groups(text: Any) -> int | str:
    """A number of groups, or "auto"."""
    return "auto" if text == "auto" else whole("--groups", 1, MOST_GROUPS)(text)


def device(text: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:N", as given."""
    if not DEVICE.fullmatch(text):
        raise Misuse(f"--device {shown(text)}: give auto, cpu, cuda or cuda:0, cuda:1, ...")
    return text


def folder(text: Any) -> Path:
    """A folder that is there."""
    path = Path(text)
    if not str(text).strip():
        raise Misuse(f"--root {shown(text)}: give a folder, such as . (the one you are in)")
    if not path.is_dir():
        what = "is a file" if path.is_file() else "is not there"
        raise Misuse(f"--root {text} {what}: give the folder that holds results/ and checkpoints/")
    return path


def _option(parse: Callable[[Any], Any], metavar: str, text: str) -> Any:
    return typer.Option(parser=parse, metavar=metavar, help=text)


Root = Annotated[Path, _option(folder, "FOLDER", "The folder that holds results/ and checkpoints/.")]
Device = Annotated[str, _option(device, "NAME", '"auto" (the GPU if there is one), "cpu" or "cuda".')]
Dataset = Annotated[
    str | None,
    typer.Option(help="digits, cifar10, cifar100 or imagenet; without it, what the network was made for."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch data that are missing here.")]
SuiteNames = Annotated[
    list[str],
    typer.Option("--suite", help="Which suite; `python -m gkp list` names them. Several are one queue."),
]
AnySuite = Annotated[str | None, typer.Option(help="Only this suite; `python -m gkp list` names them.")]
Rate = Annotated[float, _option(rate("--rate"), "SHARE", "Fraction to remove, between 0 and 1.")]
Groups = Annotated[
    Any,
    _option(groups, "N", 'Groups of each grouped convolution, 8 without it; "auto": the fastest in PyTorch.'),
]
Epochs = Annotated[
    int | None,
    _option(whole("--epochs", 1, MOST_EPOCHS), "N", "For methods that prune while they train."),
]
Images = Annotated[
    int | None,
    _option(whole("--images", 1, MOST_IMAGES), "N", "Only the first N test images, for a quick look."),
]
SideBySide = Annotated[
    int | None,
    _option(
        whole("--side-by-side", 1, MOST_TRAINED),
        "N",
        "Networks that train at once in one process; on a GPU found by measuring.",
    ),
]
Jobs = Annotated[int, _option(whole("--jobs", 1, most_jobs()), "N", "Processes that share the work.")]
BudgetMinutes = Annotated[
    float | None,
    _option(
        minutes("--budget-minutes"),
        "MINUTES",
        "Stop after the epoch or attack in which this time is up. Some suites fit their epochs in.",
    ),
]


def suites(names: Iterable[str]) -> None:
    """ValueError for a name that is none of a suite."""
    from gkp.study.runs.suites import SUITES

    for name in names:
        if name not in SUITES:
            raise ValueError(unknown("suite", name, SUITES))


def pick_device(name: str) -> None:
    """ValueError when PyTorch sees no such device here."""
    if name.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise ValueError(f"--device {name}: PyTorch sees {count or 'no'} GPUs here; use --device cpu")


def output_file(path: Path, model: str) -> None:
    """Errors when a pruned network cannot or should not be written to `path`, before anything is loaded."""
    from gkp.utils.files import writable_place

    if path.suffix != ".safetensors" or not path.stem.strip():
        raise ValueError(f"--output {shown(path)}: give a name that ends in .safetensors, as only those load")
    place = writable_place(path)
    existing_folder("--output", place.parent)
    shipped = Path("checkpoints", f"{model}.safetensors")  # of a name such as "suite/run"
    if place.exists() and any(there.exists() and place.samefile(there) for there in (Path(model), shipped)):
        raise ValueError(f"--output {path} is the network to prune: give another name, so that both stay")


def existing_folder(option: str, path: Path) -> None:
    """ValueError unless files can be made in this folder."""
    if not path.is_dir():
        what = "is not a folder: give another" if path.exists() else "is no folder yet: make it first"
        raise ValueError(f"{option}: {path} {what}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: you may not write to {path}: choose another folder")


def output_folder(option: str, path: Path) -> None:
    """ValueError when `path` cannot be a folder to write to; it need not be there yet."""
    if not str(path).strip() or not path.name.strip():
        raise ValueError(f"{option} {shown(path)}: give the name of a folder")
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    existing_folder(option, there)


def environment(variables: Mapping[str, str]) -> None:
    """ValueError when a GKP_ variable that names a folder names none."""
    from gkp.utils.files import cache_folder

    for name in ("GKP_DATA", "GKP_CHECKPOINTS"):
        folder = variables.get(name)
        if folder and not os.path.isdir(os.path.expanduser(folder)):
            raise ValueError(
                f"{name}={shown(folder)} is no folder: set it to the one with the files, or unset it"
            )
    if variables.get("GKP_CACHE"):
        output_folder("GKP_CACHE", cache_folder())


def plugins(paths: Sequence[Path]) -> None:
    """Load plug-in files, those of GKP_PLUGINS too; ValueError names the file and line that failed."""
    listed = [Path(entry) for entry in os.environ.get("GKP_PLUGINS", "").split(os.pathsep) if entry]
    known = [str(path.resolve()) for path in (*listed, *paths)]
    try:
        from gkp.pruners.common import plugins as loader

        loader.load_from_environment()
        loader.load(paths)
    except (Exception, SystemExit) as error:
        # What such a file may raise nobody knows; --debug shows all of it.
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame for frame in reversed(frames) if frame.filename in known), None)
        if isinstance(error, ValueError) and line is None:
            raise ValueError(f"{error}; mend the file, or leave it out") from error
        if line is None:
            raise  # of the loader itself, which says what is wrong
        raise ValueError(
            f"the plug-in {line.filename} failed in line {line.lineno}: {type(error).__name__}: {error}; "
            "mend it, or leave it out"
        ) from error
