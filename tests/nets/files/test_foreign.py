"""Files of other tools: loaded into the network one names, or refused with what to do; nothing runs."""

import json
import os
import pathlib

import pytest
import safetensors.torch
import torch
from torch import nn

import gkp
from gkp.nets import checkpoint, models
from gkp.nets.files import foreign


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return models.create("resnet8").eval()


def plain(net: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state_dict as other tools have it: without our normalisation."""
    state = net.state_dict().items()
    return {prefix + name: value for name, value in state if not name.startswith("normalize.")}


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net


WAYS = {
    "state_dict": plain,
    "under state_dict": lambda net: {"epoch": 3, "state_dict": plain(net, "module."), "best": torch.ones(1)},
    "under model": lambda net: {"model": plain(net), "optimizer": {"state": {0: {"exp": torch.ones(3)}}}},
    "under net, twice wrapped": lambda net: {"net": {"state_dict": plain(net, "module.model.")}, "acc": 93.1},
    "compiled": lambda net: plain(net, "_orig_mod."),
    "half": lambda net: {name: value.half() for name, value in plain(net).items()},
    "old counters": lambda net: {k: v for k, v in plain(net).items() if not k.endswith("tracked")},
    "shuffled": lambda net: dict(reversed(plain(net).items())),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_of_torch_are_loaded_by_name(way: str, legacy: bool, net: nn.Module, tmp_path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(WAYS[way](net), path, _use_new_zipfile_serialization=not legacy)
    with pytest.warns(foreign.NormalisationWarning, match=r"theirs\.pth does not say .* Normalize\(mean=\(0"):
        loaded = gkp.load_model("resnet8", weights=path)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        loaded(x), net(x), rtol=0.02 if way == "half" else 0, atol=0.02 * (way == "half")
    )
    assert not loaded.training


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_plain_safetensors_are_loaded_by_name(prefix: str, net: nn.Module, tmp_path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(plain(net, prefix), path)
    with pytest.warns(foreign.NormalisationWarning):
        loaded = gkp.load_model("resnet8", weights=str(path))
    assert torch.equal(loaded.conv1.weight, net.conv1.weight)
    with pytest.raises(ValueError, match=r'name it, as in gkp\.load_model\("resnet20", weights='):
        gkp.load_model(path)


def test_a_whole_network_of_ours_brings_its_normalisation(tmp_path, recwarn) -> None:
    net = models.create("resnet8", mean=(0.1, 0.2, 0.3), std=(1, 2, 3)).eval()
    torch.save({"model": net}, tmp_path / "ours.pt")
    loaded = gkp.load_model("resnet8", weights=tmp_path / "ours.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), net(x))
    assert not [each for each in recwarn if each.category is foreign.NormalisationWarning]


def test_weights_of_torchvision_networks_are_loaded_by_name(tmp_path) -> None:
    import torchvision

    inner = torchvision.models.squeezenet1_1(weights=None, num_classes=10).eval()
    torch.save(inner.state_dict(), tmp_path / "squeeze.pt")
    with pytest.warns(foreign.NormalisationWarning, match="0.485"):
        loaded = gkp.load_model("torchvision:squeezenet1_1", weights=tmp_path / "squeeze.pt")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(x), inner(loaded.normalize(x)))


class Hostile:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_pickle_runs(net: nn.Module, tmp_path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "theirs.pt"
    torch.save({"model": plain(net), "args": Hostile(mark)}, path)
    with pytest.warns(foreign.NormalisationWarning):
        gkp.load_model("resnet8", weights=path)
    with pytest.raises(ValueError, match="a pickle of torch.save, which is never run: name the network"):
        gkp.load_model(path)
    assert not mark.exists()


WRONG = {
    "empty": (b"", "is empty: copy or download it again"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "is a web page: .* download the file itself"),
    "markup": (b'<?xml version="1.0"?><Error/>', "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "message": (b'{"error": "Invalid credentials"}', "JSON text"),
    "keras": (b"\x89HDF\r\n\x1a\n0000", "HDF5"),
    "array": (b"\x93NUMPY\x01\x00", "NumPy array"),
    "gzip": (b"\x1f\x8b\x08\x00", "unpack it"),
    "noise": (bytes(range(7, 250)), "is damaged or n"),
    "text": (b"epoch 1 loss 2.3", "is damaged or n"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_no_checkpoint_is_named(kind: str, suffix: str, tmp_path) -> None:
    content, sentence = WRONG[kind]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    for load in (lambda: gkp.load_model(path), lambda: gkp.load_model("resnet8", weights=path)):
        with pytest.raises(ValueError, match=f"(?s)file{suffix} .*{sentence}"):
            load()


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut", b"\x80\x02}q\x00.", b"\x80"])
def test_damaged_pickles_are_named(content: bytes, tmp_path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt (is not a readable PyTorch file|holds no tensors)"):
        gkp.load_model("resnet8", weights=tmp_path / "file.pt")


def lacking(state: dict) -> None:
    del state["layer1.0.conv1.weight"]


def narrower(state: dict) -> None:
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:9]


def of_a_hundred_classes(state: dict) -> None:
    state["linear.weight"], state["linear.bias"] = torch.zeros(100, 64), torch.zeros(100)


def of_seven_classes(state: dict) -> None:
    state["linear.weight"], state["linear.bias"] = torch.zeros(7, 64), torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lacking, "it lacks layer1.0.conv1.weight: name the network that it was made for"),
        (lambda state: state.update(extra=torch.ones(1)), "it has extra: name the network"),
        (lambda state: state.clear() or state.update(a=torch.ones(1)), "it lacks .* more and it has a: name"),
        (narrower, r"conv1.weight is \(9, 16, 3, 3\) instead of \(16, 16, 3, 3\)"),
        (of_a_hundred_classes, "has 100 classes, where 10 are asked for: give dataset='cifar100'"),
        (of_seven_classes, "has 7 classes, where 10 are asked for: no data set here has as many"),
    ],
)
def test_weights_of_another_network_say_what_does_not_fit(change, sentence: str, net, tmp_path) -> None:
    state = plain(net)
    change(state)
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=rf"theirs\.pt .*{sentence}"):
        gkp.load_model("resnet8", weights=tmp_path / "theirs.pt")


def test_paths_of_every_form_load_the_same(net, tmp_path, monkeypatch) -> None:
    path = tmp_path / "own.safetensors"
    checkpoint.save_model(net, path, network="resnet8", dataset="digits")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    forms = [path, str(path), path.name, f"./{path.name}", f"~/{path.name}", pathlib.PurePath(path)]
    (tmp_path / "copy.pt").write_bytes(path.read_bytes())
    for form in [*forms, "copy.pt"]:
        assert torch.equal(gkp.load_model(form).conv1.weight, net.conv1.weight)
        assert torch.equal(gkp.load_model("resnet8", weights=form).conv1.weight, net.conv1.weight)
        assert checkpoint.read_header(tmp_path / path.name)["network"] == "resnet8"


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
        (pathlib.Path("absent.safetensors"), {}, FileNotFoundError, "there is no checkpoint absent"),
        (pathlib.Path(), {}, ValueError, "is a folder: name a file in it"),
        ("resnet8", {"weights": "absent.pt"}, FileNotFoundError, "there is no checkpoint absent.pt"),
        ("https://example.org/net.pth", {}, ValueError, "is an address: download the file"),
        ("absent.safetensors", {"weights": "random"}, ValueError, "has its own weights"),
    ],
)
def test_paths_that_lead_nowhere_are_named(name, options, error, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        gkp.load_model(name, **options)


def test_a_header_of_another_shape_is_damage(tmp_path) -> None:
    path = tmp_path / "file.safetensors"
    for header in ("no JSON", json.dumps([1]), json.dumps({"network": "resnet8"})):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, {"gkp": header})
        with pytest.raises(ValueError, match=r"file\.safetensors is damaged: its header"):
            gkp.load_model(path)


@pytest.mark.parametrize("length", [0x80, 0x3C, 0x8B1F])
def test_a_header_of_any_length_is_read(length: int, tmp_path) -> None:
    """The first bytes of safetensors are a length, which may look like the first of another format."""
    path, net = tmp_path / "file.safetensors", models.create("resnet8")
    checkpoint.save_model(net, path, network="resnet8", dataset="digits")
    data = path.read_bytes()
    now = int.from_bytes(data[:8], "little")
    length = length if length > now else now + (length - now) % 256
    path.write_bytes(length.to_bytes(8, "little") + data[8 : 8 + now].ljust(length) + data[8 + now :])
    assert torch.equal(gkp.load_model(path).conv1.weight, net.conv1.weight)
