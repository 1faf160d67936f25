"""Arrays out of pickle files, without running what the pickles say.

A pickle is a program that may call any function. Two readers here never do: `read_arrays` gives
the NumPy arrays of the official CIFAR batches and refuses everything else; `read_module` gives the
tensors of a module saved whole with `torch.save`, where every class becomes an inert stand-in that
only keeps the state it is given.
"""

from __future__ import annotations

import codecs
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

# What a malformed pickle makes the pickle machine raise.
_MALFORMED = (
    pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
    RuntimeError, ImportError, OverflowError, MemoryError,
)  # fmt: skip

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` does for a pickled byte string, and no other encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.encode(text, "latin1")


class _DType:
    """Stands in for `numpy.dtype`: plain numbers only, since object arrays made from bytes run code."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">", "|": "|"}[state[1]]


class _Array:
    """Stands in for `numpy.ndarray`; the real array is made from its checked shape, type and bytes."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows what NumPy arrays, lists, dictionaries, strings and numbers need; refuses the rest."""

    allowed: ClassVar = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which NumPy arrays do not need")
        return self.allowed[module, name]


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The dictionary pickled in `path` (NumPy arrays and plain values), with text keys.

    ValueError names the file when it is damaged, no dictionary, or asks for anything but arrays;
    nothing it asks for is executed.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except _MALFORMED as error:
        raise ValueError(f"{path} is not a readable pickle of arrays: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a dictionary of arrays")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): _real(value)
        for key, value in content.items()
    }


def _real(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


class _Inert:
    """Stands in for an object of any class: takes whatever it is given, does nothing, keeps the state."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _ModuleUnpickler(pickle.Unpickler):
    """Builds tensors, dictionaries and plain values; every other class is `_Inert`.

    `storage` maps (key, dtype, number of elements) to a one-dimensional tensor.
    """

    def __init__(self, file: io.BufferedIOBase, storage) -> None:
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
        }
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: tuple) -> Any:
        if pid[0] == "module":  # the old format stores a class together with its source text
            return _Inert
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown stored object {pid[0]!r}")
        return self.storage(str(key), dtype, int(length))


def read_module(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a module (or state_dict) written by `torch.save`, by their state_dict names.

    Reads the zip format and the one before PyTorch 1.6, also where the network is one of several things
    that a training script saved ("state_dict", "model", "net", ...). Nothing in the file is executed.
    ValueError names the file when it is damaged or holds no tensors.
    """
    try:
        data = Path(path).read_bytes()
        root = _read_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _read_legacy(data)
        tensors = dict(_named_tensors(_unwrapped(root)))
    except (*_MALFORMED, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path} is not a readable PyTorch file: {error}; download it again") from error
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return {name.removeprefix("module."): tensor.clone() for name, tensor in tensors.items()}


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl in the archive")
        folder = pickles[0].removesuffix("data.pkl")

        def storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
            if length == 0:
                return torch.empty(0, dtype=dtype)
            return torch.frombuffer(bytearray(archive.read(f"{folder}data/{key}")), dtype=dtype, count=length)

        return _ModuleUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(data: bytes) -> Any:
    """magic number, version, system, object, storage keys: five pickles, then the raw storages."""
    file = io.BytesIO(data)
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
        # A storage is needed while its content still lies further on in the file: filled below.
        return storages.setdefault(key, torch.empty(min(length, len(data)), dtype=dtype))

    _, _, _, root, keys = (_ModuleUnpickler(file, storage).load() for _ in range(5))
    for key in keys:
        target = storages[str(key)]
        if int.from_bytes(file.read(8), "little") != len(target):
            raise ValueError("a storage has another size than announced")
        content = bytearray(file.read(len(target) * target.element_size()))
        target.copy_(torch.frombuffer(content, dtype=target.dtype, count=len(target)))
    return root


# Under which keys training scripts store the network, beside the optimizer's tensors.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params")


def _unwrapped(node: Any) -> Any:
    """The state_dict (or module) inside the dictionary that a training script saved."""
    while isinstance(node, Mapping):
        inside = next((node[k] for k in _WRAPPERS if isinstance(node.get(k), (Mapping, _Inert))), None)
        if inside is None:
            return node
        node = inside
    return node


def _named_tensors(node: Any, prefix: str = ""):
    """(name, tensor) pairs, walking modules the way `state_dict` does, and mappings."""
    if isinstance(node, Tensor):
        yield prefix.removesuffix("."), node
    elif isinstance(node, _Inert):
        passing = node.state.get("_non_persistent_buffers_set") or ()
        for part in ("_parameters", "_buffers", "_modules"):
            named = node.state.get(part)
            if isinstance(named, Mapping):
                yield from _named_tensors(
                    {name: named[name] for name in named if name not in passing}, prefix
                )
    elif isinstance(node, Mapping):
        for name, child in node.items():
            yield from _named_tensors(child, f"{prefix}{name}.")
