"""Files of pruned networks: they compute the same, are never slower, and need nothing but their runtime."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gkp
from gkp import data
from gkp.deploy import exporting, graphs, quantised, runtimes
from gkp.deploy.choice import Choice
from gkp.deploy.grouping import groupings
from gkp.nets.deploy import folded
from gkp.nets.grouped import GroupedKernelConv2d

ALONE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"input": numpy.load(sys.argv[2])})[0])
assert not {"torch", "gkp", "onnx"} & set(sys.modules)
"""


X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    """Random convolutions, pruned, with a linear layer that was fitted to the digits."""
    torch.manual_seed(0)
    features = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
    )
    split = data.load("digits", "train")
    features(split.pixels(slice(0, 256)))  # moves the statistics of the batch norms
    features = gkp.prune(features, groups=2, strategy="random", example_input=X[:1]).eval()
    linear = nn.Linear(256, 10)
    with torch.no_grad():
        inputs = torch.cat([features(split.pixels()), torch.ones(len(split), 1)], 1)
        goal = nn.functional.one_hot(split.labels, 10).float()
        solved = torch.linalg.lstsq(inputs.T @ inputs + 0.1 * torch.eye(257), inputs.T @ goal).solution
        linear.weight.copy_(solved[:-1].T)
        linear.bias.copy_(solved[-1])
    return nn.Sequential(features, linear).eval()


@pytest.fixture
def all_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take their last form, and the network with forms is shipped, whatever is faster here."""
    monkeypatch.setattr(Choice, "taken", property(lambda self: list(self.ms)[-1]))
    monkeypatch.setattr(exporting, "GAIN", 1e9)

    def timed(runs, x, *, rounds):
        return {name: exporting.Timing(*4 * (float(name != "forms") + 1,)) for name in runs}

    monkeypatch.setattr(exporting, "interleaved", timed)


def test_a_file_for_onnx_runtime_needs_nothing_else(pruned: nn.Module, tmp_path: Path, all_win: None) -> None:
    path, images, logits = tmp_path / "net.onnx", tmp_path / "images.npy", tmp_path / "logits.npy"
    report = gkp.export(pruned, path, example_input=X, batch=2, threads=1, rounds=1)
    assert (report["shipped"], report["input"]) == ("forms", [2, 3, 32, 32])
    assert {layer["taken"] for layer in report["layers"]} == {"split"}
    assert report == json.loads((tmp_path / "net.onnx.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    np.save(images, X.numpy())
    subprocess.run([sys.executable, "-c", ALONE, path, images, logits], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = pruned(X)
    found = torch.from_numpy(np.load(logits))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.std()) * 1e-4)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_other_runtimes_compute_the_same(
    runtime: str, pruned: nn.Module, tmp_path: Path, all_win: None
) -> None:
    if runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    path = tmp_path / f"net{runtimes.SUFFIXES[runtime]}"
    report = gkp.export(pruned, path, example_input=X, runtime=runtime, batch=2, threads=1, rounds=1)
    assert report["shipped"] == "forms"
    with torch.no_grad():
        expected, found = pruned(X), runtimes.load(runtime, path, 1)(X)
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.std()) * 1e-4)


def test_dense_is_shipped_where_no_form_wins(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = {"dense": 1.0}

    def timed(runs, x, *, rounds):
        return {name: exporting.Timing(*4 * (slower.get(name, 0.99),)) for name in runs}

    monkeypatch.setattr(exporting, "interleaved", timed)  # 1 % is no gain
    report = gkp.export(pruned, tmp_path / "net.pt2", example_input=X, runtime="torch", rounds=1)
    assert (report["shipped"], report["form_wins"]) == ("dense", False)
    program = torch.export.load(tmp_path / "net.pt2")
    assert sum("aten.conv2d" in str(node.target) for node in program.graph.nodes) == 3  # of dense layers


def test_a_network_without_grouped_kernels_goes_too(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    report = gkp.export(net, tmp_path / "net.onnx", example_input=torch.rand(1, 1, 8, 8), rounds=1)
    assert (report["layers"], report["shipped"]) == ([], "dense")
    assert report["largest_error_of_logits_std"] < 1e-4


def test_batch_norms_that_the_exporter_folds_stay_folded(tmp_path: Path, all_win: None) -> None:
    """A network that torch.fx cannot follow is exported with its batch norms, which torch.onnx may fold."""

    class Branching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if len(x) > 0 else x

    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    network = Branching(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.normal_(network[1].weight)
    network(3 * X)  # moves the statistics of the batch norms
    pruned = gkp.prune(network, groups=2, strategy="random", example_input=X).eval()
    report = gkp.export(pruned, tmp_path / "net.onnx", example_input=X, rounds=1)
    assert report["largest_error_of_logits_std"] < 1e-4


class Twice(nn.Module):
    """A convolution and a linear layer that run twice, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.linear, self.head = nn.Conv2d(16, 16, 3), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.again(self.first(x).relu()).relu())
        return self.head(self.linear(self.linear(self.last(x).mean((2, 3))).relu()))


