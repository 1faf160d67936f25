"""Tables and sentences of the profiles' suite: what is there, what is missing, costs, other fine-tunings."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from many_records import ATTACKS, a_record
from record_factory import measured, with_metrics

from gkp.attacks.outcome import Outcome
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.method import factors, finetunings, profiles
from gkp.study.runs import suites
from gkp.study.runs.record_parts import Metric
from gkp.study.runs.store import Store
from gkp.study.runs.suites.stages import FINETUNINGS

PLAIN, GENTLE = FINETUNINGS["plain"], FINETUNINGS["gentle attack"]
CLEAN, ROBUST, IMAGES = "benign", finetunings.ROBUST, 1000
RIGHT = torch.ones(10, dtype=torch.bool)


def answering(run, clean, robust, suite=PLAIN, place=0):
    """A record with these fractions right, the first images."""
    shares = {CLEAN: (ATTACKS[CLEAN], clean), ROBUST: (ATTACKS[ROBUST], robust)}
    right = {n: measured(a, torch.arange(IMAGES) < round(share * IMAGES)) for n, (a, share) in shares.items()}
    return with_metrics(a_record(run, place, suite), right)


def run_of(suite, label, seed=0):
    return next(run for run in suites.get(suite).runs if run.label == label and run.seed == seed)


@pytest.fixture
def store(tmp_path) -> Store:
    """Two pruned networks and the control in plain fine-tuning, one of them in the gentle one."""
    found = Store(tmp_path)
    for label, clean, robust in (
        ("sr-gkp", 0.9, 0.5),
        ("sr-gkp-b", 0.9, 0.56),
        ("unpruned + fine-tune", 0.95, 0.6),
    ):
        found.write(answering(run_of(PLAIN, label), clean, robust, place=len(label)))
    found.write(answering(run_of(PLAIN, "sr-gkp", 1), 0.9, 0.5))
    found.write(answering(run_of(GENTLE, "sr-gkp"), 0.88, 0.6, GENTLE))
    return found


def test_what_is_there_and_what_is_missing(store) -> None:
    asked = len(suites.get(PLAIN).ordered())
    text = profiles.there(store, PLAIN)
    assert text.startswith(f"**4 of {asked} runs** of `{PLAIN}` have a record, 4 of them trainings of 3 ")
    missing = profiles.missing(store, PLAIN)
    assert "sr-gkp (seed 2)" in missing
    assert "sr-gkp-b (seeds 1, 2)" in missing
    assert "unpruned (seed 0)" in missing
    assert missing.count("seed") == missing.count(";") + 1
    assert "sr-gkp (seed" not in profiles.missing(store, GENTLE)


def test_nothing_is_missing_from_a_whole_suite_and_attacks_are_counted(tmp_path) -> None:
    whole = Store(tmp_path)
    *others, last = suites.get(GENTLE).runs

    def write(run, lacking=()):
        entries = [entry for entry in run.entries("last") if entry.attack.name not in lacking]
        metrics = {
            entry.attack.name: Metric.of(Outcome(entry.attack.name, RIGHT, 0.1, entry.attack), entry)
            for entry in entries
        }
        whole.write(with_metrics(a_record(run, suite=GENTLE), metrics))

    for run in others:
        write(run)
    write(last, {ROBUST})
    assert profiles.missing(whole, GENTLE) == "Without PGD-10 0.5/255: 1 run."
    write(last)
    assert profiles.missing(whole, GENTLE) == ""


def test_tests_as_text_have_a_dash_where_an_attack_is_missing() -> None:
    row = {"label": "a", "attack": CLEAN, "networks": 2, "difference": 1.5, "p": 0.001, "verdict": "better"}
    other = row | {
        "label": "b",
        "attack": ROBUST,
        "difference": -0.5,
        "p": 0.5,
        "verdict": "not significant",
    }
    found = profiles.tested_text(pd.DataFrame([row, other]), {CLEAN: "clean", ROBUST: "PGD"})
    assert found.to_dict("records") == [
        {"label": "a", "networks": "2", "clean": "+1.50 better (p = 0.001)", "PGD": "–"},
        {"label": "b", "networks": "2", "clean": "–", "PGD": "-0.50 (p = 0.500)"},
    ]
    assert profiles.tested_text(factors.contrasts(Comparison([]), [CLEAN]), {}).empty


def test_few_networks_have_no_variance_but_no_error(store) -> None:
    found = Comparison(store.of_suite(PLAIN))
    assert not factors.separable(found, CLEAN)
    assert profiles.variance_text(found, [CLEAN, ROBUST]).empty


def test_factors_that_come_together_are_not_separable() -> None:
    """Each profile with a selection of its own: whose effect it is cannot be told."""
    common = run_of(PLAIN, "sr-gkp")
    runs = [replace(common, seed=seed) for seed in range(5)]
    runs += [
        replace(common, seed=seed, options=(("profile", "6:3:1"), ("strategy", "random")))
        for seed in range(5)
    ]
    records = [answering(run, 0.9 - 0.01 * place, 0.5, place=place) for place, run in enumerate(runs)]
    assert not factors.separable(Comparison(records), CLEAN)
    alone = answering(replace(common, options=(("profile", "6:3:1"),)), 0.9, 0.5, place=11)
    assert not factors.separable(Comparison([*records, alone]), CLEAN)  # an L of three cells crosses nothing
    records += [alone, answering(replace(common, options=(("strategy", "random"),)), 0.8, 0.5, place=12)]
    assert factors.separable(Comparison(records), CLEAN)
    text = profiles.variance_text(Comparison(records), [CLEAN])
    assert list(text.factor) == ["profile", "selection", "rest"]
    assert text["points"].iloc[-1] == "–"
    assert set(text.networks) == {"all"}


def test_variance_leaves_out_the_levels_that_cost_the_most() -> None:
    common = run_of(PLAIN, "sr-gkp")
    options = [
        (("profile", profile), ("strategy", strategy), ("which", which))
        for profile in ("6:3:1", "1:3:6", "1:1:0", "sensitivity")
        for strategy in ("beam", "random")
        for which in ("all", "first")
    ]
    records = [
        answering(
            replace(common, options=chosen),
            0.9
            - place**2 / 2000
            - 0.3 * (("which", "first") in chosen)
            - 0.2 * (("profile", "1:3:6") in chosen),
            0.5,
            place=place,
        )
        for place, chosen in enumerate(options)
    ]
    text = profiles.variance_text(Comparison(records), [CLEAN])
    found = {words: list(part.factor) for words, part in text.groupby("networks")}
    assert found["all"] == ["profile", "selection", "which", "rest"]
    assert found["without which first"] == ["profile", "selection", "rest"]
    assert found["without which first, profile 1:3:6"] == ["profile", "selection", "rest"]
    worst = text[text.factor == "profile"].set_index("networks")["best against worst"]
    assert worst["without which first"].endswith("against 1:3:6")
    assert "1:3:6" not in worst["without which first, profile 1:3:6"]


def test_rates_are_those_of_both_kinds_of_layers() -> None:
    common = replace(run_of(PLAIN, "sr-gkp"), options=())
    alone = answering(common, 0.9, 0.5)
    assert profiles.rates(Comparison([alone])) == ""
    half = answering(replace(common, options=(("which", "first"),)), 0.8, 0.5, place=1)
    half = replace(half, pruning=replace(half.pruning, rate=0.93))
    text = profiles.rates(Comparison([alone, half]))
    assert f"**{100 * alone.pruning.rate:.0f} %** of the kernels of all" in text
    assert "**93 %** of those of the first" in text


def test_costs_are_shares_of_the_unpruned_network(store) -> None:
    found = profiles.costs_text(Comparison(store.of_suite(PLAIN))).set_index("network")
    assert found.loc["unpruned + fine-tune", "params left"] == "100.0 %"
    assert found.loc["sr-gkp-b", ["MACs (M)", "params (M)"]].tolist() == ["23.00", "0.150"]
    assert found.loc["sr-gkp-b", "MACs left"] == f"{100 * 23 / 40.55:.1f} %"
    assert found.loc["sr-gkp-b", "params left"] == f"{100 * 150 / 270:.1f} %"


def test_the_time_of_every_pruned_network_is_told() -> None:
    names = ("pruned, grouped", "pruned 6:3:1 (sr-gkp-b), grouped")
    names += ("filters removed (l1)", "filters removed 6:3:1 (l1)")
    one = {name: {"ratio": 1 + place / 4} for place, name in enumerate(names)}
    other = {name: {"ratio": 4 + place} for place, name in enumerate(names)}
    text = profiles.latency({"resnet20": {"batch 1": one, "batch 64": other}})
    assert "of `sr-gkp-b` **1.2** at batch 1, **5.0** at batch 64; filters" in text
    assert text.endswith("and 6:3:1 **1.8** at batch 1, **7.0** at batch 64.")


def test_other_fine_tunings_beside_the_choice_of_a_structure(store) -> None:
    found = finetunings.ways(store)
    table = finetunings.ways_text(found).set_index("fine-tuning")
    assert table["trainings there"].tolist() == ["3 of 7", "1 of 7", "0 of 7", "0 of 7"]
    assert table["passes"].tolist() == ["4.0", "3.3", "4.0", "4.0"]
    assert table.loc["distillation", "seconds each"] == "–"
    lines = finetunings.cheaper(found, ROBUST).splitlines()
    assert lines[0] == "- gentle attack: **+10.0 points** (-2.0 clean), 1 network"
    assert lines[1:3] == [
        f"- {name}: not yet measured, no training is there" for name in ("gradient penalty", "distillation")
    ]
    assert "**6.0 points** from the worst to the best of 2 pruned ones" in lines[3]


def test_the_strongest_attacks_that_were_made_are_shown(store) -> None:
    records = Comparison(store.of_suite(finetunings.FINETUNINGS["plain"]))
    assert profiles.sharp(records) == [ROBUST]  # these records have no PGD-50
    committed = Comparison(Store(".").of_suite(finetunings.FINETUNINGS["plain"]))
    assert [committed.titles[name] for name in profiles.sharp(committed)] == [
        "PGD-50 +1 0.5/255",
        "PGD-50 +1 1/255",
    ]
