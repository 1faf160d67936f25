from collections.abc import Callable

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from gkp.nets import cost, models
from gkp.nets.grouped import GroupedKernelConv2d, set_execution
from gkp.search import Selection
from gkp.search.objective import kept_count

X = torch.rand(1, 3, 32, 32)

# network, rate: MACs and parameters in millions as the paper prints them (tables 9 to 12 and 17 to 19)
PRINTED = {
    ("resnet32", 0.0): ("69.479", "0.464"),
    ("resnet32", 0.4375): ("39.545", "0.263"),
    ("resnet32", 0.625): ("26.717", "0.176"),
    ("resnet56", 0.0): ("126.561", "0.853"),
    ("resnet56", 0.4375): ("71.855", "0.482"),
    ("resnet56", 0.625): ("48.409", "0.323"),
    ("resnet110", 0.0): ("254.995", "1.728"),
    ("resnet110", 0.4375): ("144.551", "0.976"),
    ("resnet110", 0.625): ("97.217", "0.654"),
    ("vgg16", 0.4375): ("178.184", "8.293"),
}


def pruned_at(network: str, rate: float) -> nn.Module:
    """The network with any kernels removed at this rate: costs do not depend on which."""
    model = models.create(network)
    for name, conv in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)][1:]:
        if rate:
            kept = torch.arange(kept_count(conv.in_channels, rate)).repeat(8, 1)
            selection = Selection(torch.arange(conv.out_channels), kept, torch.zeros(8))
            model.set_submodule(name, GroupedKernelConv2d.from_conv(conv, selection))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    return model


@pytest.mark.parametrize(("network", "rate"), PRINTED)
def test_every_printed_cost_to_the_last_digit(network: str, rate: float) -> None:
    counted = cost.count(pruned_at(network, rate), X, convention="paper")
    assert (f"{counted.macs / 1e6:.3f}", f"{counted.params / 1e6:.3f}") == PRINTED[network, rate]


def test_the_printed_unpruned_vgg_is_one_million_short() -> None:
    """The paper prints 313.433; its own counter, right for the pruned one, gives the same digits on 314."""
    counted = cost.count(pruned_at("vgg16", 0), X, convention="paper")
    assert (f"{counted.macs / 1e6:.3f}", f"{counted.params / 1e6:.3f}") == ("314.433", "14.728")


@pytest.mark.parametrize("network", ["resnet20", "vgg16"])
def test_usual_macs_equal_fvcore(network: str) -> None:
    model = models.create(network).eval()
    per_module = FlopCountAnalysis(model, X).unsupported_ops_warnings(False).by_operator()
    assert cost.count(model, X).macs == per_module["conv"] + per_module["linear"]


def test_both_executions_cost_the_same() -> None:
    model = pruned_at("resnet8", 0.4375)
    for convention in cost.CONVENTIONS:
        dense = cost.count(set_execution(model, "dense"), X, convention=convention)
        assert dense == cost.count(set_execution(model, "grouped"), X, convention=convention)


def test_zeros_are_free_in_the_papers_convention_only() -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False)
    nn.init.ones_(conv.weight)
    conv.weight.data[0] = 0
    x = torch.rand(5, 2, 4, 4)
    assert cost.count(conv, x, convention="paper") == cost.Cost(2 * 16, 2)
    assert cost.count(conv, x) == cost.Cost(4 * 16, 4)


def test_counting_leaves_no_trace() -> None:
    model = models.create("resnet8").train()
    mean = model.bn1.running_mean.clone()
    cost.count(model, X)
    assert model.training
    assert torch.equal(model.bn1.running_mean, mean)
    assert not any(module._forward_hooks for module in model.modules())


def test_latency_reports_quartiles_of_the_rounds_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, []

    def lasting(name: str, *seconds: float) -> Callable[[torch.Tensor], torch.Tensor]:
        left = iter(seconds)

        def run(x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now += next(left)
            order.append(name)
            return x

        return run

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now)
    variants = {"a": lasting("a", 100, 200, 5, 1, 2, 4, 3), "b": lasting("b", 50, 60, *[7] * 5)}
    timed = cost.latency(variants, X, rounds=5)
    assert timed == {"a": cost.Latency(3, 2, 4), "b": cost.Latency(7, 7, 7)}
    assert order == ["a", "b"] * 7
    with pytest.raises(ValueError, match="at least 1"):
        cost.latency({}, X, rounds=0)


def test_unknown_convention() -> None:
    with pytest.raises(ValueError, match="usual, paper"):
        cost.count(nn.Identity(), X, convention="theirs")
