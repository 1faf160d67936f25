"""Networks with weights: public checkpoints, those of this repository, torchvision's.

Every file is checked against a SHA-256 and none is unpickled: code in a checkpoint never runs.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gkp.nets import checkpoint, foreign, models
from gkp.utils import files, unpickle
from gkp.utils.nearest import shown, unknown

# Checkpoints of our own runs, with manifest.json: {"suite/run.safetensors": {"sha256": ...}}
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}

AKAMASTER_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# The file names carry the first eight digits of the SHA-256; all of them where a file was at hand.
AKAMASTER = {
    "resnet20": "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    "resnet32": "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    "resnet44": "014dd654",
    "resnet56": "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
    "resnet110": "1d1ed7c2",
}

AUTHORS_URL = (
    "https://github.com/henryzhongsc/adv_robust_gkp/raw/"
    "819905d239f39bb76f2516e1a9c3e61ae3f7e640/ckpts/resnet20_cifar10_ba.pt"
)
AUTHORS_STAND_IN = "adv_robust_gkp_resnet20_cifar10_ba.safetensors"  # the same arrays without the pickle
# checkpoint.tensors_sha256 of the arrays; the hash of the file itself is not published
AUTHORS_TENSORS = "ea5857c85d3b2f62a79b048d4f07baefd07e8e2de4b90ff490a872260afb8202"

# The authors' names of layers, and ours.
_AUTHORS_NAMES = (
    (r"^conv_1_3x3\b", "conv1"), (r"^bn_1\b", "bn1"), (r"^classifier\b", "linear"), (r"^stage_", "layer"),
    (r"\bconv_a\b", "conv1"), (r"\bbn_a\b", "bn1"), (r"\bconv_b\b", "conv2"), (r"\bbn_b\b", "bn2"),
)  # fmt: skip


def load_model(
    name: str | os.PathLike[str],
    *,
    dataset: str = "cifar10",
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """A network in eval mode: pixels (N, 3, H, W) in [0, 1] in, logits out.

    name: a network of `models.names()`, "torchvision:" and a network of torchvision's, the id
    "suite/run" of a checkpoint shipped with this repository, or the path of a file of `save_model`.
    dataset: what an untrained or public network should be for: it sets the number of classes.
    weights: None for the usual public ones (the authors' for ResNet-20, akamaster's for deeper ResNets,
    torchvision's for ImageNet), "authors", "akamaster", "random" (torch's global seed decides), or the
    path of a file: one of `save_model`, or the state_dict of another tool in safetensors or a file of
    torch.save (then a warning says which normalisation was taken; nothing is unpickled).

    Public files are looked for in GKP_CHECKPOINTS, then in the cache, then downloaded. ValueError:
    unknown names (it lists the choices) or a damaged file (named, with expected and found hash).
    FileNotFoundError: a file is not there and cannot be downloaded.
    """
    if foreign.is_path(name):
        if weights is not None:
            raise ValueError(f"{name} has its own weights: name a network with weights={str(weights)!r}")
        return checkpoint.load_file(foreign.path_of(name))
    name = str(name)
    if "/" in name:
        return checkpoint.load_file(_shipped_file(name))
    file = foreign.path_of(weights) if weights is not None and foreign.is_path(weights) else None
    if file is not None and foreign.is_ours(file):
        return _own(name, file)
    if dataset not in CLASSES:
        raise ValueError(unknown("data set", dataset, CLASSES))
    if file is not None:
        return _theirs(name, dataset, file)
    if weights == "random":
        return _untrained(name, CLASSES[dataset]).eval()
    if name.startswith(checkpoint.TORCHVISION):
        return _torchvision(name, weights)
    return _public(name, dataset, weights)


def named_model(name: str, dataset: str | None = None) -> tuple[str, nn.Module, str]:
    """(what it was made from, the network, its data set) for a `name` of `load_model`; errors as there.

    dataset: as in `load_model`. A file of this tool, one shipped with it too, says what it was made from and
    for; torchvision's weights are for ImageNet, other public ones for CIFAR-10. ValueError when `dataset`
    is none of CLASSES or another than that, and for weights that are not finite numbers.
    """
    if dataset is not None and dataset not in CLASSES:
        raise ValueError(unknown("data set", dataset, CLASSES))
    path, network = _path_of(name), name
    made_for = "imagenet" if name.startswith(checkpoint.TORCHVISION) else dataset or "cifar10"
    if path is not None:
        loaded, header = own_file(path)
        network, made_for = header["network"], str(header.get("dataset"))
    if dataset is None and made_for not in CLASSES:
        raise ValueError(f"{name} is for {shown(made_for)}: give --dataset, one of {', '.join(CLASSES)}")
    if dataset is not None and made_for in CLASSES and made_for != dataset:
        raise ValueError(f"{name} is for {made_for}, not for {dataset}: leave --dataset out")
    if path is None:
        loaded = load_model(name, dataset=made_for)
    damaged = [key for key, value in loaded.state_dict().items() if not value.isfinite().all()]
    if damaged:
        raise ValueError(
            f"{name} has weights that are no finite numbers in {damaged[0]}"
            f"{f' and {len(damaged) - 1} more' if len(damaged) > 1 else ''}: its training diverged, or the "
            "file is damaged; give another"
        )
    return network, loaded, dataset or made_for


def own_file(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file of this tool, and what the file says of itself; errors say what to give."""
    try:
        return checkpoint.load_file(files.readable_file(path)), checkpoint.read_header(path)
    except checkpoint.NeedsBase:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; give a file that gkp.nets.checkpoint.save_model wrote") from error


