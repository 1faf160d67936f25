"""Where a record comes from: code, lock file, versions, machine, memory, weights."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gkp.deploy.timing import processor
from gkp.nets.files.tensors import tensors_sha256
from gkp.train.rounded import rounds
from gkp.utils.files import sha256_file

CODE = Path(__file__).resolve().parents[3]  # the repository that this code is in
COMPUTES = ("gkp", "benchmarks", "pyproject.toml", "requirements.lock")  # what results come from
LIBRARIES = ("torch", "torchvision", "numpy")


def provenance(device: torch.device | str, code: Path = CODE) -> dict[str, Any]:
    """Code, lock file, versions and machine; no host name and no path.

    "dirty" says whether tracked files of COMPUTES differ from the commit, None outside a repository;
    "bfloat16" how convolutions in that precision are computed there, if there are any.
    """
    lock = code / "requirements.lock"
    changed = _git(code, "status", "--porcelain", "--untracked-files=no", "--", *COMPUTES)
    return {
        "commit": _git(code, "rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "lock_sha256": sha256_file(lock) if lock.exists() else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "bfloat16": "rounded float32" if rounds(torch.device(device)) else "native",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def device_name(device: torch.device | str) -> str:
    """ "cuda: NVIDIA H200" or "cpu: Intel(R) Xeon(R) ...", as the machine calls itself."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {processor()}"


def peak_memory_mb(device: torch.device | str) -> dict[str, float]:
    """Largest resident memory of this process so far and, on a GPU, the largest allocation, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if torch.device(device).type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) / 2**20
    return {key: round(value, 1) for key, value in peak.items()}


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of the state dictionary, whatever device it is on."""
    return tensors_sha256({name: value.detach().cpu() for name, value in model.state_dict().items()})


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git, None outside a repository or without git."""
    try:
        done = subprocess.run(("git", "-C", os.fspath(root), *arguments), capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
