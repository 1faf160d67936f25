"""The audit's comparisons, on synthetic records and on the paper's tables."""

from pathlib import Path

import numpy as np
import pytest
import torch
from many_records import ATTACKS, comparison, many_records
from record_factory import measured, with_metrics, with_right
from scipy.stats import binom, spearmanr

from gkp.attacks import Attack
from gkp.study.analysis import audit
from gkp.study.analysis.compared import Comparison
from gkp.study.report.plots import attacks
from gkp.study.runs import protocols, suites

EXPECTED = Path(__file__).parents[3] / "expected"
TABLES = EXPECTED / "paper_cifar10.csv"
FGSM = "fgsm_norm_0.01_predicted"


@pytest.fixture(scope="module")
def few():
    return comparison(("random", "l1", "sr-gkp"))


def with_audit(records, factor=1.0):
    """The same records after the audit: every added attack leaves `factor` of the clean images right."""
    for record in records:
        benign = record.metrics()["benign"]
        right = torch.arange(benign.n) < factor * benign.correct
        added = {e.attack.name: measured(e.attack, right) for e in protocols.audit()}
        yield with_metrics(record, added | dict(record.metrics()))


def test_every_attack_of_the_changes_is_asked_for_by_the_suite():
    asked = {entry.attack.name for entry in suites.get("cifar10-resnet20-audit").runs[0].evaluation}
    assert {name for change in audit.CHANGES for name in (change.before, change.after)} <= asked
    assert {name for rungs in attacks.LADDERS.values() for name in rungs.values()} <= asked
    unit = {entry.attack.name for entry in suites.get("cifar10-resnet56-unit").runs[0].evaluation}
    changes = audit.unit_changes()
    assert {name for change in changes for name in (change.before, change.after)} == unit - {"benign"}
    assert [change.what for change in changes][0] == "FGSM 0.01 norm., pred.: eps x 0.889"


def test_networks_without_an_attack_are_left_out(few):
    assert len(few.having([FGSM])) == 5
    assert list(few.having(["highpass_0.3"])) == []
    assert audit.effects(few, [audit.Change("none", FGSM, "highpass_0.3")]).empty


def test_an_effect_is_the_difference_on_common_images(few):
    change = audit.Change("labels", FGSM, "fgsm_norm_0.01_true")
    frame = audit.effect(few, change).set_index("label")
    first = few.records[0]
    by_hand = [100 * first.metrics()[name].accuracy for name in (change.before, change.after)]
    row = frame.loc[first.label]
    assert [row.before, row.after] == pytest.approx(by_hand)
    assert row.difference == pytest.approx(by_hand[1] - by_hand[0])
    text = audit.effects(few, [change])
    assert text["networks"].tolist() == ["5"]
    assert text["images"].tolist() == ["400"]


def test_the_significant_difference_is_where_mcnemars_test_turns():
    n, discordant = 10000, 0.1
    pairs, gap = round(n * discordant), audit.significant(n, discordant) / 100 * n
    p = [2 * binom.cdf(round((pairs - difference) / 2), pairs, 0.5) for difference in (gap + 4, gap - 4)]
    assert p[0] < audit.LEVEL < p[1]


def test_without_a_difference_it_is_passed_in_five_of_a_hundred_draws():
    n, discordant = 2000, 0.1
    random = np.random.default_rng(0)
    pairs = random.binomial(n, discordant, size=20000)
    gaps = 100 * np.abs(2 * random.binomial(pairs, 0.5) - pairs) / n
    assert (gaps >= audit.significant(n, discordant)).mean() == pytest.approx(0.05, abs=0.007)


def test_more_images_show_smaller_differences():
    found = [audit.significant(n, 0.2) for n in (100, 1000, 10000)]
    assert found == sorted(found, reverse=True)
    with pytest.raises(ValueError, match="discordant=0"):
        audit.significant(100, 0)


def test_discordance_of_known_outcomes():
    first = torch.arange(100) < 50
    records = many_records(("l1", "l2"))
    rights = (first, first.roll(5))
    records[2:] = [with_right(r, ATTACKS[FGSM], right) for r, right in zip(records[2:], rights, strict=True)]
    assert audit.discordance(Comparison(records), FGSM) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no two pruned networks"):
        audit.discordance(Comparison(records[:3]), FGSM)


def test_ranks_agree_with_themselves_and_the_interval_says_how_sure():
    records = comparison(("random", "l1", "l2", "fpgm", "sr-gkp"))
    same = audit.rank_agreement(records, FGSM, FGSM, draws=50)
    assert same["correlation"] == pytest.approx(1)
    # the same images are drawn for both
    assert [same["low"], same["high"]] == pytest.approx([1, 1])
    assert (same["networks"], same["images"]) == (5, 400)