def _path_of(name: str) -> Path | None:
    """The file behind a name that is a path, or the id of a shipped checkpoint; None for a network's name."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if os.path.lexists(name) and name not in models.names() or path.suffix in foreign.SUFFIXES:
        raise ValueError(
            f"{shown(name)} is no .safetensors file of this tool: load it in Python and save it with "
            "gkp.nets.checkpoint.save_model"
        )
    return _shipped_file(name) if "/" in name else None


def _untrained(name: str, classes: int) -> nn.Module:
    """The network by name, torchvision's behind ImageNet's normalisation."""
    if not name.startswith(checkpoint.TORCHVISION):
        return checkpoint.base_network(name, num_classes=classes)
    mean, std = models.IMAGENET_MEAN, models.IMAGENET_STD
    return checkpoint.base_network(name, num_classes=classes, mean=mean, std=std)


def _to_fill(name: str, classes: int) -> nn.Module:
    """As `_untrained`, for weights of a file; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return _untrained(name, classes)


def _theirs(name: str, dataset: str, path: Path) -> nn.Module:
    """The network `name` with the weights of another tool's file."""
    model = _to_fill(name, CLASSES[dataset])
    inner = model.get_submodule("network") if name.startswith(checkpoint.TORCHVISION) else model
    tensors = foreign.read_tensors(path)
    foreign.fitted(inner, tensors, path, CLASSES)
    if not any(key.endswith("normalize.mean") for key in tensors):
        foreign.warn_about_normalisation(path, model.get_submodule("normalize"))
    return model.eval()


