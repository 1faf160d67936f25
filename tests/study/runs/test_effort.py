"""Where the time of a suite went, by hand."""

from dataclasses import replace

from record_factory import edited, make_record

from gkp.study.runs import effort
from gkp.study.runs.record import Record


def timed(pruning: float, epochs: list[float], attack: float, total: float) -> Record:
    row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "validation": None, "test": None}
    return edited(
        make_record(),
        (("pruning", "seconds"), pruning),
        (("history",), {"epochs": [row | {"seconds": each} for each in epochs]} if epochs else None),
        (("checkpoints", "last", "metrics", "benign", "seconds"), attack),
        (("provenance", "seconds"), total),
    )


def test_the_parts_of_a_run_add_up_to_its_time() -> None:
    parts = effort.seconds(timed(2.0, [10.0, 12.0], 5.0, 30.0))
    assert parts == {"pruning": 2.0, "training": 22.0, "attacks": 5.0, "the rest": 1.0}
    assert effort.seconds(timed(0.0, [], 5.0, 5.5))["training"] == 0


def test_attacks_that_came_later_are_not_in_the_run() -> None:
    record = edited(timed(2.0, [10.0], 50.0, 13.0), (("evaluations",), [{"attacks": ["benign"]}]))
    assert effort.seconds(record) == {"pruning": 2.0, "training": 10.0, "attacks": 0, "the rest": 1.0}


def test_the_sentence_sums_all_runs() -> None:
    records = [timed(10.0, [50.0], 30.0, 100.0), timed(30.0, [50.0], 10.0, 100.0)]
    assert effort.sentence(records) == (
        "2 runs, 3:20 in all processes: pruning 20 %, training 50 %, attacks 20 %, the rest 10 %"
    )
    assert effort.sentence([]) == ""


def test_rules_that_keep_the_same_weights_were_attacked_once() -> None:
    once = timed(2.0, [10.0], 5.0, 18.0)
    kept = once.kept["last"]
    assert effort.seconds(replace(once, kept={"last": kept, "best-test": kept})) == effort.seconds(once)
    other = replace(once, kept={"last": kept, "best-test": replace(kept, sha256="other")})
    assert effort.seconds(other)["attacks"] == 10.0
