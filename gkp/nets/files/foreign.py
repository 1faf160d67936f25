"""Checkpoints that other tools wrote: their tensors, or one sentence about what the file is instead.

Nothing is unpickled: see `gkp.utils.unpickle`.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from gkp.utils import unpickle

SUFFIXES = (
    ".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".pkl", ".pickle", ".npz", ".npy", ".h5", ".onnx",
    ".tar",
)  # fmt: skip
# First bytes of what is often mistaken for a checkpoint, and what to do.
_MISTAKEN = (
    (b"<", "a web page: open the link in a browser and download the file itself"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with git lfs pull"),
    (b'{"', "JSON text, such as an error message or an index: download the file with the weights"),
    (b"\x89HDF", "HDF5, as Keras writes it: convert it to safetensors"),
    (b"\x93NUMPY", "a NumPy array: convert it to safetensors"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"GGUF", "GGUF: convert it to safetensors"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


class NormalisationWarning(UserWarning):
    """A checkpoint does not say how images are to be normalised, and the usual way was taken."""


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether `name` is the path of a file: a Path, or text that ends as files with weights do."""
    return not isinstance(name, str) or Path(name).suffix.lower() in SUFFIXES


def path_of(name: str | os.PathLike[str]) -> Path:
    """The path `name`, with the home folder for "~". ValueError for an address."""
    if "://" in str(name):
        raise ValueError(f"{name} is an address: download the file and give its path")
    return Path(name).expanduser()


def is_ours(path: Path) -> bool:
    """Whether `gkp.nets.checkpoint.save_model` wrote `path`; FileNotFoundError when it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return "gkp" in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False  # what it is instead, `read_tensors` says


def reason(path: str | Path) -> str:
    """Why `path` is no checkpoint, when its beginning tells; else empty."""
    start = _start(path)
    if not start:
        return "is empty: copy or download it again"
    if _is_safetensors(start):
        return ""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in _MISTAKEN:
        if start.startswith(magic) or text.startswith(magic):
            return f"is {what}"
    return ""


def is_torch(path: str | Path) -> bool:
    """Whether `path` begins as files of `torch.save` do, old and new."""
    start = _start(path)
    return start.startswith((b"PK\x03\x04", b"\x80")) and not _is_safetensors(start)


def _start(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header, which may look like anything, and JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state_dict in safetensors or a file of `torch.save`, by the names that stand there.

    ValueError names a file that is damaged, empty, or something else, and what to do.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if reason(path):
        raise ValueError(f"{path} {reason(path)}")
    if is_torch(path):
        return unpickle.read_module(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or neither safetensors nor a file of torch.save ({error}): copy it again, or "
            "save the state_dict of the network with safetensors.torch.save_file"
        ) from error


def fitted(
    model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, classes: Mapping[str, int]
) -> None:
    """Load `tensors` of the file `path` into `model`, in place, which must take all of them.

    Prefixes of wrappers ("module.", "model.", ...) are ignored. Counters of batches and the normalisation may
    be missing and stay as they are. classes: number of classes of each data set. ValueError says what does
    not fit.
    """
    own = model.state_dict()
    tensors = _without_prefix(dict(tensors), set(own))
    optional = [name for name in own if name.endswith("num_batches_tracked") or name.startswith("normalize.")]
    tensors = {name: own[name] for name in optional} | tensors
    lacks, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if lacks or extra:
        raise ValueError(
            f"{path} does not fit this network: {_some('lacks', lacks)}{' and ' if lacks and extra else ''}"
            f"{_some('has', extra)}: name the network that it was made for"
        )
    wrong = [name for name in own if tensors[name].shape != own[name].shape]
    if wrong and set(wrong) <= set(_head(own)):
        found, wanted = len(tensors[wrong[0]]), len(own[wrong[0]])
        sets = ", ".join(repr(name) for name, count in classes.items() if count == found)
        raise ValueError(
            f"{path} has {found} classes, where {wanted} are asked for: "
            + (f"give dataset={sets}" if sets else "no data set here has as many")
        )
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} does not fit this network: {name} is {tuple(tensors[name].shape)} instead of "
            f"{tuple(own[name].shape)}: name the network that it was made for (a pruned one needs save_model)"
        )
    model.load_state_dict(as_state_of(model, tensors))


def as_state_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """`tensors` as a state_dict of `model`, as new as its modules are.

    A dictionary without versions counts as old, which some networks (MNASNet) then convert. Counters of
    batches, which files from before PyTorch 0.4.1 lack, are the model's own.
    """
    own = model.state_dict()
    counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    state = OrderedDict(counters | dict(tensors))
    state._metadata = own._metadata  # type: ignore[attr-defined]
    return state


def warn_about_normalisation(path: str | Path, normalize: nn.Module) -> None:
    """NormalisationWarning: which mean and standard deviation were taken for the file `path`."""
    warnings.warn(
        f"{path} does not say how its images were normalised; taken: {normalize!r}. If the clean accuracy is "
        "lower than published, set model.normalize's mean and std",
        NormalisationWarning,
        stacklevel=4,
    )


def _head(state: Mapping[str, Tensor]) -> list[str]:
    """Names of weight and bias of the last layer."""
    last = list(state)[-1].rpartition(".")[0]
    return [f"{last}.weight", f"{last}.bias"]


def _without_prefix(tensors: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """`tensors` without the prefixes that all names have and the network's names have not."""
    while True:
        prefix = next((each for each in _PREFIXES if all(name.startswith(each) for name in tensors)), None)
        if prefix is None or not tensors or set(tensors) & own:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _some(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"it {verb} {', '.join(names[:3])}{more}"
