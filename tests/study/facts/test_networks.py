"""A dozen of torchvision's classifiers pruned with proof; `python -m gkp networks` prunes them all.

Those that take long have fewer and narrower blocks here; with GKP_SLOW=1 the real ones follow.
"""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.swin_transformer import SwinTransformer

from gkp.nets.channels.surgery import left_out, prunable_layers, summary
from gkp.study.facts import networks as anybody
from gkp.study.report import build as report

SMALL = (
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
)


def alexnet() -> nn.Module:
    """With a thousandth of the weights in its linear layers."""
    model = torchvision.models.AlexNet(10)
    sizes = (256 * 36, 64, 64, 10)
    linear = [place for place, module in enumerate(model.classifier) if isinstance(module, nn.Linear)]
    for place, inputs, outputs in zip(linear, sizes, sizes[1:], strict=False):
        model.classifier[place] = nn.Linear(inputs, outputs)
    return model


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(32, 64, 1), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 1)])


def efficientnet() -> nn.Module:
    """Expansion, kernel, stride, widths, blocks."""
    settings = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2))
    return EfficientNet([MBConvConfig(*setting) for setting in settings], 0.2)


def regnet(se_ratio: float | None) -> nn.Module:
    return RegNet(BlockParams.from_init_params(8, 32, 28.0, 2.1, 8, se_ratio=se_ratio))


# Of those that take long a network of the same class with few blocks.
SHALLOW = {
    "alexnet": alexnet,
    "convnext_tiny": convnext,
    "efficientnet_b0": efficientnet,
    "mobilenet_v2": lambda: MobileNetV2(
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    ),
    "regnet_x_400mf": lambda: regnet(None),
    "regnet_y_400mf": lambda: regnet(0.25),
    "shufflenet_v2_x0_5": lambda: ShuffleNetV2([2, 3, 2], [24, 48, 96, 192, 256]),
    "swin_t": lambda: SwinTransformer([4, 4], 48, [2, 2, 2], [2, 4, 8], [7, 7], stochastic_depth_prob=0.2),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_is_pruned_with_proof(name, monkeypatch):
    whole = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, **options: SHALLOW[name]() if name in SHALLOW else whole(name, **options),
    )
    check(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_a_whole_classifier_is_pruned_with_proof(name, monkeypatch):
    check(name, monkeypatch)


def check(name, monkeypatch):
    monkeypatch.setattr(anybody, "SEARCHED", 32)  # kernels are drawn: what is proved does not depend on them
    row = anybody.survey(name)
    for method in anybody.METHODS:
        found = row["methods"][method]
        assert "refused" not in found, (method, found)
        assert found["layers"] > 0
        assert found["macs"] < 1
        assert found["params"] < 1
    assert row["filters"]["pruned"] > 0


def test_every_layer_is_offered_or_has_a_reason():
    model, x = anybody.build("regnet_y_400mf")
    offered, left = prunable_layers(model, x), left_out(model, x)
    gates = {gate for layer in offered.values() for gate in layer.gates}
    convolutions = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert offered.keys() | left.keys() | gates == convolutions
    assert not offered.keys() & left.keys()


def test_rows_are_kept_and_made_once(tmp_path, monkeypatch):
    path, made = tmp_path / "networks.json", []

    def survey(name):
        made.append(name)
        one = {"layers": 2, "macs": 0.5, "params": 0.5, "left": "", "options": {}, "seconds": 1.0}
        methods = {"l1": one, "group-norm": {"refused": "a reason", "seconds": 0.1}}
        methods["sr-gkp"] = one | {"options": {"strategy": "random"}}
        return {
            "network": name,
            "image": 64,
            "params": 10,
            "filters": {"pruned": 1, "left": "a: b"},
            "groups": 1,
            "seconds": {"looking and proof": 2.0},
            "methods": methods,
        }

    monkeypatch.setattr(anybody, "survey", survey)
    lines = []
    anybody.run(path, ["b", "a"], lines.append)
    anybody.run(path, ["a", "b", "c"], lines.append)
    assert made == ["b", "a", "c"]
    assert [row["network"] for row in json.loads(path.read_text())["rows"]] == ["a", "b", "c"]
    assert (
        lines[0] == "b: l1 2 layers, 50 % MACs, 1 s; group-norm refused, 0 s; sr-gkp 2 layers, 50 % MACs, 1 s"
    )
    page = anybody.page(path)
    assert "0 of 3 classifiers" in page
    assert "Not tried yet: alexnet, " in page
    assert "refused: a reason" in page
    assert "2*, 50 %" in page


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ({}, "none"),
        ({"a.0": "it has groups=24, which go as a whole", "b": "it has groups=48, which go as a whole"},
         "2 grouped or depthwise"),
        ({"a": "its filters are summed with those of b.c", "b.c": "its filters are summed with those of a",
          "d": "ln.1, a LayerNorm, mixes its filters"},
         "2 summed with those of another layer, 1 mixed by LayerNorm"),
        ({"a": "without some of its filters the network does not run (RuntimeError: shape '[1; 2]': no)"},
         "1 without some of its filters the network does not run"),
        ({"b1-0.f": "it has groups=2, which go as a whole", "y-1": "it has groups=4, which go as a whole"},
         "2 grouped or depthwise"),
        ({"a": "some other reason", "b": "some other reason"}, "2 some other reason"),
    ],
)  # fmt: skip
def test_reasons_are_counted_by_their_kind(reasons: dict[str, str], expected: str) -> None:
    assert anybody.why(summary(reasons)) == expected


def test_the_committed_table_is_whole_and_nothing_in_it_is_wrong():
    from pathlib import Path

    rows = anybody.load(Path(__file__).parents[3] / report.NETWORKS)
    if not rows:
        pytest.skip("no table of networks here: python -m gkp networks makes it")
    assert set(rows) <= set(anybody.networks())
    for row in rows.values():
        assert bool(row["filters"]["left"]) == (anybody.why(row["filters"]["left"]) != "none")
        for found in row["methods"].values():
            assert "would compute something else" not in found.get("refused", "")