def tensors_into(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Load `tensors`, which lack those of `model.normalize`, and nothing more or less; eval mode."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith("normalize.")}
    model.load_state_dict(foreign.as_state_of(model, tensors | own))
    return model.eval()


def _public(name: str, dataset: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    if name not in models.names():
        others = ("torchvision:...", "a suite/run of checkpoints/", "a .safetensors file")
        raise ValueError(unknown("network", name, models.names(), also=others))
    weights = weights or ("authors" if name == "resnet20" else "akamaster")
    available = {"authors": ("resnet20",), "akamaster": tuple(AKAMASTER)}
    if weights not in available:
        raise ValueError(
            f"unknown weights {str(weights)!r}: choose authors, akamaster, random or a .safetensors file"
        )
    if name not in available[weights] or dataset != "cifar10":
        raise ValueError(
            f"{weights} published no {name} for {dataset}, only {', '.join(available[weights])} for cifar10: "
            f'choose weights="random" or a .safetensors file'
        )
    return _authors() if weights == "authors" else _akamaster(name)


def _akamaster(name: str) -> nn.Module:
    sha256 = AKAMASTER[name]
    file = f"{name}-{sha256[:8]}.th"
    path = _fetch(AKAMASTER_URL + file, "akamaster", sha256)
    with torch.random.fork_rng(devices=[]):
        mean, std = models.IMAGENET_MEAN, models.IMAGENET_STD
        model = checkpoint.base_network(name, mean=mean, std=std, zeros="around")
    return tensors_into(model, unpickle.read_module(path))


def _authors() -> nn.Module:
    path = _offline(AUTHORS_STAND_IN, "")
    if path is None:
        path = _fetch(AUTHORS_URL, "authors", "")  # checked below, array by array
        tensors = unpickle.read_module(path)
    else:
        try:
            tensors = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; copy it again") from error
    found = checkpoint.tensors_sha256(tensors)
    if found != AUTHORS_TENSORS:
        raise ValueError(
            f"{path} is damaged or not the published network: SHA-256 of its arrays should be "
            f"{AUTHORS_TENSORS} but is {found}; delete it and fetch it again"
        )
    renamed = {_our_name(key): value for key, value in tensors.items()}
    return tensors_into(_to_fill("resnet20", CLASSES["cifar10"]), renamed)


def _our_name(name: str) -> str:
    for theirs, ours in _AUTHORS_NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _torchvision(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    """Torchvision's default weights, which know ImageNet's classes whatever is asked for."""
    import torchvision

    model = _to_fill(name, CLASSES["imagenet"])
    if weights is not None:
        raise ValueError(f'{name} has weights None (those of ImageNet) and "random", not {str(weights)!r}')
    url = torchvision.models.get_model_weights(name.removeprefix(checkpoint.TORCHVISION)).DEFAULT.url
    path = _fetch(url, "torchvision", Path(url).stem.rpartition("-")[2])
    state = torch.load(path, map_location="cpu", weights_only=True)
    dot = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")  # DenseNet's names of layers had one more
    return tensors_into(model, {"network." + dot.sub(r"\1\2", key): value for key, value in state.items()})


def _own(name: str, path: str | Path) -> nn.Module:
    network = checkpoint.read_header(path)["network"]
    if network != name:
        raise ValueError(
            f"{path} holds a {network}, not a {name}: ask for load_model({network!r}, weights=...)"
        )
    return checkpoint.load_file(path)


def _shipped_file(name: str) -> Path:
    manifest = SHIPPED / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(
            f"{manifest} is missing, so there is no checkpoint {name}: clone the repository"
        )
    entries = json.loads(manifest.read_text(encoding="utf-8"))
    file = f"{name}.safetensors"
    if file not in entries:
        choices = sorted(entry.removesuffix(".safetensors") for entry in entries)
        raise ValueError(unknown("checkpoint", name, choices, more=f"choose one of those in {manifest}"))
    path = SHIPPED / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is in the manifest but missing: restore it with git checkout")
    files.verify(path, entries[file]["sha256"])
    return path


def _offline(file: str, folder: str) -> Path | None:
    """`file` in GKP_CHECKPOINTS or in its sub-folder, if there."""
    given = os.environ.get("GKP_CHECKPOINTS")
    places = [Path(given).expanduser() / folder / file, Path(given).expanduser() / file] if given else []
    return next((path for path in places if path.is_file()), None)


def _fetch(url: str, folder: str, sha256: str) -> Path:
    """The file of `url`, checked: from GKP_CHECKPOINTS, the cache or the network."""
    file = url.rpartition("/")[2]
    if path := _offline(file, folder):
        files.verify(path, sha256)
        return path
    hint = f"without a network, set GKP_CHECKPOINTS to a folder that holds {file}"
    return files.download(url, files.cache_folder() / "checkpoints" / folder, sha256, hint=hint)


def check_fits(network: nn.Module, example: Tensor, name: str, dataset: str) -> None:
    """ValueError unless the network takes images of the data set and has a logit for each of its classes."""
    size, classes = f"{example.shape[-2]}x{example.shape[-1]}", CLASSES[dataset]
    try:
        with torch.no_grad():
            logits = network.eval()(example)
    except RuntimeError as error:  # what PyTorch raises for shapes that do not go together
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{shown(name)} does not take images of {dataset} (3 channels, {size}): {reason}; "
            "give another --dataset or network"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{shown(name)} gives {found} for one image, and {dataset} has {classes} classes: "
            "give another --dataset or network"
        )
