"""The state file of a training run: written whole or not at all, read only when sound and of the same run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import torch

from gkp.files import atomic_write_bytes

FORMAT = 1


class StateError(ValueError):
    """A state file that is damaged or belongs to another run."""


def save_state(path: str | Path, identity: dict[str, str], content: dict) -> None:
    """Replace `path` in one step by `content` (tensors and plain values), marked as of the run `identity`.

    Raises OSError, with what to do, when the place cannot be written; the old file stays then.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "identity": identity, "content": content}, buffer)
    try:
        atomic_write_bytes(path, buffer.getbuffer())
    except OSError as error:
        reason = f"cannot save the training state ({error.strerror}): free space or choose another state_path"
        raise OSError(error.errno, reason, str(path)) from error


def load_state(path: str | Path, identity: dict[str, str]) -> dict:
    """The content saved at `path`, on the CPU. Raises StateError when damaged or of another run."""
    damaged = f"{path} is damaged or not a training state: delete it to start the run again"
    try:
        # torch.load does not look at the checksums that its zip format carries.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise StateError(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError) as error:
        raise StateError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StateError(damaged)
    different = [name for name, value in identity.items() if state["identity"].get(name) != value]
    if different:
        raise StateError(
            f"{path} belongs to another run (different {', '.join(different)}): "
            "choose another state_path, or delete the file to start again"
        )
    return state["content"]