@pytest.mark.parametrize("prunes", [False, True])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_layer_that_runs_twice_stays_dense(
    runtime: str, prunes: bool, tmp_path: Path, all_win: None
) -> None:
    if runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    torch.manual_seed(0)
    network = Twice().eval()
    if prunes:
        network = gkp.prune(network, groups=2, strategy="random", example_input=X[:1])
        assert groupings(network).keys() >= {"again", "last"}
    path = tmp_path / f"net{runtimes.SUFFIXES[runtime]}"
    split = data.load("digits", "test") if runtime == "onnxruntime" else None
    report = gkp.export(
        network,
        path,
        example_input=X,
        runtime=runtime,
        threads=1,
        rounds=1,
        int8=split is not None,
        data=split,
    )
    assert "again" not in {layer["layer"] for layer in report["layers"]}
    assert ("last" in {layer["layer"] for layer in report["layers"]}) == prunes
    assert report["largest_error_of_logits_std"] < exporting.TOLERANCE


def test_eight_bits_are_measured_and_tell_their_accuracy(pruned: nn.Module, tmp_path: Path) -> None:
    split = data.load("digits", "test")
    path = tmp_path / "net.onnx"
    told = gkp.export(pruned, path, example_input=X, batch=64, int8=True, data=split, rounds=2)["int8"]
    assert told["images"] + told["calibration_images"] == len(split)
    rest = split.pixels(slice(told["calibration_images"], None))
    with torch.no_grad():
        right = (pruned(rest).argmax(1) == split.labels[told["calibration_images"] :]).float().mean()
    assert told["accuracy"]["float"] == pytest.approx(float(right), abs=2.5 / len(rest))
    assert 0.7 < told["accuracy"]["int8"] < told["accuracy"]["float"] + 0.05
    assert told["shipped"] == (told["ms"]["int8"] < exporting.GAIN * told["ms"]["float"])
    assert (b"QuantizeLinear" in path.read_bytes()) == told["shipped"]


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)


