"""What the choice of a checkpoint and the length of a training move, on courses that are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from record_factory import RUN, edited, make_record, measured, with_metrics
from scipy import stats

from gkp.attacks import Attack
from gkp.study.analysis import training
from gkp.study.analysis.audit import kendall
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.analysis.labels import BENIGN
from gkp.study.report.plots import courses
from gkp.study.runs import protocols, suites
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Kept
from gkp.train.recipe import Recipe

TRAINED = replace(RUN, recipe=Recipe(epochs=4))
# Accuracy without attack and under two attacks after each of four epochs; the rate drops before the third.
COURSE = {
    "test": (0.80, 0.84, 0.90, 0.91),
    "fgsm-0.01": (0.60, 0.70, 0.66, 0.65),
    "fgsm-0.1": (0.20, 0.1, 0.1, 0.12),
}
CHOSEN = {"last": 4, "best-validation": 3, "best-test": 4, "best-fgsm-0.01": 2, "best-fgsm-0.1": 1}


ROWS = [
    {
        "epoch": epoch,
        "lr": 0.01 if epoch < 3 else 0.001,
        "train_loss": 1.0,
        "validation": None,
        "seconds": 1.0,
        "test": COURSE["test"][epoch - 1],
        "attacked": {name: COURSE[name][epoch - 1] for name in ("fgsm-0.01", "fgsm-0.1")},
    }
    for epoch in (1, 2, 3, 4)
]


def kept(epoch: int) -> Kept:
    """The checkpoint of that epoch: 100 images, right as often as the course says."""
    found = {entry.attack.name: 0.5 for entry in protocols.paper()}
    found |= {attack: COURSE[column][epoch - 1] for column, attack in training.SCORES.items()}
    metrics = {
        entry.attack.name: measured(entry.attack, torch.arange(100) < round(100 * found[entry.attack.name]))
        for entry in protocols.paper()
    }
    return Kept(epoch, "ab", None, metrics, ())


@pytest.fixture
def record() -> Record:
    record = edited(make_record(TRAINED), (("history",), {"epochs": ROWS}))
    return replace(record, kept={rule: kept(epoch) for rule, epoch in CHOSEN.items()})


def test_rules_show_their_epoch_and_what_it_has(record: Record) -> None:
    table = training.rules_text(Comparison([record])).set_index("checkpoint")
    assert list(table.epoch) == ["4", "3", "4", "2", "1"]
    assert list(table.iloc[3, 2:5]) == ["84.00", "70.00", "10.00"]


def test_moved_is_highest_minus_lowest_among_the_epochs_named(record: Record) -> None:
    table = training.moved_text(Comparison([record]))
    assert list(table.among) == [
        "all 4 epochs",
        "epochs at the last learning rate",
        "what the paper's rules show",
    ]
    assert [list(row) for row in table.iloc[:, 2:].to_numpy()] == [
        ["11.00", "10.00", "10.00"],
        ["1.00", "1.00", "2.00"],
        ["11.00", "10.00", "10.00"],
    ]


def test_a_network_without_attacked_epochs_has_no_course(record: Record) -> None:
    rows = [{key: value for key, value in row.items() if key != "attacked"} for row in ROWS]
    plain = edited(record, (("history",), {"epochs": rows}))
    assert training.courses(Comparison([plain, make_record(TRAINED)])) == []
    assert training.courses(Comparison([plain, record])) == [record]
    rule = "best-fgsm-0.1"
    lacking = with_metrics(record, {BENIGN: record.metrics(rule)[BENIGN]}, rule)
    assert training.courses(Comparison([edited(plain, (("history",), None)), lacking])) == []
    with pytest.raises(ValueError, match="cifar10-resnet20-selection"):
        courses.choices(Comparison([plain]))


def test_the_figure_marks_the_three_rules_and_the_drop(record: Record) -> None:
    figure = courses.choices(Comparison([record]))
    assert len(figure.axes) == 3
    for axes, column in zip(figure.axes, training.SCORES, strict=True):
        course, drop = axes.lines[0], axes.lines[1]
        assert list(course.get_ydata()) == pytest.approx([100 * value for value in COURSE[column]])
        assert list(drop.get_xdata()) == [2.5, 2.5]
        marked = {text.get_text(): text.xy[0] for text in axes.texts}
        assert marked == {"B": 4, "a": 2, "b": 1}


def test_the_suite_keeps_what_the_tables_ask_for() -> None:
    for run in suites.get("cifar10-resnet20-selection").runs:
        assert set(run.rules) == set(training.RULES)
        assert {entry.attack.name for entry in run.evaluation} == {BENIGN, *PROTOCOL}


# ---- the length of the training ------------------------------------------------------------------

SHORT, LONG = Recipe(epochs=2), Recipe(epochs=4)
NAMES = ("sr-gkp", "l1", "random")


def trained(corrects: dict[str, tuple[int, ...]], recipe: Recipe, images: int = 1000) -> Comparison:
    """Records of labels that have so many of the first images right, one per seed."""
    records = []
    for method, counts in corrects.items():
        for seed, correct in enumerate(counts):
            run = replace(RUN, method=method, recipe=recipe, seed=seed)
            right = torch.arange(images) < correct
            records.append(with_metrics(make_record(run), {BENIGN: measured(Attack("none"), right)}))
    return Comparison(records)


def test_more_epochs_are_compared_network_by_network_and_seed_by_seed() -> None:
    short, long = (
        trained({"sr-gkp": (500, 520), "l1": (600,)}, SHORT),
        trained({"sr-gkp": (550, 530), "l1": (600,)}, LONG),
    )
    frame = training.longer(short, long, BENIGN).set_index("label")
    assert list(frame.loc["sr-gkp", ["seeds", "short", "long"]]) == [2, pytest.approx(51), pytest.approx(54)]
    assert frame.loc["sr-gkp", "difference"] == pytest.approx(3.0)
    assert frame.loc["sr-gkp", "low"] < 3 < frame.loc["sr-gkp", "high"]
    assert frame.loc["sr-gkp", "p"] < 0.001
    assert (frame.loc["l1", "difference"], frame.loc["l1", "p"]) == (0, 1)
    text = training.longer_text(short, long, [BENIGN]).set_index("method")["benign"]
    assert text["sr-gkp"] == "51.00 to 54.00: +3.00 significant"
    assert text["l1"] == "60.00 to 60.00: +0.00"


@pytest.mark.parametrize(
    ("short", "said"),
    [
        ((500, 600, 700), {"same": 3, "open": 0, "other": 0, "only": 0}),
        ((700, 600, 500), {"same": 0, "open": 0, "other": 3, "only": 0}),
        ((600, 601, 602), {"same": 0, "open": 3, "other": 0, "only": 0}),
        ((500, 501, 700), {"same": 2, "open": 1, "other": 0, "only": 0}),
    ],
)
def test_an_order_stays_opens_or_turns(short: tuple[int, ...], said: dict[str, int]) -> None:
    before = trained({name: (count,) for name, count in zip(NAMES, short, strict=True)}, SHORT)
    after = trained({name: (count,) for name, count in zip(NAMES, (550, 650, 750), strict=True)}, LONG)
    assert training.order_kept(before, after, BENIGN) == {"pairs": 3, "significant": 3, **said}
    turned = training.order_kept(after, before, BENIGN)
    assert turned["only"] == said["open"]


def test_trainings_that_one_recipe_lacks_count_for_neither() -> None:
    """Three short trainings each would tell apart what one does not, and turn the order round."""
    once = [trained({name: (600 + place,) for place, name in enumerate(NAMES)}, SHORT)]
    once.append(trained({name: (600 + place, 900 - 100 * place) for place, name in enumerate(NAMES)}, SHORT))
    after = trained({name: (count,) for name, count in zip(NAMES, (550, 650, 750), strict=True)}, LONG)
    kept = [training.order_kept(before, after, BENIGN) for before in once]
    assert kept[0] == kept[1] == {"pairs": 3, "significant": 3, "same": 0, "open": 3, "other": 0, "only": 0}
    assert training.ranks(once[1], after, BENIGN)["kendall"]["correlation"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("short", "spearman", "kendall"),
    [((500, 600, 700), 1, 1), ((700, 600, 500), -1, -1), ((500, 700, 600), 0.5, 1 / 3)],
)
def test_ranks_of_two_recipes_are_correlated(short: tuple[int, ...], spearman: float, kendall: float) -> None:
    before = trained({name: (count, count) for name, count in zip(NAMES, short, strict=True)}, SHORT)
    after = trained({name: (count,) for name, count in zip(NAMES, (550, 650, 750), strict=True)}, LONG)
    found = training.ranks(before, after, BENIGN)
    assert found["spearman"]["correlation"] == pytest.approx(spearman)
    assert found["kendall"]["correlation"] == pytest.approx(kendall)
    for one in found.values():
        assert -1 <= one["low"] <= one["correlation"] + 1e-9
        assert one["correlation"] - 1e-9 <= one["high"] <= 1
        assert (one["networks"], one["images"]) == (3, 1000)


def test_kendalls_tau_is_scipys_with_ties_too() -> None:
    generator = np.random.default_rng(0)
    a, b = (pd.DataFrame(generator.integers(0, 4, (20, 6))) for _ in range(2))
    expected = [stats.kendalltau(x, y).statistic for x, y in zip(a.to_numpy(), b.to_numpy(), strict=True)]
    assert list(kendall(a, b)) == pytest.approx(expected)


def test_phases_end_where_the_learning_rate_drops(record: Record) -> None:
    rows = [{**row, "validation": 0.5} for row in ROWS]
    long = Comparison([edited(record, (("history",), {"epochs": rows}))])
    (line,) = training.phases_text(long).to_dict("records")
    assert line["epoch 2, after lr 0.01"] == "84.00"
    assert line["epoch 4, after lr 0.001"] == "91.00"
    assert list(training.by_epoch(long).epoch) == [1, 2, 3, 4]


def test_networks_are_shown_as_a_rule_keeps_them(record: Record) -> None:
    chosen = Comparison([record, make_record()]).chosen_by("best-fgsm-0.01")
    (only,) = chosen.records
    assert only.metrics() == record.metrics("best-fgsm-0.01")
    assert Comparison([record]).chosen_by("best").records == ()
