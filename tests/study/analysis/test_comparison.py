"""What is compared: attacks, one row per method, the sentence about the setting."""

from dataclasses import replace

import pytest
import torch
from many_records import START, a_record, comparison, counted, many_records
from record_factory import RUN, by_label, edited, make_record, measured, with_metrics, with_right

from gkp import pruners
from gkp.attacks import Attack
from gkp.study.analysis import comparison as compare
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import FROM_SCRATCH
from gkp.study.report import show, tables
from gkp.study.runs import protocols
from gkp.study.runs.run import RATE
from gkp.study.runs.store import Store
from gkp.train.recipe import Recipe

FEW = ("random", "l1", "sr-gkp")


@pytest.fixture(scope="module")
def few():
    return comparison(FEW)


def test_the_papers_attacks_are_those_of_its_protocol(few):
    assert compare.paper_attacks(few) == [entry.attack.name for entry in protocols.paper()[1:]]


def test_the_sound_attack_is_the_strongest_kind_at_its_smallest_eps(few):
    assert compare.sound_attack(few) == "pgd10_pixel_0.5/255_step0.125/255_true"
    eps = [few.attacks[name].eps * 255 for name in compare.pixel_attacks(few, "fgsm")]
    assert eps == pytest.approx([0.5, 1, 2, 4, 8])


def test_an_attack_on_few_images_is_not_preferred_for_its_strength():
    """Where none of several steps is on many, the strongest is taken whatever its images."""
    weaker = Attack("pgd", eps=0.5 / 255, step=0.1 / 255, iterations=10)
    stronger = Attack("autoattack", eps=0.5 / 255)
    for most, expected in ((1000, weaker), (400, stronger)):
        met = {a.name: measured(a, torch.arange(n) % 3 > 0) for a, n in ((weaker, most), (stronger, 128))}
        found = Comparison(with_metrics(record, met) for record in many_records(FEW))
        assert compare.sound_attack(found) == expected.name


def test_only_attacks_that_every_network_met_count():
    records = many_records(FEW)
    without = dict(records[-1].metrics())
    del without["pgd10_pixel_0.5/255_step0.125/255_true"]
    records[-1] = with_metrics(records[-1], without)
    assert compare.sound_attack(Comparison(records)) == "pgd10_pixel_1/255_step0.25/255_true"
    papers = [
        with_metrics(r, {n: m for n, m in r.metrics().items() if not compare.in_pixels(m.attack)})
        for r in records
    ]
    with pytest.raises(ValueError, match="no attack in pixel units"):
        compare.sound_attack(Comparison(papers))


def test_untuned_networks_and_the_training_of_the_start_are_not_compared(few):
    untuned = a_record(replace(START, method="sr-gkp", rate=RATE))
    baseline = a_record(replace(START, method="baseline"))
    assert Comparison([*few, untuned, baseline]).compared == list(few)


def test_attacks_on_untuned_networks_do_not_limit_the_comparison(few):
    untuned = a_record(replace(START, method="sr-gkp", rate=RATE))
    untuned = with_metrics(untuned, {"benign": untuned.metrics()["benign"]})
    assert Comparison([*few, untuned]).attacks == few.attacks


def test_the_frame_has_a_row_per_attack_and_checkpoint():
    record = make_record()
    both = replace(record, kept={**record.kept, "best-test": record.kept["last"]})
    assert Comparison([both]).frame["rule"].tolist() == ["last", "best-test"]
    assert Comparison([both]).frame["accuracy"].tolist() == [0.9, 0.9]


def test_points_are_percent_with_the_interval_of_one_seed_or_the_spread_of_several():
    record = make_record(replace(RUN, recipe=Recipe()))
    metric = record.metrics()["benign"]
    alone = Comparison([record]).points[record.label, "last", "benign"]
    assert alone == (90, 100 * metric.low, 100 * metric.high, 1, 100)
    second = make_record(replace(RUN, recipe=Recipe(), seed=1), correct=92)
    both = Comparison([record, second]).points[record.label, "last", "benign"]
    assert [both.mean, both.low, both.high] == pytest.approx([91, 91 - 2**0.5, 91 + 2**0.5])


def test_setting_says_what_was_done(few):
    text = compare.setting(few)
    for part in ("ResNet-20 on CIFAR-10", "2 pruning methods", "56.2 %", "4 epochs", "seed 0", "10,000"):
        assert part in text


def test_a_method_off_the_target_of_macs_is_marked_and_explained(few):
    heavier = counted(24_000_000, 150_000)
    off = Comparison(edited(r, (("cost", "after"), heavier)) if r.label == "l1" else r for r in few)
    assert "†: more than 1 %" in compare.setting(off)
    assert "†" not in compare.setting(few)
    assert "l1 †" in set(tables.summary(off)["method"])
    assert "†: more than 1 %" in tables.footnote(off)
    assert "†" not in tables.footnote(few)