def test_a_network_that_draws_is_refused_and_the_callers_numbers_go_on(tmp_path: Path) -> None:
    net = nn.Sequential(Noise(), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="misses the model's logits .* gives one answer"):
        gkp.export(net, tmp_path / "net.onnx", example_input=X[:, :1, :8, :8], rounds=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_not_finite_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    monkeypatch.setattr(exporting, "_candidates", lambda *_: pytest.fail("it measures"))
    with pytest.raises(ValueError, match="0.weight holds NaN or infinity in 1 of its 216 numbers"):
        gkp.export(net, tmp_path / "net.onnx", example_input=X[:, :, :8, :8])
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_written(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("as before")
    load = runtimes.load
    monkeypatch.setattr(runtimes, "load", lambda *a: lambda x: load(*a)(x) * 1.001)
    with pytest.raises(ValueError, match="misses the model's logits"):
        gkp.export(pruned, path, example_input=X, runtime="torch", rounds=1)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_text() == "as before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'"),
        ({"path": "net.pt2"}, "ends in .onnx"),
        ({"batch": 0}, "batch=0: give a positive whole number"),
        ({"batch": "dynamic"}, "fixed for the file"),
        ({"threads": True}, "threads=True"),
        ({"rounds": 0}, "rounds=0"),
        ({"int8": True}, "int8=True needs images"),
        ({"int8": True, "data": 3}, "int8=True needs images"),
        ({"int8": True, "runtime": "torch", "path": "net.pt2"}, 'for runtime="onnxruntime"'),
        ({"data": [1, 2]}, "data is for int8=True"),
        ({"example_input": torch.zeros(1, 4, 32, 32)}, "does not run on an example of shape"),
        ({"example_input": torch.zeros(1, 3 * 32 * 32)}, "give images"),
        ({"example_input": torch.zeros(1, 3, 32, 32, dtype=torch.int64)}, "floating-point"),
    ],
    ids=str,
)
def test_wrong_options_get_a_sentence(options: dict, message: str, pruned: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / options.get("path", "net.onnx")
    with pytest.raises(ValueError, match=message):
        gkp.export(pruned, **({"example_input": X} | options | {"path": path}))
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_names_the_command(
    pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install openvino onnx onnxscript"):
        gkp.export(pruned, tmp_path / "net.onnx", runtime="openvino")


@pytest.mark.parametrize("vnni", [True, False])
def test_weights_lose_a_bit_only_where_products_could_overflow(
    vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    file, smaller = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    onnx.save(graphs.chain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), X).proto, file)
    quantised._quantise(file, smaller, quantised._Batches(X, len(X)))
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(smaller).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert [len(weight) for weight in weights] == [4, 2]
    assert {int(np.abs(weight.astype(int)).max()) for weight in weights} == {127 if vnni else 64}


def test_the_package_imports_without_runtimes() -> None:
    """With modules of these names that cannot be imported."""
    blocked = "import sys; sys.modules |= dict.fromkeys(['onnx', 'onnxruntime', 'openvino', 'onnxscript'])"
    subprocess.run([sys.executable, "-c", f"{blocked}; import gkp; gkp.export; import gkp.cli"], check=True)


def test_a_forward_that_branches_on_values_gets_a_sentence(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.conv(x).mean((2, 3))
            return out if float(out.sum()) > 0 else -out

    for runtime, suffix in (("torch", "pt2"), ("onnxruntime", "onnx")):
        with pytest.raises(ValueError, match=r"cannot (follow|export) this Branching"):
            gkp.export(
                Branching().eval(),
                tmp_path / f"n.{suffix}",
                runtime=runtime,
                example_input=torch.rand(1, 3, 8, 8),
            )


@pytest.mark.parametrize(("form", "convolutions"), [("grouped", 1), ("split", 2)])
def test_groups_with_one_set_of_channels_are_one_in_the_file(
    form: str, convolutions: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kept, x = torch.tensor([[0, 1, 2, 5], [0, 1, 2, 5], [1, 3, 5, 7], [0, 1, 2, 5]]), torch.rand(2, 8, 5, 5)
    layer = GroupedKernelConv2d(8, 16, 3, filter_order=torch.randperm(16), kept=kept)
    network = nn.Sequential(layer).eval()
    dense = folded(network, x)
    made = graphs.with_forms(graphs.chain(dense, x), dense, groupings(network), {"0": form})
    assert [node.op_type for node in made.graph.node].count("Conv") == convolutions
    (tmp_path / "net.onnx").write_bytes(made.SerializeToString())
    with torch.no_grad():
        found = runtimes.load("onnxruntime", tmp_path / "net.onnx", 1)(x)
        torch.testing.assert_close(found, network(x), rtol=1e-4, atol=1e-5)
