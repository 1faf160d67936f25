"""Records: what is committed is written back as it was read, and damage is named."""

import ast
import json
from pathlib import Path

import pytest
import torch
from record_factory import edited, make_record, measured

from gkp.attacks import Attack
from gkp.attacks.outcome import Outcome
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record import Fact, Record, parse, run_config
from gkp.study.runs.record_parts import Metric

ROOT = Path(__file__).parents[3]
COMMITTED = sorted((ROOT / "results").glob("*/*.json"))


def test_every_committed_record_is_written_back_byte_for_byte() -> None:
    assert len(COMMITTED) > 80
    for path in COMMITTED:
        text = path.read_text("utf-8")
        record = parse(json.loads(text))
        assert record.text == text, path
        assert (path.parent.name, path.stem) == (record.suite, record.stem)
        if isinstance(record, Record):
            assert record.run.hash == record.hash, path
            assert run_config(record.run) == json.loads(text)["config"]


def test_the_bits_of_committed_metrics_are_their_counts() -> None:
    for path in COMMITTED:
        record = parse(json.loads(path.read_text("utf-8")))
        for name, metric in (record.metrics() if isinstance(record, Record) else {}).items():
            assert metric.attack.name == name
            assert (int(metric.right.sum()), len(metric.right)) == (metric.correct, metric.n)
            again = metric.first(metric.n // 2)
            assert torch.equal(again.right, metric.right[: again.n])


def test_a_metric_is_the_outcome_it_was_made_of() -> None:
    attack = Attack("fgsm", eps=0.1)
    told = Outcome(attack.name, torch.arange(9) < 4, 1.25, attack, 3, False, ("a warning",))
    metric = Metric.of(told, Entry(attack, 9))
    again = metric.outcome
    assert torch.equal(again.correct, told.correct)
    assert [again.seconds, again.attack, again.flags] == [1.25, attack, ("a warning",)]
    assert (again.zero_gradient, again.repeatable, metric.asked_n) == (3, False, 9)
    quiet = measured(attack, torch.arange(9) < 4).source
    assert not {"zero_gradient", "repeatable", "flags"} & quiet.keys()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("cost", "after", "usual"), 3, "cost"),
        (("cost", "macs_ratio"), "half", "cost"),
        (("config", "rules"), ["best-of-all"], "config"),
        (("checkpoints", "last", "metrics", "benign", "attack", "kind"), "magic", "checkpoints"),
        (("checkpoints", "last", "self_check"), None, "checkpoints"),
        (("provenance",), [], "provenance"),
        (("label",), 7, "label"),
    ],
)
def test_a_part_of_another_kind_is_named(path: tuple[str, ...], value: object, named: str) -> None:
    with pytest.raises(ValueError, match=rf"no \(right\) {named}$"):
        edited(make_record(), (path, value))


def test_a_fact_has_its_name_as_identity() -> None:
    fact = Fact.of("latency", "cost", {"x": 1}, {"device": "cpu: a model"})
    assert fact.stem == "latency-426765ac"  # as committed
    assert (fact.value(["facts", "x"]), fact.value(["facts", "y"])) == (1, None)
    assert fact.meets({"label": "latency"})
    assert not fact.meets({"seed": 0})


def test_nothing_but_the_record_knows_the_keys_of_its_json() -> None:
    """Records have no item access, which mypy sees; nor does other code ask for what only their JSON has."""
    assert not any(hasattr(kind, "__getitem__") for kind in (Record, Fact, Metric))
    keys = {"checkpoints", "metrics", "bits", "asked_n", "self_check", "provenance"}
    for path in (ROOT / "gkp").rglob("*.py"):
        if path.name in ("record.py", "record_parts.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                assert node.slice.value not in keys, f"{path.relative_to(ROOT)}:{node.lineno}"
