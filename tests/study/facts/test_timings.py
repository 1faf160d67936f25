"""Times: what is timed is the pruning step, and every execution computes the same."""

import time

import pytest
import torch

from gkp import pruners
from gkp.nets import cost
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.study.facts import timings
from gkp.study.facts.method import FACTS
from gkp.study.runs import suites


def test_the_median_of_the_repeats_without_the_first_call(monkeypatch):
    clock = iter([0, 3, 10, 11, 20, 25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls = []
    found = timings.repeated(lambda: calls.append(1), 3)
    assert found == {"seconds": 3, "least": 1, "most": 5}
    assert len(calls) == 4


def test_the_timed_step_is_the_papers_pruning():
    model = timings._load("resnet8", "random")
    pruned = timings.prune(model, "sr-gkp")
    layers = [module for module in pruned.modules() if isinstance(module, GroupedKernelConv2d)]
    facts = timings.pruning_time([("resnet8", "random")], repeats=1)["networks"]["resnet8"]
    assert len(layers) == facts["layers"] == 6
    assert {module.kept.shape[1] / module.in_channels for module in layers} == {9 / 16}
    assert 0 < facts["grouping_seconds"] < facts["seconds"]


def test_untrained_networks_are_the_same_every_time_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    a, b = (timings._load("resnet8", "random").state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_execution_computes_the_same_and_only_masks_differ():
    model = timings._load("resnet8", "random")
    variants = timings.executions(model)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = {title: run(x) for title, run in variants.items()}
    expected = out.pop("pruned, masked dense")
    assert not torch.allclose(out.pop("unpruned"), expected)
    for other in (timings.GROUPED_EARLY, timings.FILTERS, timings.FILTERS_EARLY):
        assert not torch.allclose(out.pop(other), expected)
    assert len(out) == 3
    for title, each in out.items():
        torch.testing.assert_close(each, expected, msg=title)
    counted = {title: cost.count(variant, x) for title, variant in variants.items()}
    for flat, early in (
        (timings.GROUPED, timings.GROUPED_EARLY),
        (timings.FILTERS, timings.FILTERS_EARLY),
    ):
        assert counted[early].macs == pytest.approx(counted[flat].macs, rel=0.01)
        assert counted[flat].macs < counted["unpruned"].macs
        assert counted[flat].params < counted[early].params < counted["unpruned"].params


def test_latency_ratios_are_those_of_the_medians():
    rows = timings.latency(["resnet8"], batches=[1], rounds=1)["networks"]["resnet8"]["batch 1"]
    assert rows["unpruned"]["ratio"] == 1
    grouped = rows["pruned, grouped"]
    assert grouped["low"] <= grouped["seconds"] <= grouped["high"]
    assert grouped["ratio"] == pytest.approx(grouped["seconds"] / rows["unpruned"]["seconds"], rel=0.02)


def test_every_fact_of_the_suite_is_known():
    assert set(suites.get("cost").facts) <= set(FACTS)


def test_methods_that_need_nothing_are_timed(authors20):
    found = timings.method_time(repeats=1)["methods"]
    assert {"sr-gkp", "l1", "random"} <= set(found)
    assert not {name for name in found if pruners.get(name).needs != "nothing"}
