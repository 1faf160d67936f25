"""What the suites hold, in which order."""

import dataclasses
import re

import pytest
import torch

import gkp
from gkp import pruners
from gkp.nets import cost, models
from gkp.study.runs import pace, protocols, suites
from gkp.study.runs import run as configuration
from gkp.study.runs.suites import grids, recipes, stages


def test_an_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cifar11'.*digits.*cifar10-resnet20"):
        suites.get("cifar11")


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_suite_has_runs_of_its_own_with_plain_file_names(name: str) -> None:
    suite = suites.get(name)
    stems = [run.stem for run in suite.ordered()]
    assert suite.name == name
    assert len(set(stems)) == len(stems)
    assert stems or suite.facts
    assert all(re.fullmatch(r"[a-z0-9.-]+-s\d+-[0-9a-f]{8}", stem) for stem in stems)


@pytest.mark.parametrize("name", ["digits", "cifar10-vgg16"])
def test_a_baseline_comes_first_and_is_trained_once(name: str) -> None:
    ordered = suites.get(name).ordered()
    assert [run.method for run in ordered].count(configuration.BASELINE) == 1
    assert ordered[0].method == configuration.BASELINE
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


def test_the_short_grid_of_the_papers_network_starts_as_its_long_one() -> None:
    """So that the untouched network has one record, which the paper's Table 10 is compared with."""
    short, whole = (suites.get(f"cifar10-resnet56{end}") for end in ("-short", ""))
    assert [run.label for run in short.ordered()][:3] == ["unpruned", "unpruned + fine-tune", "sr-gkp"]
    assert short.ordered()[0].hash == whole.ordered()[0].hash
    assert {run.recipe for run in short.runs[1:]} == {recipes.SHORT_RECIPE}
    assert {run.method for run in short.runs if run.prunes} == {*grids.TABLE_10, "group-fisher"}


def test_the_adversarial_suite_trains_all_alike_and_attacks_the_start_as_other_suites_do() -> None:
    """An attack on other images than another suite's would take turns with it in the record of the start."""
    start, *trained = suites.get("cifar10-resnet20-adversarial").runs
    assert start.recipe is None
    assert {run.recipe for run in trained} == {recipes.ADVERSARIAL_RECIPE}
    assert {"unpruned + fine-tune", "sr-gkp", "random", "l1-b"} <= {run.label for run in trained}
    others = [run for name in ("short", "audit") for run in suites.get(f"cifar10-resnet20-{name}").runs]
    asked = {e.attack.name: e.n for run in others if run.hash == start.hash for e in run.evaluation}
    shared = [e for e in start.evaluation if e.attack.name in asked]
    assert len(shared) == 4 + 2 * len(protocols.LARGE)
    assert all(entry.n == asked[entry.attack.name] for entry in shared)
    short = suites.get("cifar10-resnet20-short").runs
    assert not {run.hash for run in trained} & {run.hash for run in short}
    attacks = pruners.get("rap-admm").options
    assert all(getattr(recipes.ONE_STEP, name) == attacks[name] for name in ("eps", "step", "iterations"))


def test_the_unit_suite_attacks_equally_far_in_pixels_as_the_papers_networks() -> None:
    (run,) = suites.get("cifar10-resnet56-unit").runs
    assert run.hash in {other.hash for other in suites.get("cifar10-resnet56-short").runs}
    benign, *papers, _, _, _ = [entry.attack for entry in run.evaluation]
    assert benign.kind == "none"
    assert [attack.iterations for attack in papers] == [1, 1, 3]
    mean = [sum(std) / 3 for std in (models.CIFAR_STD, models.IMAGENET_STD)]
    for paper, ours in zip(papers, [entry.attack for entry in run.evaluation[4:]], strict=True):
        assert ours.eps * mean[1] == pytest.approx(paper.eps * mean[0], rel=1e-3)
        assert ours.step * mean[1] == pytest.approx(paper.step * mean[0], rel=1e-3)
        assert dataclasses.replace(ours, eps=paper.eps, step=paper.step) == paper


def test_controls_are_the_unpruned_network_as_it_is_and_fine_tuned_alike() -> None:
    suite = suites.get("cifar10-resnet20-short")
    labels = {run.label: run for run in suite.runs}
    assert labels["unpruned"].recipe is None
    assert labels["unpruned + fine-tune"].recipe == labels["sr-gkp"].recipe


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


def test_labels_tell_the_runs_of_a_suite_apart() -> None:
    labels = [(run.label, run.seed) for run in suites.get("cifar10-resnet20-ablations").runs]
    assert len(set(labels)) == len(labels)


def test_the_longer_training_is_the_papers_schedule_on_the_networks_of_the_short_one() -> None:
    longer, seeds, short = (suites.get(f"cifar10-resnet56-{end}") for end in ("57", "seeds", "short"))
    trained = [run for run in longer.runs if run.recipe]
    assert {run.recipe for run in trained} == {recipes.LONG_RECIPE.scaled(recipes.MIDDLE_EPOCHS)}
    assert {run.recipe.step_epochs for run in trained} == {19}
    assert {run.seed for run in trained} == {run.seed for run in seeds.runs} == {0, 1, 2}
    assert [run.seed for run in longer.ordered()] == sorted(run.seed for run in longer.runs)
    assert {run.hash for run in seeds.runs if run.seed == 0} <= {run.hash for run in short.runs}
    assert {run.label for run in longer.runs} == {run.label for run in seeds.runs}


