"""The identity of a run."""

import dataclasses

import pytest

from gkp.attacks import Attack
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import Run, config
from gkp.train.recipe import PAPER

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
    assert hashed - set(OTHER) == {"macs_ratio", "params_ratio"}  # exclude rate; see the next test


def test_targets_are_hashed() -> None:
    targets = [{target: ratio} for target in ("macs_ratio", "params_ratio") for ratio in (0.5625, 0.5)]
    assert len({RUN.hash, *(dataclasses.replace(RUN, rate=None, **target).hash for target in targets)}) == 5


def test_an_unknown_checkpoint_rule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"rule best-fgsm-0\.05: choose of last, .*best-fgsm-0\.01"):
        dataclasses.replace(RUN, rules=("last", "best-fgsm-0.05"))


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
    [
        {"rate": None},
        {"macs_ratio": 0.5},
        {"rate": None, "macs_ratio": 0.5, "params_ratio": 0.5},
        {"macs_ratio": 0.5, "params_ratio": 0.5},
        {"weights": None},
    ],
    ids=["no target", "macs and rate", "macs and params", "three targets", "no start"],
)
def test_an_incomplete_run_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"give"):
        dataclasses.replace(RUN, **fields)


def test_variants_are_named_by_what_differs() -> None:
    assert dataclasses.replace(RUN, groups=4).label == "sr-gkp (groups-4)"


def test_a_baseline_has_no_teacher() -> None:
    recipe = dataclasses.replace(PAPER, distillation=0.5)
    with pytest.raises(ValueError, match="trained from scratch and has no teacher: leave distillation out"):
        dataclasses.replace(RUN, baseline=recipe)
