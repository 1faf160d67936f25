"""The state file of a training run: written whole or not at all, read only when sound and of the same run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import torch

FORMAT = 1


class StateError(ValueError):
    """A state file that is damaged or belongs to another run."""


def save_state(path: str | Path, identity: dict[str, str], content: dict) -> None:
    """Replace `path` in one step by `content` (tensors, plain values), so that a kill leaves the old or the new.

    Raises OSError, with what to do, when the place cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "identity": identity, "content": content}, buffer)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot save the training state ({error.strerror}): free some space or choose another path",
            str(path),
        ) from error


def load_state(path: str | Path, identity: dict[str, str]) -> dict:
    """The content saved at `path`, on the CPU. Raises StateError when damaged or of another run."""
    damaged = f"{path} is damaged or not a training state: delete it to start the run again"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise StateError(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise StateError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StateError(damaged)
    saved = state["identity"]
    different = [name for name, value in identity.items() if saved.get(name) != value]
    if different:
        raise StateError(
            f"{path} belongs to another run (different {', '.join(different)}): "
            "choose another state_path, or delete the file to start again"
        )
    return state["content"]
