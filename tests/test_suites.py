"""Identity and order of runs."""

import dataclasses
import re

import pytest

from gkp import suites
from gkp.attacks import Attack
from gkp.protocols import Entry
from gkp.recipe import PAPER
from gkp.suites import Run, config

RUN = Run("cifar10", "resnet20", "sr-gkp", weights="authors", rate=0.4375, recipe=PAPER)

# Another value for every hashed field, to see that none of them is forgotten.
OTHER = {
    "dataset": "cifar100",
    "network": "resnet56",
    "method": "l1",
    "weights": "akamaster",
    "baseline": PAPER,
    "options": (("beta", "exact"),),
    "rate": 0.5,
    "groups": 4,
    "seed": 1,
    "recipe": dataclasses.replace(PAPER, epochs=1),
    "validation": 2000,
    "rules": ("last", "best-test"),
}


def test_the_hash_is_the_one_that_committed_records_carry() -> None:
    """A change here orphans every record: raise VERSION and run the suites again, or undo it."""
    assert RUN.hash == "ac802f54427a2664"


@pytest.mark.parametrize("name", OTHER)
def test_every_field_of_the_configuration_is_hashed(name: str) -> None:
    assert dataclasses.replace(RUN, **{name: OTHER[name]}).hash != RUN.hash


def test_no_hashed_field_is_left_out_of_that_test() -> None:
    hashed = {item.name for item in dataclasses.fields(Run) if item.metadata.get("hashed", True)}
    assert hashed - set(OTHER) == {"macs_ratio"}  # excludes rate; see the next test


def test_macs_ratio_is_hashed() -> None:
    by_macs = [dataclasses.replace(RUN, rate=None, macs_ratio=ratio).hash for ratio in (0.5625, 0.5)]
    assert len({*by_macs, RUN.hash}) == 3


def test_attacks_can_be_added_without_a_new_identity() -> None:
    assert dataclasses.replace(RUN, evaluation=(Entry(Attack("none")),)).hash == RUN.hash


def test_fields_at_their_default_are_left_out_so_that_new_ones_keep_old_hashes() -> None:
    assert config(RUN) == {
        "dataset": "cifar10",
        "network": "resnet20",
        "method": "sr-gkp",
        "weights": "authors",
        "rate": 0.4375,
        "recipe": {},
    }


@pytest.mark.parametrize(
    "fields",
    [{"rate": None}, {"macs_ratio": 0.5}, {"weights": None}],
    ids=["no target", "two targets", "no start"],
)
def test_an_incomplete_run_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"give"):
        dataclasses.replace(RUN, **fields)


def test_an_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cifar11'.*digits.*cifar10-resnet20"):
        suites.get("cifar11")


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_suite_has_runs_of_its_own_with_plain_file_names(name: str) -> None:
    suite = suites.get(name)
    stems = [run.stem for run in suite.ordered()]
    assert suite.name == name
    assert len(set(stems)) == len(stems)
    assert len(stems) > 1 or suite.facts
    assert all(re.fullmatch(r"[a-z0-9.-]+-s\d+-[0-9a-f]{8}", stem) for stem in stems)


@pytest.mark.parametrize("name", ["digits", "cifar10-vgg16"])
def test_a_baseline_comes_first_and_is_trained_once(name: str) -> None:
    ordered = suites.get(name).ordered()
    assert [run.method for run in ordered].count(suites.BASELINE) == 1
    assert ordered[0].method == suites.BASELINE
    assert all(run.start() == ordered[0] for run in ordered[1:])
    assert ordered[0].start() is None


def test_seed_0_of_every_method_comes_before_seed_1() -> None:
    suite = suites.get("cifar10-resnet20")
    assert [run.seed for run in suite.ordered()] == sorted(run.seed for run in suite.runs)
    assert {run.seed for run in suite.runs} == {0, 1, 2}


@pytest.mark.parametrize("name", ["digits", "cifar10-resnet20-short", "cifar10-resnet20"])
def test_methods_differ_in_nothing_but_the_method(name: str) -> None:
    runs = [run for run in suites.get(name).runs if run.prunes and run.seed == 0]
    assert {"random", "l1", "sr-gkp"} <= {run.method for run in runs}
    assert len({dataclasses.replace(run, method="l1", options=()) for run in runs}) == 1
    masked = {run.label for run in runs if run.options}
    published = {"sfp (share-1.0)", "fpgm-training (share-1.0)"}
    assert masked == (published if name == "cifar10-resnet20" else set())


def test_seed_0_of_the_seeds_is_the_short_grid() -> None:
    grid, seeds = (suites.get(f"cifar10-resnet20-{name}") for name in ("short", "seeds"))
    assert {run.hash for run in seeds.runs if run.seed == 0} <= {run.hash for run in grid.runs}
    assert {run.seed for run in seeds.runs} == {0, 1, 2}


@pytest.mark.parametrize("name", ["audit", "autoattack"])
def test_other_protocols_are_about_the_same_runs(name: str) -> None:
    grid, other = (suites.get(f"cifar10-resnet20-{each}") for each in ("short", name))
    assert {run.hash for run in other.runs} == {run.hash for run in grid.runs}
    assert [run.label for run in other.ordered()][:2] == ["sr-gkp", "unpruned + fine-tune"]


def test_controls_are_the_unpruned_network_as_it_is_and_fine_tuned_alike() -> None:
    suite = suites.get("cifar10-resnet20-short")
    labels = {run.label: run for run in suite.runs}
    assert labels["unpruned"].recipe is None
    assert labels["unpruned + fine-tune"].recipe == labels["sr-gkp"].recipe


def test_the_digits_take_few_minutes() -> None:
    assert 0.2 < sum(suites.minutes(run) for run in suites.get("digits").ordered()) < 4


def test_estimates_grow_with_epochs_and_shrink_on_a_gpu() -> None:
    longer = dataclasses.replace(RUN, recipe=PAPER.scaled(600))
    assert suites.minutes(longer) == pytest.approx(2 * suites.minutes(RUN))
    assert suites.minutes(RUN, "cuda") < suites.minutes(RUN)


def test_ablations_change_one_thing_and_share_the_rest_with_the_short_suite() -> None:
    suite = suites.get("cifar10-resnet20-ablations")
    short = {run.label: run.hash for run in suites.get("cifar10-resnet20-short").runs}
    assert {"unpruned", "unpruned + fine-tune", "sr-gkp", "gkp-greedy"} <= set(short)
    for run in suite.runs:
        changed = len(run.options) + (run.groups != 8) + (run.method != "sr-gkp") + (run.seed != 0)
        assert changed <= 1 or not run.prunes
        if run.label in short and run.seed == 0:
            assert run.hash == short[run.label]
    plain = next(run for run in suite.runs if run.label == "sr-gkp (untuned)")
    assert plain.hash in {run.hash for run in suites.get("method").runs}


def test_variants_are_named_by_what_differs() -> None:
    assert dataclasses.replace(RUN, groups=4).label == "sr-gkp (groups-4)"
    labels = [(run.label, run.seed) for run in suites.get("cifar10-resnet20-ablations").runs]
    assert len(set(labels)) == len(labels)
