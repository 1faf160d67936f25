"""Rows, columns and words of the tables."""

import dataclasses

import pytest
import torch
from many_records import comparison
from record_factory import RUN, edited, make_record, measured, with_metrics

from gkp.attacks import Attack
from gkp.nets import models
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import attack_title
from gkp.study.report import tables
from gkp.utils.stats import wilson


def test_images_short_of_the_official_set_are_never_called_the_test_set() -> None:
    record = edited(
        make_record(), (("provenance", "data"), {"dataset": "digits", "images": 100, "official_size": 120})
    )
    assert "100 of the publisher's 120 images" in tables.footnote(Comparison([record]))


def test_the_unit_of_eps_is_that_of_the_networks_own_normalisation() -> None:
    for weights, size in (("authors", "0.5/255"), ("akamaster", "0.6/255")):
        record = make_record(dataclasses.replace(RUN, weights=weights))
        assert f"0.01 is about {size}" in tables.normalised_unit(Comparison([record]))
    for std, tenths in ((models.CIFAR_STD, 0.5), (models.IMAGENET_STD, 0.6)):
        assert round(0.01 * 255 * sum(std) / 3, 1) == tenths


def test_one_seed_shows_its_interval_and_several_their_spread() -> None:
    first = make_record(suite="method")
    one = tables.summary(Comparison([first]))
    low, high = wilson(90, 100)
    assert one["benign"].tolist() == [f"90.00 ± {50 * (high - low):.2f}"]
    second = make_record(dataclasses.replace(RUN, seed=1), suite="method", correct=92)
    both = tables.summary(Comparison([first, second]))
    assert both["benign"].tolist() == ["91.00 ± 1.41"]


def test_columns_are_the_papers_attacks_then_true_labels_then_pixels() -> None:
    attacks = [
        Attack("pgd", eps=1 / 255, step=1 / 1020, iterations=10),
        Attack("fgsm", eps=8 / 255),
        Attack("fgsm", eps=0.01, space="normalized"),
        Attack("fgsm", eps=2 / 255),
        Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3, space="normalized"),
        Attack("fgsm", eps=0.1, space="normalized", labels="predicted"),
        Attack("none"),
        Attack("fgsm", eps=0.01, space="normalized", labels="predicted"),
    ]
    metrics = {attack.name: measured(attack, torch.ones(9, dtype=torch.bool)) for attack in attacks}
    assert list(Comparison([with_metrics(make_record(), metrics)]).titles.values()) == [
        "benign",
        "FGSM 0.01 norm., pred.",
        "FGSM 0.1 norm., pred.",
        "PGD-3 8/255 norm.",
        "FGSM 0.01 norm.",
        "FGSM 2/255",
        "FGSM 8/255",
        "PGD-10 1/255",
    ]


@pytest.mark.parametrize(
    ("attack", "title"),
    [
        (Attack("none"), "benign"),
        (Attack("fgsm", eps=0.5 / 255), "FGSM 0.5/255"),
        (Attack("fgsm", eps=0.1, space="normalized", labels="predicted"), "FGSM 0.1 norm., pred."),
        (
            Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3, space="normalized"),
            "PGD-3 8/255 norm.",
        ),
    ],
)
def test_attack_titles(attack: Attack, title: str) -> None:
    assert attack_title(attack) == title


def test_what_evaluations_say_about_themselves_is_said_once_with_its_range():
    records = []
    for place, (record, count) in enumerate(zip(comparison(("l1",)), (3, 12, 7), strict=True)):
        sentences = [f"fgsm_0.1: {count} of 400 images are wrong", "pgd3: 0.75 eps"][: 1 + (place == 1)]
        records.append(edited(record, (("checkpoints", "last", "self_check"), sentences)))
    lines = tables.self_checks(Comparison(records)).strip().splitlines()[2:]
    assert lines == [
        "- fgsm_0.1: 3 to 12 of 400 images are wrong (all 3 networks)",
        "- pgd3: 0.75 eps (unpruned + fine-tune, seed 0, last)",
    ]


def test_methods_stand_by_clean_accuracy_below_the_controls():
    frame = tables.summary(comparison(("slimming", "l1", "random", "chip")), ["benign"])
    assert list(frame.method)[:3] == ["unpruned", "unpruned + fine-tune", "random"]
    clean = [float(cell.split(" ± ")[0]) for cell in frame["benign"][3:]]
    assert clean == sorted(clean, reverse=True)
    assert set(frame.method[3:]) == {"slimming", "l1", "chip"}
