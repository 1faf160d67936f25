"""`gkp prune`: every method from the shell, the size that multiply-adds are of, and what is said."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gkp import cli, data, pruners
from gkp.cli import arguments
from gkp.nets import checkpoint, cost, models
from gkp.utils import assignments

IMAGES = 64


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a ResNet-8 of the digits, of which there are few."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, part, **_: load(name, part).take(IMAGES))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = models.create("resnet8").eval()
    checkpoint.save_model(network, "net.safetensors", network="resnet8", dataset="digits")
    return tmp_path


def prune(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    command = ["gkp", "prune", "--model", "net.safetensors", "--output", "pruned.safetensors"]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code or 0


def needs(name: str) -> list[str]:
    """The arguments without which the method does not work, or searches for a minute."""
    method = pruners.get(name)
    if name == "nppm":
        return ["--option", "iterations=20"]
    if method.start is not None:
        return ["--epochs", "1"]
    return ["--snapshot", "net.safetensors"] if method.needs == "training snapshots" else []


@pytest.mark.parametrize("name", pruners.methods())
def test_every_method_works_from_the_shell(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(monkeypatch, "--method", name, *needs(name)) == 0, capsys.readouterr().err
    output, errors = capsys.readouterr()
    before, after, saved = output.splitlines()
    assert ("2 of 6: layer1.0.conv2" in errors) == name.startswith("sr-gkp")
    macs = [float(re.search(r"([\d.]+) M MACs", line)[1]) for line in (before, after)]
    pruned = checkpoint.load_file(here / "pruned.safetensors")
    assert macs[1] < macs[0]
    assert macs[1] == pytest.approx(cost.count(pruned, torch.zeros(1, 3, 32, 32)).macs / 1e6, abs=1e-3)
    assert before.endswith("one 32x32 image")
    assert saved == "saved  pruned.safetensors"
    header = checkpoint.read_header(here / "pruned.safetensors")
    assert header["dataset"] == "digits"
    assert ("groups" in header["about"]) == (pruners.get(name).structure == "grouped kernel")


def test_options_reach_the_method_and_stand_in_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    real = pruners.prune
    monkeypatch.setattr(pruners, "prune", lambda *a, **k: seen.update(k) or real(*a, **k))
    given = ["images=8", "seed=3"]
    assert prune(monkeypatch, "--method", "hrank", *(part for o in given for part in ("--option", o))) == 0
    assert {key: seen[key] for key in ("images", "seed")} == {"images": 8, "seed": 3}
    assert checkpoint.read_header(here / "pruned.safetensors")["about"]["options"] == given


def test_a_text_option_may_be_a_number(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune(monkeypatch, "--option", "beta=0.5") == 0


def test_multiply_adds_are_those_of_the_size_of_the_data_set(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = models.create("resnet8", num_classes=1000).eval()
    checkpoint.save_model(network, "net.safetensors", network="resnet8", dataset="imagenet")
    assert prune(monkeypatch, "--method", "l1") == 0
    before = capsys.readouterr().out.splitlines()[0]
    right = cost.count(network, torch.zeros(1, 3, 224, 224)).macs / 1e6
    assert before.split()[1] == f"{right:.3f}"
    assert before.endswith("one 224x224 image")


def test_what_is_left_unpruned_is_a_line_on_standard_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = models.create("resnet8").eval()
    network.layer1[0].conv1 = nn.Conv2d(16, 15, 3, padding=1, bias=False)
    network.layer1[0].bn1 = nn.BatchNorm2d(15)
    network.layer1[0].conv2 = nn.Conv2d(15, 16, 3, padding=1, bias=False)
    checkpoint.save_model(network.eval(), "net.safetensors", network="resnet8", dataset="digits")
    assert prune(monkeypatch) == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("sr-gkp:")]
    assert len(errors) == 1
    assert errors[0].startswith("left unpruned: layer1.0.conv1: ")


def test_a_failing_write_leaves_the_old_file_and_names_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = here / "pruned.safetensors"
    old.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert prune(monkeypatch) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: pruned.safetensors: No space left on device: free some space")
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in here.iterdir()) == ["net.safetensors", "pruned.safetensors"]


def test_a_shipped_network_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("checkpoints/small/l1.safetensors")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    with pytest.raises(ValueError, match="is the network to prune"):
        arguments.output_file(place, "small/l1")
    arguments.output_file(place, "small/l2")


def test_options_without_a_default_take_numbers_and_none() -> None:
    assert assignments.assignments(["a=None", "b=none", "c=2"]) == {"a": None, "b": "none", "c": 2}
    for value in (None, 3, 0.5):
        assignments.like("sparsity", value, None, "here")
    for value in ("abc", True):
        with pytest.raises(ValueError, match="give a number, or None"):
            assignments.like("sparsity", value, None, "here")
    with pytest.raises(ValueError, match="give a whole number"):
        assignments.like("images", None, 64, "here")
