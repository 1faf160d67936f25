"""Records of another machine: what says more is taken with its weights, what says less is left."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from record_factory import RUN, edited, make_record, measured, with_metrics, with_right

from gkp.attacks import Attack
from gkp.nets import models
from gkp.nets.checkpoint import save_model
from gkp.study.runs.locks import alone
from gkp.study.runs.merge import merge, united
from gkp.study.runs.record import Fact, Record
from gkp.study.runs.store import Store

FILE = "checkpoints/small/net.safetensors"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    """A store with one record and its weights."""
    store = Store(tmp_path / "elsewhere")
    (store.root / FILE).parent.mkdir(parents=True)
    sha256 = save_model(models.create("resnet8"), store.root / FILE, network="resnet8", dataset="digits")
    last = ("checkpoints", "last")
    store.write(edited(make_record(), ((*last, "file"), FILE), ((*last, "sha256"), sha256)))
    return store


def test_a_record_comes_with_its_weights_and_a_second_time_nothing_does(elsewhere: Store, tmp_path: Path):
    here = Store(tmp_path / "here")
    assert merge(elsewhere.root, here) == [f"took small/{RUN.stem}"]
    assert here.find(RUN) == elsewhere.find(RUN)
    assert (here.root / FILE).read_bytes() == (elsewhere.root / FILE).read_bytes()
    assert FILE.removeprefix("checkpoints/") in here.manifest()
    assert merge(elsewhere.root, here) == [f"left small/{RUN.stem}: what is here says as much"]


def test_only_more_measurements_of_the_same_weights_replace_a_record(elsewhere: Store, tmp_path: Path):
    here = Store(tmp_path / "here")
    merge(elsewhere.root, here)
    record, attack = elsewhere.find(RUN), Attack("fgsm", eps=0.1)
    more = with_right(record, attack, record.metrics()["benign"].right)
    elsewhere.write(more)
    assert merge(elsewhere.root, here) == [f"took small/{RUN.stem}"]
    assert here.find(RUN) == more
    # another one instead: says something else, not more
    elsewhere.write(with_metrics(more, {attack.name: more.metrics()[attack.name]}))
    assert merge(elsewhere.root, here)[0].startswith("left")
    assert "benign" in here.find(RUN).metrics()


def topped_up(record: Record, attack: Attack, where: str, rule: str = "last", right: int = 50) -> Record:
    """The record with one more attack of a rule, and that evaluation's provenance."""
    metric = measured(attack, torch.arange(100) < right)
    kept = replace(record.kept[rule], metrics={**record.kept[rule].metrics, attack.name: metric})
    about = {"commit": where, "attacks": [attack.name]}
    return replace(record, kept={**record.kept, rule: kept}, evaluations=(*record.evaluations, about))


@pytest.fixture
def two_rules(elsewhere: Store) -> Record:
    """The record elsewhere with a checkpoint of a second rule."""
    record = elsewhere.find(RUN)
    second = replace(record.kept["last"], epoch=1, sha256="cd", file=None)
    record = replace(record, kept={**record.kept, "best-test": second})
    elsewhere.write(record)
    return record


def test_what_was_added_in_two_places_is_united(elsewhere: Store, two_rules: Record, tmp_path: Path):
    here, first, second = Store(tmp_path / "here"), Attack("fgsm", eps=0.1), Attack("fgsm", eps=0.2)
    merge(elsewhere.root, here)
    here.write(topped_up(two_rules, first, "here", "best-test"))
    elsewhere.write(topped_up(two_rules, second, "there"))
    assert merge(elsewhere.root, here) == [f"united small/{RUN.stem}: 1 measurements came to those here"]
    both = here.find(RUN)
    assert both.metrics("last").keys() == {"benign", second.name}
    assert both.metrics("best-test").keys() == {"benign", first.name}
    assert [(e["commit"], e["attacks"]) for e in both.evaluations] == [
        ("here", [first.name]),
        ("there", [second.name]),
    ]
    assert merge(elsewhere.root, here) == [f"left small/{RUN.stem}: what is here says as much"]
    assert here.find(RUN) == both
    # and the other way round, from here to there
    assert merge(here.root, elsewhere)[0].startswith("took")
    assert elsewhere.find(RUN).kept == both.kept


