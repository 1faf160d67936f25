"""What is compared: attacks, one row per method, the sentence about the setting."""

from dataclasses import replace

import pytest
from many_records import START, a_record, many_records

from gkp.study.analysis import comparison as compare
from gkp.study.report import show, tables
from gkp.study.runs import protocols
from gkp.study.runs.run import RATE
from gkp.study.runs.store import Store

FEW = ("random", "l1", "sr-gkp")


@pytest.fixture(scope="module")
def few():
    return many_records(FEW)


def test_the_papers_attacks_are_those_of_its_protocol(few):
    assert compare.paper_attacks(few) == [entry.attack.name for entry in protocols.paper()[1:]]


def test_the_sound_attack_is_the_strongest_kind_at_its_smallest_eps(few):
    assert compare.sound_attack(few) == "pgd10_pixel_0.5/255_step0.125/255_true"
    eps = [compare.attacks(few)[name]["eps"] * 255 for name in compare.pixel_attacks(few, "fgsm")]
    assert eps == pytest.approx([0.5, 1, 2, 4, 8])


def test_only_attacks_that_every_network_met_count():
    records = many_records(FEW)
    del records[-1]["checkpoints"]["last"]["metrics"]["pgd10_pixel_0.5/255_step0.125/255_true"]
    assert compare.sound_attack(records) == "pgd10_pixel_1/255_step0.25/255_true"
    for record in records:
        kept = record["checkpoints"]["last"]
        kept["metrics"] = {name: m for name, m in kept["metrics"].items() if "pixel" not in name}
    with pytest.raises(ValueError, match="no attack in pixel units"):
        compare.sound_attack(records)


def test_untuned_networks_and_the_training_of_the_start_are_not_compared(few):
    untuned = a_record(replace(START, method="sr-gkp", rate=RATE))
    baseline = a_record(replace(START, method="baseline"))
    assert compare.compared([*few, untuned, baseline, {"config": {"method": "x"}, "facts": 1}]) == few


def test_attacks_on_untuned_networks_do_not_limit_the_comparison(few):
    untuned = a_record(replace(START, method="sr-gkp", rate=RATE))
    kept = untuned["checkpoints"]["last"]
    kept["metrics"] = {"benign": kept["metrics"]["benign"]}
    assert compare.attacks([*few, untuned]) == compare.attacks(few)


def test_results_are_sorted_by_benign_accuracy(few):
    frame = compare.results(few, compare.paper_attacks(few)[:1])
    values = [float(cell.split(" ± ")[0]) for cell in frame["benign"]]
    assert values == sorted(values, reverse=True)
    assert set(frame["method"]) == {"unpruned", compare.CONTROL, *FEW}


def test_setting_says_what_was_done(few):
    text = compare.setting(few)
    for part in ("ResNet-20 on CIFAR-10", "2 pruning methods", "56.2 %", "4 epochs", "seed 0", "10,000"):
        assert part in text


def test_a_method_off_the_target_of_macs_is_marked_and_explained(few):
    off = [r | {"cost": heavier(r["cost"])} if r["label"] == "l1" else r for r in few]
    assert "l1 †" in set(compare.results(off, [])["method"])
    assert "†: more than 1 %" in compare.setting(off)
    assert "†" not in compare.setting(few) + "".join(compare.results(few, [])["method"])
    assert "l1 †" in set(tables.summary(off)["method"])
    assert "† More than 1 %" in tables.footnote(off)
    assert "†" not in tables.footnote(few)


def heavier(cost):
    return cost | {"after": {name: {"macs": 2.4e7, "params": 1.5e5} for name in ("usual", "paper")}}


def test_controls_are_those_with_records(few):
    assert compare.controls(few) == [compare.CONTROL, "random"]
    assert compare.controls(many_records(("l1",))) == [compare.CONTROL]


def test_load_names_the_command_when_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m gkp run --suite digits"):
        compare.load(tmp_path, "digits")
    with pytest.raises(ValueError, match="unknown suite"):
        compare.load(tmp_path, "nonsense")


def test_load_reads_the_records(tmp_path, few):
    store = Store(tmp_path)
    for record in few:
        store.write({**record, "suite": "digits"})
    assert len(compare.load(tmp_path, "digits")) == len(few)


def test_network_without_weights_says_what_to_run(few, tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved network"):
        show.network(tmp_path, few)


def test_twins_answer_alike_under_every_attack_and_count_once(few):
    assert compare.twins(few) == {}
    assert compare.twins_text(few) == ""
    by_label = {record["label"]: record for record in few}
    checkpoints = by_label["random"]["checkpoints"]
    twin = by_label["l1"] | {"checkpoints": checkpoints}
    with_twin = [*(by_label | {"l1": twin}).values()]
    assert compare.twins(with_twin) == {"l1": "random"}
    assert compare.twins_text(with_twin).endswith("counted once: random and l1.")
    assert set(compare.distinct(few)) - set(compare.distinct(with_twin)) == {"l1"}
    last = checkpoints["last"]
    benign = last["metrics"] | {"benign": by_label["l1"]["checkpoints"]["last"]["metrics"]["benign"]}
    alike_but_once = twin | {"checkpoints": {"last": last | {"metrics": benign}}}
    assert compare.twins([*(by_label | {"l1": alike_but_once}).values()]) == {}


def seeds_by_label(records):
    found = {}
    for record in records:
        found.setdefault(record["label"], []).append(record["config"]["seed"])
    return found


def test_figures_show_seeds_that_the_networks_have_in_common():
    """One network with more seeds than the others is cut to theirs; one with fewer than most is left out."""
    records = many_records(FEW, seeds=(0, 1, 2))
    assert len(compare.evenly(records)) == len(records)
    most_have_one = [r for r in records if r["config"]["seed"] == 0 or r["label"] == "sr-gkp"]
    assert set(map(tuple, seeds_by_label(compare.evenly(most_have_one)).values())) == {(0,)}
    one_has_one = [r for r in records if r["config"]["seed"] == 0 or r["label"] != "l1"]
    found = seeds_by_label(compare.evenly(one_has_one))
    assert found["sr-gkp"] == [0, 1, 2]
    assert "unpruned" in found
    assert "l1" not in found
    assert compare.evenly([]) == []


def test_tables_leave_out_nothing_but_extra_seeds():
    records = many_records(FEW, seeds=(0, 1, 2))
    assert compare.without_extra_seeds(records) == records
    most_have_one = [r for r in records if r["config"]["seed"] == 0 or r["label"] == "sr-gkp"]
    assert compare.without_extra_seeds(most_have_one) == [r for r in records if r["config"]["seed"] == 0]
    one_has_one = [r for r in records if r["config"]["seed"] == 0 or r["label"] != "l1"]
    assert compare.without_extra_seeds(one_has_one) == one_has_one
    each_its_own = [r for r in records if r["config"]["seed"] == (1 if r["label"] == "l1" else 0)]
    assert compare.without_extra_seeds(each_its_own) == each_its_own
