"""Facts about attacks: what is recorded is what was attacked, and the record says what the code writes."""

import pytest
import torch
from torch import nn

from gkp.study.facts import attacked
from gkp.study.facts.method import FACTS
from gkp.study.runs import suites
from gkp.study.runs.store import Store


class Bright(nn.Module):
    """Class 1 for images that are brighter than a half."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))
        return torch.stack([0.5 - bright, bright - 0.5], 1)


def test_an_image_survives_packing():
    levels = 255 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attacked.unpacked(attacked.packed(levels)), levels, rtol=1e-3, atol=1e-3)


def test_the_answer_is_the_most_likely_class():
    assert attacked.answer(Bright(), torch.ones(1, 3, 32, 32)) == {"predicted": 1, "confidence": 0.731}


def test_the_recorded_digit_was_changed_by_no_more_than_eps():
    found = Store(".").fact("cifar10-resnet20-audit", "attacked-digit").facts
    assert found["clean"]["predicted"] == found["label"]
    assert attacked.unpacked(found["clean"]["image"]).shape == (3, 32, 32)
    assert [(one["space"], one["eps"]) for one in found["attacked"]] == [
        (space, eps) for space in attacked.SPACES for eps in attacked.EPS
    ]
    for one in found["attacked"]:
        largest = float(attacked.unpacked(one["difference"]).abs().max())
        assert largest == pytest.approx(one["furthest"], abs=0.01)
        if one["space"] == "pixel":
            assert one["furthest"] == pytest.approx(255 * one["eps"], abs=0.01)


def test_robustbench_attacks_the_shipped_network_on_the_first_images(monkeypatch):
    class Images:
        labels = torch.zeros(4, dtype=torch.int64)

        def take(self, n):
            assert n == attacked.IMAGES
            return self

        def pixels(self):
            return torch.zeros(4, 3, 32, 32)

    def benchmark(model, x, y, *, eps, batch_size):
        assert eps == pytest.approx(1 / 255)
        assert model(x).shape == (4, 10)
        return 0.75, 0.125

    monkeypatch.setattr(attacked.data, "load", lambda dataset, part: Images())
    monkeypatch.setattr(attacked, "benchmark", benchmark)
    found = attacked.robustbench()
    assert (found["clean"], found["robust"], found["attack"]) == (24, 4, "autoattack_pixel_1/255_true")
    assert found.keys() == Store(".").fact("cifar10-resnet20-autoattack", "robustbench").facts.keys()


def test_the_suites_ask_for_facts_that_are_known():
    for name in ("cifar10-resnet20-audit", "cifar10-resnet20-autoattack"):
        assert suites.get(name).facts
        assert set(suites.get(name).facts) <= set(FACTS)
