"""Weights that others published, and those shipped with this repository: where, and with which SHA-256.

Files are looked for in GKP_CHECKPOINTS, then in the cache, then downloaded; none is unpickled.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from gkp.nets import models
from gkp.nets.files import foreign
from gkp.nets.files.tensors import tensors_sha256
from gkp.utils import files, unpickle
from gkp.utils.nearest import unknown

# Checkpoints of our own runs, with manifest.json: {"suite/run.safetensors": {"sha256": ...}}
SHIPPED = Path(__file__).resolve().parents[3] / "checkpoints"

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
# tensors_sha256 of the arrays; the hash of the file itself is not published
AUTHORS_TENSORS = "ea5857c85d3b2f62a79b048d4f07baefd07e8e2de4b90ff490a872260afb8202"

# The authors' names of layers, and ours.
_AUTHORS_NAMES = (
    (r"^conv_1_3x3\b", "conv1"), (r"^bn_1\b", "bn1"), (r"^classifier\b", "linear"), (r"^stage_", "layer"),
    (r"\bconv_a\b", "conv1"), (r"\bbn_a\b", "bn1"), (r"\bconv_b\b", "conv2"), (r"\bbn_b\b", "bn2"),
)  # fmt: skip


def akamaster(name: str) -> nn.Module:
    """A CIFAR-10 ResNet of AKAMASTER, in eval mode."""
    sha256 = AKAMASTER[name]
    file = f"{name}-{sha256[:8]}.th"
    path = _fetch(AKAMASTER_URL + file, "akamaster", sha256)
    with torch.random.fork_rng(devices=[]):
        mean, std = models.IMAGENET_MEAN, models.IMAGENET_STD
        model = models.base_network(name, mean=mean, std=std, zeros="around")
    return tensors_into(model, unpickle.read_module(path))


def authors() -> nn.Module:
    """The ResNet-20 for CIFAR-10 that the paper's authors published, in eval mode."""
    path = _offline(AUTHORS_STAND_IN, "")
    if path is None:
        path = _fetch(AUTHORS_URL, "authors", "")  # checked below, array by array
        tensors = unpickle.read_module(path)
    else:
        try:
            tensors = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; copy it again") from error
    found = tensors_sha256(tensors)
    if found != AUTHORS_TENSORS:
        raise ValueError(
            f"{path} is damaged or not the published network: SHA-256 of its arrays should be "
            f"{AUTHORS_TENSORS} but is {found}; delete it and fetch it again"
        )
    renamed = {_our_name(key): value for key, value in tensors.items()}
    return tensors_into(to_fill("resnet20", models.CLASSES["cifar10"]), renamed)


def _our_name(name: str) -> str:
    for theirs, ours in _AUTHORS_NAMES:
        name = re.sub(theirs, ours, name)
    return name


def torchvision(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    """Torchvision's default weights, which know ImageNet's classes whatever is asked for."""
    import torchvision

    model = to_fill(name, models.CLASSES["imagenet"])
    if weights is not None:
        raise ValueError(f'{name} has weights None (those of ImageNet) and "random", not {str(weights)!r}')
    url = torchvision.models.get_model_weights(name.removeprefix(models.TORCHVISION)).DEFAULT.url
    path = _fetch(url, "torchvision", Path(url).stem.rpartition("-")[2])
    state = torch.load(path, map_location="cpu", weights_only=True)
    dot = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")  # DenseNet's names of layers had one more
    return tensors_into(model, {"network." + dot.sub(r"\1\2", key): value for key, value in state.items()})


def shipped_file(name: str, folder: Path | None = None) -> Path:
    """The file of the checkpoint "suite/run" below `folder`, by default SHIPPED; its SHA-256 is checked."""
    folder = folder or SHIPPED
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(
            f"{manifest} is missing, so there is no checkpoint {name}: clone the repository"
        )
    entries = json.loads(manifest.read_text(encoding="utf-8"))
    file = f"{name}.safetensors"
    if file not in entries:
        choices = sorted(entry.removesuffix(".safetensors") for entry in entries)
        raise ValueError(unknown("checkpoint", name, choices, more=f"choose one of those in {manifest}"))
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is in the manifest but missing: restore it with git checkout")
    files.verify(path, entries[file]["sha256"])
    return path


def untrained(name: str, classes: int) -> nn.Module:
    """The network by name, from the global seed; torchvision's behind ImageNet's normalisation."""
    if not name.startswith(models.TORCHVISION):
        return models.base_network(name, num_classes=classes)
    mean, std = models.IMAGENET_MEAN, models.IMAGENET_STD
    return models.base_network(name, num_classes=classes, mean=mean, std=std)


def to_fill(name: str, classes: int) -> nn.Module:
    """As `untrained`, for weights of a file; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return untrained(name, classes)


def tensors_into(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Load `tensors`, which lack those of `model.normalize`, and nothing more or less; eval mode."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith("normalize.")}
    model.load_state_dict(foreign.as_state_of(model, tensors | own))
    return model.eval()


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
