"""Checkpoints of networks, pruned ones too: safetensors, never pickle.

A file holds the tensors of the state_dict, the buffers that are not persistent, and one JSON entry that
says which network to start from and which of its modules to replace by what, so that nothing but data is
ever read from it. Tensors and entry have a hash each; files of before the entry had one still load.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gkp.nets import description, foreign, models
from gkp.nets.channels.copying import copied
from gkp.nets.grouped import GroupedKernelLinear
from gkp.nets.grouped_base import GroupedKernels
from gkp.utils import files

FORMAT = 1
TORCHVISION = "torchvision:"


class NeedsBase(ValueError):
    """A file or a network that says by name alone which network it is, and the name is one of the user's."""


def base_network(
    network: str,
    *,
    num_classes: int = 10,
    mean: Sequence[float] = models.CIFAR_MEAN,
    std: Sequence[float] = models.CIFAR_STD,
    zeros: str = "after",
) -> nn.Module:
    """`models.create`, and torchvision's classifiers as "torchvision:resnet18", pixels in.

    A torchvision network stands as `network` behind a `normalize` of its own; not GoogLeNet and Inception,
    which preprocess differently with pretrained weights. ValueError for unknown names.
    """
    if not network.startswith(TORCHVISION):
        return models.create(network, num_classes=num_classes, mean=mean, std=std, zeros=zeros)
    import torchvision

    name = network.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(torchvision.models, exclude=("googlenet", "inception_v3"))
    if name not in known:
        raise ValueError(f"unknown torchvision network {name!r}: choose one of {', '.join(known)}")
    inner = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return nn.Sequential(OrderedDict(normalize=models.Normalize(mean, std), network=inner))


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    network: str,
    dataset: str,
    about: dict[str, Any] | None = None,
    base: nn.Module | None = None,
) -> str:
    """Write `model` to `path` atomically and return the file's SHA-256.

    network: the name the model was made from ("resnet20", "torchvision:resnet18", ...). For a network of
    one's own choose any name and give as `base` an unpruned instance, here and to `load_file`. about: JSON
    values to keep beside it. ValueError, before anything is written, when the path ends otherwise than in
    .safetensors, and when the model holds something that a file cannot describe: modules not in KINDS in
    place of the network's own, hooks, masks, an extra state (get_extra_state).
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: give a name that ends in .safetensors, as only those load")
    state = _state(model)
    if any(value.is_meta for value in state.values()):
        raise ValueError(f"this {network} is on the meta device: load its weights before saving")
    tied = _ties(state)
    tensors = {name: value.cpu().clone().contiguous() for name, value in state.items() if name not in tied}
    header = {
        "format": FORMAT,
        "network": network,
        "dataset": dataset,
        **_base_arguments(model),
        "about": about or {},
        "tensors": tensors_sha256(tensors),
    }
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{name or network} has forward hooks, which a file cannot hold: remove them first"
            )
    header["modules"] = description.differences(model, _base(header, base))
    # What most networks lack is not mentioned, so that their files stay the same.
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    optional = {
        "tied": tied,
        "frozen": frozen,
        "buffers": list(_unlisted(model)),
        "names": _new_aliases(model, header, tensors | state, base),
    }
    header |= {key: value for key, value in optional.items() if value}
    header = json.loads(_as_text(header))
    _prove(model, header, tensors, base)
    header["header"] = header_sha256(header)
    data = safetensors.torch.save(tensors, {"gkp": _as_text(header)})
    files.atomic_write_bytes(path, data)
    return files.sha256_bytes(data)


def _as_text(header: dict[str, Any]) -> str:
    try:
        return json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"about can hold numbers, texts, lists and dictionaries only: {error}") from error


def _new_aliases(
    model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module | None
) -> dict[str, str]:
    """Second names of modules that the network in `header` does not give by itself."""
    found = description.aliases(model)
    if not found:
        return {}
    rebuilt = description.rebuild(_base(header, base), header["modules"], {}, tensors)
    return {
        name: original
        for name, original in found.items()
        if rebuilt.get_submodule(name) is not rebuilt.get_submodule(original)
    }


def _prove(
    model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module | None
) -> None:
    """ValueError unless what `header` describes takes exactly these tensors and is built like `model`."""
    network = header["network"]
    try:
        rebuilt = _rebuild(header, tensors, base)
    except RuntimeError as error:
        raise ValueError(f"this {network} cannot be described in a file: {error}") from error
    state, saved = _state(rebuilt), _state(model)
    moved = [name for name, tensor in tensors.items() if state[name].data_ptr() != tensor.data_ptr()]
    if moved or list(state) != list(saved) or _ties(state).keys() != _ties(saved).keys():
        raise ValueError(
            f"this {network} cannot be described in a file: it shares {moved[0] if moved else 'tensors'} "
            "otherwise than the network it is to be saved as"
        )
    for name, entry in header["modules"].items():
        if entry["kind"] == description.CHANGED:
            ours, theirs = repr(model.get_submodule(name)), repr(rebuilt.get_submodule(name))
            if ours != theirs:
                raise ValueError(f"{name or network} cannot be described in a file: {ours} would be {theirs}")


def load_file(path: str | Path, *, base: nn.Module | None = None) -> nn.Module:
    """The network in `path`, as saved bit for bit, in eval mode on the CPU.

    base: for networks that were saved with one. ValueError names a file that is damaged or was not
    written by `save_model`; FileNotFoundError one that is not there.
    """
    header = read_header(path)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if header.get("tensors") != tensors_sha256(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were saved; copy it again")
    try:
        return _rebuild(header, tensors, base).eval()
    except NeedsBase as error:
        raise NeedsBase(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        remedy = "" if base is None else "; give the base that it was saved with"
        why = " ".join(str(error).split())
        raise ValueError(f"{path} describes a network that cannot be rebuilt{remedy}: {why}") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """What `path` says about itself: network, dataset, about, modules, ...; errors as `load_file`."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if foreign.reason(path):
        raise ValueError(f"{path} {foreign.reason(path)}")
    if foreign.is_torch(path):
        raise ValueError(
            f"{path} is a pickle of torch.save, which is never run: name the network whose weights it has, "
            f'as in gkp.load_model("resnet20", weights="{path}")'
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a checkpoint of gkp (safetensors): {error!r}") from error
    if "gkp" not in metadata:
        raise ValueError(
            f"{path} is not a checkpoint of gkp and does not say which network it is for: name it, as in "
            f'gkp.load_model("resnet20", weights="{path}")'
        )
    try:
        header = json.loads(metadata["gkp"])
        version = header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its header is {error!r}; copy it again") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT}: update gkp")
    if header.get("header", found := header_sha256(header)) != found:
        raise ValueError(f"{path} is damaged: its header is not the one that was saved; copy it again")
    return header


