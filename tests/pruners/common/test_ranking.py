"""One ranking for all layers: budgets, floors, and the fine knob that meets a target of multiply-adds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gkp.nets import cost
from gkp.nets.channels.surgery import FilterLayer, default_input, filter_layers
from gkp.pruners import match_macs
from gkp.pruners.common.ranking import filter_macs, global_cut, lowest, own_norm

LAYERS = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=5)


@given(LAYERS, st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 99))
def test_a_ranking_keeps_what_scores_higher_within_a_layer_the_budget_and_the_floor(
    scores, rate, minimum, seed
) -> None:
    scores = {str(i): torch.tensor(layer) for i, layer in enumerate(scores)}
    generator = torch.Generator().manual_seed(seed)
    worth = {name: float(torch.randint(1, 9, (), generator=generator)) for name in scores}
    drop = lowest(scores, worth, rate, minimum)
    total = sum(worth[name] * len(score) for name, score in scores.items())
    assert sum(worth[name] * len(gone) for name, gone in drop.items()) <= rate * total + 1e-6
    for name, score in scores.items():
        kept = torch.ones(len(score), dtype=torch.bool)
        kept[drop[name]] = False
        assert kept.sum() >= max(1, minimum * len(score))
        if len(drop[name]):
            assert score[kept].min() >= score[drop[name]].max()


@given(LAYERS, st.floats(0, 1))
def test_filters_of_equal_worth_go_by_score_over_all_layers(layers, rate) -> None:
    scores = {str(i): torch.tensor(layer) for i, layer in enumerate(layers)}
    drop = lowest(scores, dict.fromkeys(scores, 1.0), rate, 0.0)
    spare = {name: len(score) - 1 for name, score in scores.items()}
    ranked = sorted((float(s), int(n), i) for n, score in scores.items() for i, s in enumerate(score))
    expected = {name: set() for name in scores}
    budget = int(rate * len(ranked) + 1e-6)
    for _, layer, index in ranked:
        name = str(layer)
        if budget and len(expected[name]) < spare[name]:
            expected[name].add(index)
            budget -= 1
    assert {name: set(gone.tolist()) for name, gone in drop.items()} == expected


def test_rate_0_drops_nothing() -> None:
    drop = lowest({"a": torch.zeros(5)}, {"a": 1.0}, 0.0)
    assert len(drop["a"]) == 0


def test_the_share_that_stays_must_be_a_share() -> None:
    with pytest.raises(ValueError, match="minimum=1.0"):
        lowest({"a": torch.zeros(5)}, {"a": 1.0}, 0.5, minimum=1.0)


def test_the_worth_of_a_filter_is_what_the_network_saves_without_it(resnet8) -> None:
    x = default_input(resnet8, None)
    layers = filter_layers(resnet8, x)
    worth = filter_macs(resnet8, layers, x)
    whole = cost.count(resnet8, x).macs
    for name in layers:
        scores = {other: torch.ones(layer.filters) for other, layer in layers.items()}
        scores[name][3] = 0
        cut = global_cut(resnet8, {name: scores[name]}, x)
        one_filter = cut(1 / layers[name].filters)
        assert whole - cost.count(one_filter, x).macs == worth[name]


@pytest.mark.parametrize("network", ["resnet8", "resnet20", "thin_vgg16"])
def test_a_target_of_multiply_adds_is_met_within_1_percent(network, request) -> None:
    model = request.getfixturevalue(network)
    x = default_input(model, None)
    generator = torch.Generator().manual_seed(1)
    scores = {
        name: torch.rand(layer.filters, generator=generator) * (1 + index % 3)
        for index, (name, layer) in enumerate(filter_layers(model, x).items())
    }
    target = 0.5625 * cost.count(model, x).macs
    pruned, _ = match_macs(model, global_cut(model, scores, x), target)
    assert cost.count(pruned, x).macs == pytest.approx(target, rel=0.01)


def test_a_norm_over_more_channels_is_not_the_layers_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8))
    assert own_norm(model, FilterLayer("0", 4, (), "1")) is None
    assert own_norm(model, FilterLayer("0", 8, (), "1")) is model[1]
    assert own_norm(model, FilterLayer("0", 8, (), None)) is None


class Called(nn.Module):
    """A layer that makes channels and one that reads them, called as `function` says."""

    def __init__(self, maker: nn.Module, reader: nn.Module, function) -> None:
        super().__init__()
        self.maker, self.reader, self.function = maker, reader, function

    def forward(self, x):
        return self.function(self, x)


def in_turn(net, x):
    return net.reader(net.maker(x))


TOKENS, IMAGES = torch.rand(1, 5, 8), torch.rand(1, 8, 6, 6)
PAIRS = {  # worth of one of the maker's channels: its own, then the readers'
    "linear": (nn.Linear(8, 12), nn.Linear(12, 3), in_turn, TOKENS, 5 * (8 + 3)),
    "convolutions": (nn.Conv2d(8, 12, 3), nn.Conv2d(12, 3, 3), in_turn, IMAGES, 16 * 72 + 4 * 27),
    "keywords": (
        *(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 3, 3), lambda n, x: n.reader(input=n.maker(input=x)), IMAGES),
        16 * 72 + 4 * 27,
    ),
    "reader twice": (
        *(
            nn.Conv2d(8, 12, 3),
            nn.Conv2d(12, 3, 3),
            lambda n, x: [n.reader(n.maker(x)) for _ in range(2)],
            IMAGES,
        ),
        2 * (16 * 72 + 4 * 27),
    ),
    "a linear reader is left out": (
        *(
            nn.Conv2d(8, 12, 3),
            nn.Linear(12, 3),
            lambda n, x: n.reader(n.maker(x).mean((2, 3))),
            IMAGES,
            16 * 72,
        ),
    ),
    "transposed maker": (
        nn.ConvTranspose2d(8, 12, 2, 2),
        nn.Conv2d(12, 3, 1),
        in_turn,
        IMAGES,
        36 * 32 + 144 * 3,
    ),
    "transposed reader": (
        nn.Conv2d(8, 12, 1),
        nn.ConvTranspose2d(12, 3, 2, 2),
        in_turn,
        IMAGES,
        36 * 8 + 36 * 12,
    ),
    "depthwise reader": (
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 12, 3, groups=12),
        in_turn,
        IMAGES,
        36 * 8 + 16 * 9,
    ),
    "grouped reader": (
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 6, 3, groups=3),
        in_turn,
        IMAGES,
        36 * 8 + 16 * 9 * 2,
    ),
    "grouped maker": (nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 3, 1), in_turn, IMAGES, 16 * 18 + 16 * 3),
    "convolution of tokens": (nn.Conv1d(5, 12, 3), nn.Conv1d(12, 3, 1), in_turn, TOKENS, 6 * 15 + 6 * 3),
}


@pytest.mark.parametrize("case", PAIRS)
def test_the_worth_of_a_channel_of_each_kind_of_layer(case: str) -> None:
    maker, reader, function, x, expected = PAIRS[case]
    model = Called(maker, reader, function)
    layers = {"maker": FilterLayer("maker", 12, ("reader",), None)}
    assert filter_macs(model, layers, x) == {"maker": expected}
    assert filter_macs(model, layers, x.repeat(3, 1, *[1] * (x.dim() - 2))) == {"maker": expected}


def test_the_worth_of_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm2d"):
        filter_macs(nn.Sequential(nn.BatchNorm2d(8)), {"0": FilterLayer("0", 8, (), None)}, IMAGES)
