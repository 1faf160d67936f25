"""Facts about attacks: what is recorded is what was attacked, and the record says what the code writes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from record_factory import measured
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


def test_repeated_attacks_are_counted_image_by_image(cifar10_test, tmp_path, monkeypatch):
    """Of a store with one checkpoint, whose record is wrong about the first two images under one attack."""
    monkeypatch.setattr(attacked, "REPEATED", 4)
    suite, run = "cifar10-resnet56-57", next(r for r in suites.get("cifar10-resnet56-57").runs if r.recipe)
    record, store = Store(".").find(run), Store(tmp_path)
    kept = record.kept["last"]
    name = "fgsm_norm_0.01_predicted"
    right = kept.metrics[name].right.clone()
    right[:2] = ~right[:2]
    metrics = {**kept.metrics, name: measured(kept.metrics[name].attack, right)}
    wrong = replace(kept, metrics=metrics, self_check=())  # which says nothing of repaired images
    store.write(replace(record, kept={"last": wrong}))
    (tmp_path / kept.file).parent.mkdir(parents=True)
    (tmp_path / kept.file).write_bytes(Path(kept.file).read_bytes())
    monkeypatch.setattr(attacked, "CODE", tmp_path)
    found = attacked.repeated(suite)
    assert found["differ"][name] == 2
    assert sum(found["differ"].values()) == 2
    assert (found["answers"], found["checkpoints"], found["damaged"]) == (4, 1, 0)
    assert found["self_checks_differ"] == 1


def test_nothing_is_repeated_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(attacked, "CODE", tmp_path)
    with pytest.raises(FileNotFoundError, match="run the suite first"):
        attacked.repeated("cifar10-resnet56-57")