def test_uniting_is_the_same_in_either_order(elsewhere: Store, two_rules: Record):
    a = topped_up(two_rules, Attack("fgsm", eps=0.1), "a", "best-test")
    b = topped_up(two_rules, Attack("fgsm", eps=0.2), "b")
    assert united(a, b).kept == united(b, a).kept
    assert united(a, a) is a
    assert united(a, two_rules) is a


def test_where_both_have_an_attack_more_images_count_and_else_what_is_here(two_rules: Record):
    attack = Attack("fgsm", eps=0.1)
    here, other = topped_up(two_rules, attack, "a", right=50), topped_up(two_rules, attack, "b", right=60)
    assert united(here, other) is here
    fewer = replace(here.kept["last"], metrics={n: m.first(40) for n, m in here.metrics().items()})
    few = replace(here, kept={**here.kept, "last": fewer})
    assert united(few, other).metrics()[attack.name].n == 100
    assert united(few, other).metrics()[attack.name].correct == 60
    assert united(other, few) is other


def test_attacks_of_other_weights_do_not_come(elsewhere: Store, two_rules: Record, tmp_path: Path):
    here = Store(tmp_path / "here")
    here.write(edited(two_rules, (("checkpoints", "last", "sha256"), "ef")))
    before = here.find(RUN)
    elsewhere.write(topped_up(two_rules, Attack("fgsm", eps=0.1), "there"))
    (line,) = merge(elsewhere.root, here)
    assert "another training" in line
    assert here.find(RUN) == before
    more = topped_up(
        topped_up(two_rules, Attack("fgsm", eps=0.1), "there"), Attack("fgsm", eps=0.2), "there", "best-test"
    )
    both = united(before, more)
    assert both.kept["last"] == before.kept["last"]
    assert both.metrics("best-test").keys() == more.metrics("best-test").keys()
    assert both.later == {"fgsm_pixel_51/255_true"}


def test_an_attack_of_the_run_itself_comes_with_its_provenance(two_rules: Record):
    """Computed with the training elsewhere, not added to it: its evaluation is the run's own."""
    attack = Attack("fgsm", eps=0.1)
    whole = replace(topped_up(two_rules, attack, "there"), evaluations=())
    whole = edited(whole, (("provenance", "commit"), "run"))
    here = topped_up(two_rules, Attack("fgsm", eps=0.2), "here", "best-test")
    assert [e["commit"] for e in united(here, whole).evaluations] == ["here", "run"]
    assert united(here, whole).evaluations[1]["attacks"] == [attack.name]


def test_a_record_that_another_suite_made_stays_in_its_place(
    elsewhere: Store, two_rules: Record, tmp_path: Path
):
    here, attack = Store(tmp_path / "here"), Attack("fgsm", eps=0.1)
    merge(elsewhere.root, here)
    elsewhere.path("small", RUN.stem).unlink()
    elsewhere.write(edited(topped_up(two_rules, attack, "there"), (("suite",), "other")))
    assert merge(elsewhere.root, here)[0].startswith("united other/")
    assert [record.suite for record in here.all()] == ["small"]
    assert attack.name in here.find(RUN).metrics()


def test_nothing_is_written_when_one_file_is_damaged(elsewhere: Store, tmp_path: Path):
    (elsewhere.root / FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="another SHA-256"):
        merge(elsewhere.root, Store(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


def test_what_is_being_worked_on_is_left_until_it_is_done(elsewhere: Store, tmp_path: Path):
    here = Store(tmp_path / "here")
    with alone(RUN.hash, here.root):
        (line,) = merge(elsewhere.root, here)
    assert line == f"left small/{RUN.stem}: a process here works on it; merge again when that is done"
    assert here.find(RUN) is None
    assert merge(elsewhere.root, here) == [f"took small/{RUN.stem}"]


def test_facts_of_one_name_in_two_suites_are_two(tmp_path: Path):
    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    here.write(Fact.of("times", "one", {"a": 1}, {"commit": None}))
    there.write(Fact.of("times", "two", {"a": 2}, {"commit": None}))
    assert merge(there.root, here)[0].startswith("took two/times")
    assert [here.fact(suite, "times").facts for suite in ("one", "two")] == [{"a": 1}, {"a": 2}]
