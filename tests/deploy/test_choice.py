"""Measured times: kept, read again, and what is taken of them; groups that run fastest."""

from pathlib import Path

import pytest
import torch
from torch import nn

import gkp
from gkp.deploy import choice, groups, timing
from gkp.deploy.choice import Choice, Setting, Times, measured
from gkp.deploy.grouping import Grouping
from gkp.nets.channels.surgery import kernel_layers

GROUPING = Grouping(
    (torch.tensor([0, 2]), torch.tensor([1, 3])), (torch.tensor([0, 2]), torch.tensor([1, 2]))
)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_times_are_measured_once_and_kept(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    shape = torch.Size((1, 4, 6, 6))
    ms = measured(conv, GROUPING, shape, Setting(runtime, 1, 2, Times(tmp_path)))
    assert list(ms) == ["dense", "grouped", "split"]
    assert min(ms.values()) > 0
    monkeypatch.setattr(choice, "interleaved", None)  # nothing is measured again
    again = Setting(runtime, 1, 2, Times(tmp_path))
    assert measured(conv, GROUPING, shape, again) == ms
    with pytest.raises(TypeError):
        measured(conv, GROUPING, torch.Size((2, 4, 6, 6)), again)  # another batch


def test_what_another_process_measured_meanwhile_stays(tmp_path: Path) -> None:
    one, other = Times(tmp_path), Times(tmp_path)
    one.add("a", {"dense": 1.0})
    other.add("b", {"dense": 2.0})
    assert Times(tmp_path).known == {"a": {"dense": 1.0}, "b": {"dense": 2.0}}


def test_times_of_another_processor_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for name in ("one", "other"):
        monkeypatch.setattr(choice, "processor", lambda name=name: name)
        keys.add(Setting("torch", 1).key(nn.Conv2d(4, 4, 3), GROUPING, torch.Size((1, 4, 6, 6))))
    assert len(keys) == 2


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    for content in ("{", "[1]"):
        (tmp_path / choice.CACHE).write_text(content)
        with pytest.raises(ValueError, match="delete it"):
            Times(tmp_path)


@pytest.mark.parametrize(
    ("ms", "taken"),
    [
        ({"dense": 1.0, "grouped": 0.9, "split": 0.8}, "split"),
        ({"dense": 1.0, "grouped": 0.9, "split": 1.8}, "grouped"),
        ({"dense": 1.0, "grouped": 0.99}, "dense"),
    ],
)
def test_what_is_taken(ms: dict, taken: str) -> None:
    layer = Choice("conv", "", [1], 2, 2, ms)
    assert layer.taken == taken
    assert layer.gain == ms[taken]


def test_variants_run_in_turns_and_the_least_time_is_that_of_the_quickest() -> None:
    order: list[str] = []
    variants = {name: lambda x, name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(variants, torch.zeros(1), rounds=4)
    assert [sorted(order[i : i + 3]) for i in range(0, len(order), 3)] == [list("abc")] * 6
    assert {order[i] for i in range(0, len(order), 3)} == set("abc")
    assert all(each.least <= each.low <= each.median <= each.high for each in times.values())


def fake(best: dict[int, float]):
    """Times by the number of groups; the dense form takes 1."""

    def times(layer, grouping, shape, setting):
        return {"dense": 1.0, "split": best.get(len(grouping.filters), 2.0)}

    return times


@pytest.mark.parametrize(
    ("best", "chosen"),
    [({}, 8), ({2: 0.6, 4: 0.7}, 2), ({2: 0.6, 8: 0.59}, 8), ({8: 0.9, 2: 0.89}, 8), ({16: 0.5}, 16)],
)
def test_the_papers_groups_stay_where_nothing_is_faster(
    best: dict, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "measured", fake(best))
    found = groups.fastest_groups(gkp.models.create("resnet8"), 0.4375)
    assert set(found.values()) == {chosen}


def products(layer, grouping, shape, setting):
    """Times that count multiplications, a little more with few groups."""
    spatial = layer.kernel_size[0] ** 2 * shape[-1] * shape[-2]
    read = sum(len(f) * len(c) for f, c in zip(grouping.filters, grouping.channels, strict=True))
    return {
        "dense": float(spatial * layer.in_channels * layer.out_channels),
        "split": float(spatial * read) * (1 + 0.05 / len(grouping.filters)),
    }


@pytest.mark.parametrize(("branches", "chosen"), [(1, 2), (2, 8)])
def test_filters_that_few_groups_leave_unread_count(
    branches: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(256, 64, 1), nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            return self.second(x) if branches == 1 else self.second(x) + x

    monkeypatch.setattr(groups, "measured", products)
    found = groups.fastest_groups(Net().eval(), 0.4375, torch.rand(1, 256, 8, 8), groups=(2, 8))
    assert found == {"second": chosen}


def test_measured_groups_can_be_pruned_with() -> None:
    torch.manual_seed(0)
    model = gkp.models.create("resnet8")
    layers, _ = kernel_layers(model, 1, None)
    found = groups.fastest_groups(model, 0.4375, runtime="torch", groups=(2, 8), rounds=1)
    assert set(found) == set(layers)
    assert set(found.values()) <= {2, 8}
    mixed = dict.fromkeys(found, 2) | {"layer3.0.conv2": 8}
    pruned = gkp.prune(model, groups=mixed, strategy="random")
    assert {name: pruned.get_submodule(name).groups for name in found} == mixed
