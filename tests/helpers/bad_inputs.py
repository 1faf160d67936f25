"""A folder full of what should not be given to the command line: damaged, missing and wrong files."""

import json
import os
import pickle
import socket
import struct
from pathlib import Path

import nbformat
import safetensors.torch
import torch
from nbformat.v4 import new_code_cell, new_notebook
from record_factory import edited, make_record

from gkp.nets import checkpoint, models
from gkp.study.runs.run import UNPRUNED, Run
from gkp.study.runs.store import Store


class Malicious:
    """Unpickling it makes a file called `owned`."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def make_place(place: Path) -> None:
    make_networks(place)
    make_odd_files(place)
    make_plugins(place)
    make_projects(place)


def save(
    path: Path, *, classes: int = 10, dataset: str = "digits", spoil: tuple[str, float] | None = None
) -> None:
    torch.manual_seed(0)
    network = models.create("resnet8", num_classes=classes).eval()
    if spoil:
        network.state_dict()[spoil[0]].view(-1)[0] = spoil[1]
    checkpoint.save_model(network, path, network="resnet8", dataset=dataset)


def make_networks(place: Path) -> None:
    save(place / "net.safetensors")
    save(place / "hundred.safetensors", classes=100)
    save(place / "flowers.safetensors", dataset="flowers")
    save(place / "wide.safetensors", classes=1000, dataset="imagenet")
    save(place / "nan.safetensors", spoil=("layer1.0.conv1.weight", float("nan")))
    save(place / "infinite.safetensors", spoil=("bn1.running_var", float("inf")))
    whole = (place / "net.safetensors").read_bytes()
    (place / "truncated.safetensors").write_bytes(whole[:-100])
    (place / "header.safetensors").write_bytes(whole[:200])
    (place / "flipped.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (place / "empty.safetensors").write_bytes(b"")
    (place / "text.safetensors").write_text("not a checkpoint")
    (place / "huge.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    safetensors.torch.save_file({"weight": torch.ones(2)}, place / "foreign.safetensors")
    for name, header in (
        ("json", "no JSON"),
        ("list", "[1]"),
        ("format", json.dumps({"format": 99})),
        ("bare", json.dumps({"format": 1})),
    ):
        safetensors.torch.save_file({"w": torch.ones(2)}, place / f"{name}.safetensors", {"gkp": header})


def make_odd_files(place: Path) -> None:
    (place / "notes.txt").write_text("nothing of use")
    (place / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    (place / "evil.safetensors").write_bytes(pickle.dumps(Malicious()))
    (place / "folder").mkdir()
    (place / "folder.safetensors").mkdir()
    os.mkfifo(place / "pipe.safetensors")
    with socket.socket(socket.AF_UNIX) as server:  # the path of a socket may have about 100 letters
        before = os.getcwd()
        os.chdir(place)
        server.bind("socket.safetensors")
        os.chdir(before)
    os.mkfifo(place / "pipe.tar")
    (place / "dangling.safetensors").symlink_to("unmounted/net.safetensors")
    (place / "loop.safetensors").symlink_to("loop.safetensors")
    (place / "link.safetensors").symlink_to("net.safetensors")


def make_plugins(place: Path) -> None:
    texts = {
        "zero": "x = 1\nx / 0\n",
        "syntax": "def f(:\n",
        "exits": "import sys\nsys.exit(0)\n",
        "value": "int('three')\n",
        "lacks": "import no_such_package\n",
        "missing": "open('no such file')\n",
        "deep": "f = lambda: f()\nf()\n",
        "taken": "from gkp.pruners.common.registry import register\n"
        "register('l1', structure='filter', citation='', summary='')(lambda m: None)\n",
        "twin": "",
        "folder/twin": "",
    }
    for name, text in texts.items():
        (place / f"{name}.py").write_text(text)
    (place / "nulls.py").write_bytes(b"x = 1\0\n")
    (place / "latin.py").write_bytes(b"x = '\xff\xfe'\n")
    (place / "package.py").mkdir()
    os.mkfifo(place / "pipe.py")


def notebook(path: Path, last: str = "print(value)") -> None:
    parameters = 'suite = "method"\ncompute = False\nvalue = 1\nshare = 0.5'
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(last)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


def make_projects(place: Path) -> None:
    """Folders for --root: one is in order, each other has one thing wrong."""
    notebook(place / "project/notebooks/00_sum.ipynb")
    for name, data in (("text", b"no notebook"), ("empty", b""), ("list", b"[]"), ("object", b"{}")):
        path = place / f"notebook-{name}" / "notebooks" / "00_sum.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    (place / "notebook-folder/notebooks/00_sum.ipynb").mkdir(parents=True)
    (place / "notebook-pipe/notebooks").mkdir(parents=True)
    os.mkfifo(place / "notebook-pipe/notebooks/00_sum.ipynb")
    make_records(place)
    make_weights(place)
    make_claims(place)


def make_records(place: Path) -> None:
    sound = make_record(Run("digits", "resnet8", UNPRUNED, weights="x"), "method", 5).json

    def put(name: str, data: bytes | None) -> None:
        root = place / f"record-{name}"
        path = Store(root).path("method", sound["stem"])
        path.parent.mkdir(parents=True)
        (root / "expected").mkdir()
        (root / "expected/claims.toml").write_text("")
        if data is not None:
            path.write_bytes(data)
        elif name == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)

    def without(key: str) -> bytes:
        return json.dumps({name: value for name, value in sound.items() if name != key}).encode()

    put("text", b"no record")
    put("empty", b"")
    put("bytes", b"\xff\xfe\x00")
    put("list", b"[]")
    put("number", b"3")
    put("object", b"{}")
    put("nan", json.dumps(sound | {"cost": float("nan")}).encode())
    put("version", json.dumps(sound | {"version": 99}).encode())
    put("stem", json.dumps(sound | {"stem": "another"}).encode())
    put("config", json.dumps(sound | {"config": 3}).encode())
    put("checkpoints", json.dumps(sound | {"checkpoints": [1]}).encode())
    put("deep", b"[" * 100_000)
    for key in ("label", "cost", "pruning", "config", "hash", "suite"):
        put(f"no-{key}", without(key))
    put("folder", None)
    put("pipe", None)


def make_weights(place: Path) -> None:
    """Records to merge that name weights which are not what they say."""
    for name, file in (
        ("missing", "checkpoints/method/none.safetensors"),
        ("damaged", "checkpoints/method/run.safetensors"),
        ("outside", "../net.safetensors"),
    ):
        record = make_record(Run("digits", "resnet8", UNPRUNED, weights="x"), "method", 5)
        record = edited(record, (("checkpoints", "last", "file"), file))
        root = place / f"weights-{name}"
        Store(root).write(record)
        (root / "checkpoints/method").mkdir(parents=True)
        (root / "checkpoints/method/run.safetensors").write_bytes(b"other weights")


def make_claims(place: Path) -> None:
    texts = {
        "syntax": b"[[claim\n",
        "bytes": b"\xff\xfe",
        "unknown": b"[[claim]]\nnonsense = 1\n",
        "bare": b"[[claim]]\n",
        "kind": b"claim = 3\n",
    }
    for name, data in texts.items():
        path = place / f"claims-{name}/expected/claims.toml"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    (place / "claims-folder/expected/claims.toml").mkdir(parents=True)
    (place / "claims-pipe/expected").mkdir(parents=True)
    os.mkfifo(place / "claims-pipe/expected/claims.toml")
    readme = place / "readme-block"
    (readme / "expected").mkdir(parents=True)
    (readme / "expected/claims.toml").write_text("")
    (readme / "README.md").write_text("<!-- generated:nonsense -->\n<!-- end -->\n")
