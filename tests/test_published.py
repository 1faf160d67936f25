"""The paper's rows: which are taken, and how they stand beside ours."""

from pathlib import Path

import pytest
from many_records import START, a_record, many_records

from gkp import published
from gkp.suites import SHORT_RECIPE, replace

TABLES = Path(__file__).parents[1] / "expected" / "paper_cifar10.csv"


def test_one_row_per_method_and_network():
    frame = published.rows(TABLES)
    assert not frame.duplicated(["network", "method"]).any()
    assert set(frame.network) == {"resnet32", "resnet56", "resnet110", "vgg16"}
    own = frame[(frame.network == "resnet56") & (frame.label == "sr-gkp")].iloc[0]
    assert own["benign"] == 94.08  # the best-benign row of Table 10


def test_gain_is_pruned_minus_unpruned():
    frame = published.gain_over_unpruned(many_records(("sr-gkp",)), TABLES).set_index("network")
    assert frame.loc["ResNet-56", "benign"] == f"{94.08 - 93.24:+.2f}"
    ours = frame.loc[["ResNet-20"]]
    assert ours["compared with"].tolist() == ["unpruned (ours)", "unpruned + fine-tune (ours)"]


def test_beside_ours_needs_the_same_network():
    assert published.beside_ours(many_records(("sr-gkp",)), TABLES).empty
    run = replace(START, network="resnet56", method="sr-gkp", recipe=SHORT_RECIPE, macs_ratio=0.5625)
    record = a_record(run)
    frame = published.beside_ours([record], TABLES).set_index("method")
    accuracy = 100 * record["checkpoints"]["last"]["metrics"]["benign"]["accuracy"]
    assert frame.loc["SR-GKP", "benign"] == f"94.08 / {accuracy:.2f}"
    assert frame.loc["CC", "benign"].endswith("/ –")


def test_every_label_is_a_method_of_ours_or_none():
    from gkp.style import LOOKS

    assert set(published.NAMES.values()) <= set(LOOKS)
    assert "" in set(published.rows(TABLES).label)
    with pytest.raises(FileNotFoundError):
        published.rows("nowhere.csv")