def test_networks_that_are_trained_otherwise_are_marked(few):
    unlike = {"dhp": "‡", "rap-admm": "§"}
    both = comparison((*FEW, *unlike))
    assert {f"{method} {mark}" for method, mark in unlike.items()} <= set(tables.summary(both)["method"])
    for words in ("‡: from scratch", "§: trained on attacked images"):
        assert words in tables.footnote(both)
        assert words not in tables.footnote(few)
    known = {name for name in pruners.methods() if pruners.get(name).from_scratch}
    assert set(FROM_SCRATCH) == known


def test_controls_are_those_with_records(few):
    assert compare.controls(few) == [compare.CONTROL, "random"]
    assert compare.controls(comparison(("l1",))) == [compare.CONTROL]


def test_load_names_the_command_when_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m gkp run --suite digits"):
        compare.load(tmp_path, "digits")
    with pytest.raises(ValueError, match="unknown suite"):
        compare.load(tmp_path, "nonsense")


def test_load_reads_the_records(tmp_path, few):
    store = Store(tmp_path)
    for record in few:
        store.write(edited(record, (("suite",), "digits")))
    assert len(compare.load(tmp_path, "digits")) == len(few)


def test_network_without_weights_says_what_to_run(few, tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved network"):
        show.network(tmp_path, few)


def test_twins_answer_alike_under_every_attack_and_count_once(few):
    assert few.twins == {}
    assert compare.twins_text(few) == ""
    found = by_label(few)
    twin = with_metrics(found["l1"], found["random"].metrics())
    with_twin = Comparison((found | {"l1": twin}).values())
    assert with_twin.twins == {"l1": "random"}
    assert compare.twins_text(with_twin).endswith("counted once: random and l1.")
    assert set(few.labels) - set(with_twin.labels) == {"l1"}
    alike_but_once = with_right(twin, Attack("none"), found["l1"].metrics()["benign"].right)
    assert Comparison((found | {"l1": alike_but_once}).values()).twins == {}


def seeds_by_label(records):
    found = {}
    for record in records:
        found.setdefault(record.label, []).append(record.run.seed)
    return found


def test_figures_show_seeds_that_the_networks_have_in_common():
    """One network with more seeds than the others is cut to theirs; one with fewer than most is left out."""
    records = many_records(FEW, seeds=(0, 1, 2))
    assert len(compare.evenly(Comparison(records))) == len(records)
    most_have_one = [r for r in records if r.run.seed == 0 or r.label == "sr-gkp"]
    assert set(map(tuple, seeds_by_label(compare.evenly(Comparison(most_have_one))).values())) == {(0,)}
    one_has_one = [r for r in records if r.run.seed == 0 or r.label != "l1"]
    found = seeds_by_label(compare.evenly(Comparison(one_has_one)))
    assert found["sr-gkp"] == [0, 1, 2]
    assert "unpruned" in found
    assert "l1" not in found
    of_two = [r for r in one_has_one if r.label in ("sr-gkp", "l1")]  # of two numbers the larger is usual
    assert seeds_by_label(compare.evenly(Comparison(of_two))) == {"sr-gkp": [0, 1, 2]}
    assert len(compare.evenly(Comparison([]))) == 0


def test_tables_leave_out_nothing_but_extra_seeds():
    records = many_records(FEW, seeds=(0, 1, 2))
    assert list(compare.without_extra_seeds(Comparison(records))) == records
    most_have_one = [r for r in records if r.run.seed == 0 or r.label == "sr-gkp"]
    assert list(compare.without_extra_seeds(Comparison(most_have_one))) == [
        r for r in records if r.run.seed == 0
    ]
    one_has_one = [r for r in records if r.run.seed == 0 or r.label != "l1"]
    assert list(compare.without_extra_seeds(Comparison(one_has_one))) == one_has_one
    each_its_own = [r for r in records if r.run.seed == (1 if r.label == "l1" else 0)]
    assert list(compare.without_extra_seeds(Comparison(each_its_own))) == each_its_own


def test_the_untouched_network_has_every_seed():
    several = comparison(FEW, seeds=(0, 1, 2))
    pairs = several.pairs(("sr-gkp", "benign"), ("unpruned", "benign"))
    untouched = several.right("unpruned", "benign")[0]
    assert list(pairs) == [0, 1, 2]
    assert all(other.equal(untouched) for _, other in pairs.values())
    assert list(several.pairs(("unpruned", "benign"), ("sr-gkp", "benign"))) == [0, 1, 2]
    alone = Comparison(r for r in several if r.run.seed == 0)
    assert list(alone.pairs(("sr-gkp", "benign"), ("unpruned + fine-tune", "benign"), several)) == [0]


def test_trainings_that_a_table_leaves_out_are_counted_under_it():
    several = Comparison([*comparison(FEW), *(r for r in comparison(("l1",), seeds=(1, 2)) if r.pruned)])
    assert compare.extra_seeds_text(comparison(FEW)) == ""
    assert "Shown is seed 0, which most networks have; 2 trainings by others" in (
        compare.extra_seeds_text(several)
    )