def test_strong_attacks_are_for_the_last_epoch_of_the_longer_training() -> None:
    for run in suites.get("cifar10-resnet56-57").runs:
        kinds = {rule: {e.attack.kind for e in run.entries(rule)} for rule in run.rules}
        assert ("autoattack" in kinds["last"]) == (run.recipe is not None)
        assert all("autoattack" not in kinds[rule] for rule in run.rules if rule != "last")
        assert len(run.entries(*run.rules)) == len(run.evaluation)


def test_an_attack_for_a_rule_that_is_none_is_refused() -> None:
    run = suites.get("digits").runs[0]
    entry = dataclasses.replace(run.evaluation[0], rules=("first",))
    with pytest.raises(ValueError, match="rule first: choose of last"):
        dataclasses.replace(run, evaluation=(entry,))


def test_the_suites_of_three_hundred_epochs_train_in_bfloat16() -> None:
    for name in ("resnet20", "resnet32", "resnet56", "resnet110", "vgg16"):
        trained = {run.recipe for run in suites.get(f"cifar10-{name}").ordered() if run.recipe}
        assert trained == {dataclasses.replace(recipes.PAPER_RECIPE, precision="bfloat16")}


def test_the_profiles_share_runs_with_the_grids_and_have_one_name_each() -> None:
    found = suites.get("cifar10-resnet20-profiles").ordered()
    hashes = {run.hash for run in found}
    first = ["sr-gkp-b", "sr-gkp-b (strategy-random)", "sr-gkp (profile-1:1:0)"]
    assert [run.label for run in found[:3]] == first
    assert len(hashes) == len(found)
    others = [suites.get(f"cifar10-resnet20-{name}") for name in ("seeds", "ablations")]
    known = {run.hash for suite in others for run in suite.runs}
    plain = {"sr-gkp", "gkp-greedy", "random", "fpgm", "l1-b", "unpruned + fine-tune"}
    assert {run.label for run in found if run.hash in known} == plain | {
        "unpruned",
        "sr-gkp (strategy-random)",
    }
    assert {run.hash for run in suites.get("cifar10-resnet20-profiles-autoattack").runs} <= hashes


def test_at_equal_parameters_the_profiles_meet_what_the_one_rate_leaves() -> None:
    shared = {run.hash for run in suites.get("cifar10-resnet20-profiles").runs}
    runs = suites.get("cifar10-resnet20-parameters").runs
    new = [run for run in runs if run.params_ratio]
    assert {run.hash for run in runs} - shared == {run.hash for run in new}
    assert all(run.macs_ratio is None for run in new)
    model, example = models.create("resnet20"), torch.zeros(1, 3, 32, 32)
    published = gkp.prune(model, "sr-gkp", rate=configuration.RATE, strategy="random")
    left, whole = (cost.count(network, example).params for network in (published, model))
    assert stages.PARAMS_RATIO * whole == pytest.approx(left, rel=1e-4)


def test_every_level_of_the_profiles_factors_is_crossed_with_the_others() -> None:
    found = {run.hash for run in suites.get("cifar10-resnet20-profiles").runs}
    common = next(run for run in suites.get("cifar10-resnet20-short").runs if run.label == "sr-gkp")
    crossed = [
        stages.kernels(common, profile, selection, which)
        for profile in stages.PROFILES
        for selection in stages.SELECTIONS
        for which in stages.WHICH
        if (profile, which) not in stages.BEYOND
    ]
    assert {run.hash for run in crossed} <= found
    assert len({run.hash for run in crossed}) == len(crossed) == 36


def test_an_attack_on_another_number_of_images_is_another_attack() -> None:
    """A record has an attack once, so that two suites would measure it again and again, in turns."""
    asked: dict[tuple[str, str], set[int | None]] = {}
    for name in suites.SUITES:
        for run in suites.get(name).ordered():
            for entry in run.evaluation:
                asked.setdefault((run.hash, entry.attack.name), set()).add(entry.n)
    assert [key for key, numbers in asked.items() if len(numbers) > 1] == []


@pytest.mark.parametrize("name", [*stages.FINETUNINGS.values()][1:])
def test_other_fine_tunings_take_no_more_passes_than_the_plain_one(name: str) -> None:
    plain, other = recipes.SHORT_RECIPE, suites.get(name)
    (recipe,) = {run.recipe for run in other.runs}
    whole = recipe.epochs * pace.passes(recipe)
    assert 0.8 * plain.epochs < whole <= plain.epochs
    assert whole + pace.passes(recipe) > plain.epochs  # no epoch more would fit
    alike = {dataclasses.replace(run, recipe=plain).hash for run in other.runs}
    assert alike <= {run.hash for run in suites.get(stages.FINETUNINGS["plain"]).runs}
    assert [run.label for run in other.ordered()][:2] == ["sr-gkp-b", "unpruned + fine-tune"]