def header_sha256(header: dict[str, Any]) -> str:
    """SHA-256 over the JSON, its keys sorted, of what `read_header` gives, without its own entry "header"."""
    rest = {key: value for key, value in header.items() if key != "header"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of CPU tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _base_arguments(model: nn.Module) -> dict[str, Any]:
    """`base_network`'s arguments, read off the model."""
    normalize = getattr(model, "normalize", None)
    shortcuts = [m for m in model.modules() if isinstance(m, models.OptionAShortcut)]
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, GroupedKernelLinear))]
    arguments: dict[str, Any] = {
        "num_classes": linear[-1].out_features if linear else 10,
        "zeros": "around" if any(shortcut.padding[4] for shortcut in shortcuts) else "after",
    }
    if isinstance(normalize, models.Normalize):
        arguments |= {key: getattr(normalize, key).flatten().tolist() for key in ("mean", "std")}
    return arguments


def _base(header: dict[str, Any], given: nn.Module | None) -> nn.Module:
    """The unpruned network that `header` starts from; the random state of the caller is left alone."""
    if given is not None:
        return copied(given)
    name = header["network"]
    if name not in models.names() and not name.startswith(TORCHVISION):
        raise NeedsBase(
            f"unknown network {name!r}: choose one of {', '.join(models.names())}, torchvision:NAME; for "
            "your own give base=, an unpruned instance, to save_model and gkp.nets.checkpoint.load_file"
        )
    arguments = {key: header[key] for key in ("num_classes", "mean", "std", "zeros") if key in header}
    with torch.random.fork_rng(devices=[]):
        return base_network(header["network"], **arguments)


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor], given: nn.Module | None) -> nn.Module:
    """The network that `header` describes, with `tensors`: those of the file."""
    tied = header.get("tied", {})
    tensors = tensors | {name: tensors[original] for name, original in tied.items()}
    model = description.rebuild(_base(header, given), header["modules"], header.get("names", {}), tensors)
    # assign: the parameters become these tensors, whatever their type
    unlisted = header.get("buffers", ())
    listed = {name: tensor for name, tensor in tensors.items() if name not in unlisted}
    model.load_state_dict(foreign.as_state_of(model, listed), assign=True)
    for name in unlisted:
        module, _, own = name.rpartition(".")
        buffers = model.get_submodule(module)._buffers
        if own not in buffers:
            raise ValueError(f"the unpruned network has no buffer {name}: register it there too")
        buffers[own] = tensors[name]
    for name, original in tied.items():
        _tie(model, name, original)
    for name in header.get("frozen", ()):
        model.get_parameter(name).requires_grad_(False)
    return model


def _tie(model: nn.Module, name: str, original: str) -> None:
    """Give the tensor called `name` the place in memory of `original`."""
    (owner, own), (source, theirs) = (each.rpartition(".")[::2] for each in (name, original))
    module, other = model.get_submodule(owner), model.get_submodule(source)
    for table in ("_parameters", "_buffers"):
        if theirs in getattr(other, table):
            getattr(module, table)[own] = getattr(other, table)[theirs]


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the state_dict, and the buffers that it leaves out.

    ValueError names a module that puts something else than tensors into it.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            module = name.rpartition(".")[0] or "the network"
            raise ValueError(
                f"{module} puts a {type(value).__name__} into the state_dict (get_extra_state), which a file "
                "cannot hold: keep it in a buffer instead"
            )
    return {name: value.detach() for name, value in (state | _unlisted(model)).items()}


def _unlisted(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not persistent, but for those that layers of grouped kernels derive from others."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, GroupedKernels)
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }


def _ties(state: dict[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is that of an earlier name: {name: earlier name}."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            found[name] = first[place]
        first.setdefault(place, name)
    return found