def test_the_interval_of_a_rank_correlation_lies_about_the_measured_one():
    """The bootstrap by hand, with SciPy's ranks."""
    names = (FGSM, "pgd3_norm_8/255_step2/255_true")
    records = comparison(("random", "l1", "l2", "fpgm", "sr-gkp"))
    found = audit.rank_agreement(records, *names, draws=20)
    right = [np.stack([records.right(label, name)[0] for label in records.pruned.labels]) for name in names]
    measured = spearmanr(*(side.mean(1) for side in right)).statistic
    n = right[0].shape[1]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=20)
    again = [spearmanr(*(side @ draw for side in right)).statistic for draw in draws]
    assert abs(np.mean(again) - measured) > 0.02  # or moving them would change nothing
    ends = np.quantile(again, (0.025, 0.975)) + measured - np.mean(again)
    assert [found["correlation"], found["low"], found["high"]] == pytest.approx([measured, *ends])


def test_ranks_are_shown_from_the_first_suite_whose_networks_met_the_attack():
    few, many = comparison(("l1", "l2", "random")), comparison(("random", "l1", "l2", "fpgm", "sr-gkp"))
    shown = audit.ranks_text((few, many), FGSM, [FGSM, "highpass_0.3"])
    assert shown.to_dict("records") == [
        {
            "attack": "FGSM 0.01 norm., pred.",
            "rank correlation": "+1.00",
            "interval": "+1.00 to +1.00",
            "networks": "5",
            "images": "400",
        }
    ]
    assert audit.ranks_text((few,), FGSM, [FGSM]).empty
    assert len(audit.ranks_text((comparison(("l1", "l2", "random", "fpgm")),), FGSM, [FGSM])) == 1


def test_table_1_has_the_papers_rows_and_ours(few):
    table = audit.table1(few, EXPECTED / "paper_table1.csv")
    assert table["network"].str.endswith("(paper, ResNet-56)").all()
    records = Comparison(with_audit(many_records(("l1",)), 0.5))
    table = audit.table1(records, EXPECTED / "paper_table1.csv").set_index("network")
    assert list(table.columns) == ["theta 0", "theta 0.3", "theta 0.5", "theta 0.7"]
    assert table.loc["Unpruned (paper, ResNet-56)"].tolist() == ["93.24", "77.05", "50.77", "22.79"]
    benign, filtered = table.loc["l1", ["theta 0", "theta 0.5"]].astype(float)
    assert filtered == pytest.approx(benign / 2, abs=0.3)


def test_the_ladder_draws_the_networks_that_met_all_attacks(few):
    with pytest.raises(ValueError, match="cifar10-resnet20-audit"):
        attacks.ladder(few)
    records = Comparison(with_audit(many_records(("l1", "sr-gkp")), 0.4))
    figure = attacks.ladder(records)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.partition(":")[0] for title in titles] == list(attacks.LADDERS)
    for axes, rungs in zip(figure.axes, attacks.LADDERS.values(), strict=True):
        *dots, medians = axes.lines
        assert len(dots) == 4  # two controls, two methods
        assert [len(line.get_ydata()) for line in dots] == [len(rungs)] * 4
        aside = attacks.ASIDE in rungs.values()  # no line leads to it
        assert len(medians.get_ydata()) == len(rungs) - aside


def test_a_ladder_is_about_the_same_images_on_every_rung():
    name = "fgsm_norm_0.01_true"
    records = [
        with_metrics(r, {n: m.first(50) if n == name else m for n, m in r.metrics().items()})
        for r in with_audit(many_records(("l1", "sr-gkp")), 0.4)
    ]
    for record in attacks.climbed(Comparison(records))["FGSM 0.01"]:
        assert {metric.n for metric in record.metrics().values()} == {50}


def test_the_audit_of_the_records_has_filtered_images():
    records = Comparison(with_audit(many_records(("l1",)), 0.4))
    highpass = Attack("highpass", theta=0.3).name
    assert highpass in records.records[0].metrics()


def test_networks_that_are_right_as_often_tie_with_three_seeds():
    """Shares of a third are rounded by the order of the images; counts are not."""
    order = torch.Generator().manual_seed(0)
    records = many_records(("l1", "l2", "fpgm", "chip", "sr-gkp"), seeds=(0, 1, 2))
    equal = []
    for record in records:
        right = torch.arange(300) < 100 + 50 * record.run.seed
        equal.append(
            with_right(record, Attack("fgsm", eps=1 / 255), right[torch.randperm(300, generator=order)])
        )
    found = audit._counts(
        Comparison(equal), ["l1", "l2", "fpgm", "chip", "sr-gkp"], Attack("fgsm", eps=1 / 255).name
    )
    assert len(set(found.mean(0))) == 1
