"""The state file of a training run: written whole or not at all, read only when sound and of the same run.

The file is what torch.save writes, followed by the SHA-256 of it (32 bytes).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gkp.utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from gkp.attacks import Attack
    from gkp.data import Split
    from gkp.train.recipe import Recipe

FORMAT = 1
DIGEST_BYTES = 32


class StateError(ValueError):
    """A state file that is damaged or belongs to another run."""


def identity_of(
    model: nn.Module,
    splits: dict[str, Split],
    recipe: Recipe,
    seed: int,
    attacks: Mapping[str, Attack],
    teacher: nn.Module | None = None,
) -> dict[str, str]:
    """What a state file must agree on, part by part, as text."""
    data = {
        f"{part} data": splits[part].fingerprint if part in splits else "none"
        for part in ("training", "validation", "test")
    }
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {
        "recipe": json.dumps(recipe.json, sort_keys=True),
        "seed": str(seed),
        "attacks": json.dumps({name: asdict(attack) for name, attack in attacks.items()}, sort_keys=True),
        **data,
        "initial weights": _digest(model),
        **({"frozen weights": ", ".join(frozen)} if frozen else {}),
        **({} if teacher is None else {"teacher": _digest(teacher)}),
    }


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_state(path: str | Path, identity: dict[str, str], content: dict) -> None:
    """Replace `path` in one step by `content` (tensors and plain values), marked as of the run `identity`.

    Raises OSError, with what to do, when the place cannot be written; the old file stays then.
    """
    buffer = io.BytesIO()
    threads = torch.get_num_threads()
    torch.save({"format": FORMAT, "identity": identity, "threads": threads, "content": content}, buffer)
    data = buffer.getvalue()
    try:
        atomic_write_bytes(path, data + hashlib.sha256(data).digest())
    except OSError as error:
        reason = f"cannot save the training state ({error.strerror}): free space or choose another state_path"
        raise OSError(error.errno, reason, str(path)) from error


def load_state(path: str | Path, identity: dict[str, str]) -> dict:
    """The content saved at `path`, on the CPU. Raises StateError when damaged or of another run."""
    state = _parse(Path(path).read_bytes(), str(path))
    saved = {"attacks": "{}", **state["identity"]}  # states of before there were attacks made none
    known = dict.fromkeys((*identity, *saved))  # some parts stand only in states of runs that have them
    different = [name for name in known if saved.get(name) != identity.get(name)]
    if different:
        raise StateError(
            f"{path} belongs to another run (different {', '.join(different)}): "
            "choose another state_path, or delete the file to start again"
        )
    return state["content"]


def threads_of(path: str | Path) -> int | None:
    """Threads that the training saved at `path` computes with; None when saved before that was kept."""
    return _parse(Path(path).read_bytes(), str(path)).get("threads")


def _parse(data: bytes, name: str) -> dict:
    data, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise StateError(f"{name} is damaged or not a training state: delete it to start the run again")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state["format"] != FORMAT:
        raise StateError(f"{name} was written by another version of gkp: delete it to start the run again")
    return state
