"""What the choice of a checkpoint moves, on a course that is known."""

from dataclasses import replace

import pytest
import torch
from record_factory import RUN, edited, make_record, measured, with_metrics

from gkp.study.analysis import training
from gkp.study.analysis.comparison import PROTOCOL, Comparison
from gkp.study.analysis.labels import BENIGN
from gkp.study.report import plots
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
        plots.choices(Comparison([plain]))


def test_the_figure_marks_the_three_rules_and_the_drop(record: Record) -> None:
    figure = plots.choices(Comparison([record]))
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
