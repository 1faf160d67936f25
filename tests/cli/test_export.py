"""`python -m gkp export`: the table, the file beside its report, and errors in one sentence."""

import json
import sys
from pathlib import Path

import pytest
import torch

import gkp as library
from gkp import cli
from gkp.cli.export import lines
from gkp.nets import checkpoint, models


def gkp(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gkp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code or 0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "pruned.safetensors"
    torch.manual_seed(0)
    pruned = library.prune(models.create("resnet8"), groups=2, strategy="random").eval()
    checkpoint.save_model(pruned, path, network="resnet8", dataset="digits")
    return path


def test_it_writes_a_file_and_says_what_was_measured(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pruned.pt2"
    options = ("--runtime", "torch", "--threads", "1", "--cache", tmp_path / "times")
    assert gkp(monkeypatch, "export", "--model", network, "--output", output, *options) == 0
    report = json.loads((tmp_path / "pruned.pt2.json").read_text())
    assert capsys.readouterr().out.splitlines() == [*lines(report), f"saved {output} and {output}.json"]
    assert len(report["layers"]) == 6
    assert (tmp_path / "times" / "forms.json").exists()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found, expected = torch.export.load(output).module()(x), checkpoint.load_file(network).eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_report_as_text() -> None:
    ms = {"least": 2.0, "low": 2.0, "median": 3.0, "high": 4.0}
    layer = {"layer": "a.conv", "kind": "3x3, 8 to 8", "shape": [1, 8, 4, 4], "groups": 2, "keep": 5}
    report = {
        "layers": [layer | {"ms": {"dense": 1.0, "split": 0.5}, "taken": "split"}],
        "network_ms": {"dense": ms, "forms": ms | {"least": 1.5}},
        "shipped": "forms",
        "form_wins": True,
    }
    text = "\n".join(lines(report))
    assert text.splitlines()[1].split() == (
        ["a.conv", "3x3,", "8", "to", "8", "1x8x4x4", "2", "5", "1.000", "0.500", "split"]
    )
    assert "0.75" in text
    assert text.endswith("shipped: forms")
    dense = report | {"layers": [], "shipped": "dense", "form_wins": False}
    assert "no layer of grouped kernels" in lines(dense)[0]
    assert lines(dense)[-1] == "shipped: dense, since nothing is faster"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "x.pt2"), "ends in .onnx"),
        (("--output", "x.onnx", "--runtime", "tflite"), "unknown runtime 'tflite'"),
        (("--output", "x.onnx", "--batch", "0"), "--batch '0'"),
        (("--output", "x.onnx", "--threads", "all"), "--threads 'all'"),
        (("--output", "x.onnx", "--images", "5"), "images are for --int8"),
        (("--output", "x.onnx", "--int8", "--images", "9999"), "cannot take 9999 of digits test, 497 images"),
        (("--output", "gone/x.onnx"), "make it first"),
    ],
    ids=str,
)
def test_wrong_options_get_a_sentence(
    options: tuple,
    message: str,
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gkp(monkeypatch, "export", "--model", network, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_groups_can_be_measured(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = {"layer1.0.conv1": 2, "layer3.0.conv2": 4}
    monkeypatch.setattr("gkp.deploy.fastest_groups", lambda model, rate, example: fastest)
    dense, output = tmp_path / "dense.safetensors", tmp_path / "pruned.safetensors"
    checkpoint.save_model(models.create("resnet8").eval(), dense, network="resnet8", dataset="digits")
    assert gkp(monkeypatch, "prune", "--model", dense, "--output", output, "--groups", "auto") == 0
    pruned = checkpoint.load_file(output)
    assert {name: pruned.get_submodule(name).groups for name in fastest} == fastest
