"""What a choice of the search changes, against counting by hand."""

import itertools

import pytest
import torch

from gkp.search import Selection, select
from gkp.study.facts import ablations
from gkp.study.facts.ablations import ALL, REFERENCE, Variant
from gkp.study.runs import suites


@pytest.fixture(scope="module")
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(1))


def test_kept_kernels_are_those_of_each_filter():
    selection = Selection(torch.tensor([2, 0, 3, 1]), torch.tensor([[0, 2], [1, 2]]), torch.zeros(2))
    kept = ablations.kept_kernels(selection, 4).int().tolist()
    assert kept == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]]


def test_the_objective_is_equation_3_written_out(weight):
    selection = select(weight, groups=2)
    total, keep = 0.0, selection.kept.shape[1]
    for group, kept in zip(selection.filter_order.view(2, -1), selection.kept.tolist(), strict=True):
        kernels = weight.double()[group].transpose(0, 1).flatten(1)
        distance = [[(1 - (a - b).norm()).item() for b in kernels] for a in kernels]
        total -= sum(distance[u][v] for u, v in itertools.combinations(kept, 2))
        pruned = [p for p in range(6) if p not in kept]
        beta = len(list(itertools.combinations(kept, 2))) / len(pruned)
        total += beta * sum(max(distance[p][u] for u in kept) for p in pruned)
    assert keep == 3
    assert ablations.objective(weight, selection) == pytest.approx(total)


def test_no_set_beats_the_exact_search_by_either_objective():
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    best = {v.title: select(weight, **v.options) for v in ablations.VARIANTS if "optimum" in v.title}
    found = select(weight)
    for beta, title in (("exact", "optimum of Eq. 3"), ("reference", "optimum of the frozen cost")):
        limit = ablations.objective(weight, best[title], beta)
        assert limit >= ablations.objective(weight, found, beta) - 1e-9
    other = ablations.objective(weight, best["optimum of the frozen cost"])
    assert ablations.objective(weight, best["optimum of Eq. 3"]) > other


def test_the_reference_is_itself_and_other_groups_have_no_common_sets(weight):
    reference = select(weight)
    same = ablations.compare_layer(weight, reference, Variant(REFERENCE))
    assert (same["same"], same["shared"]) == (8, same["kept"])
    assert (same["eq3"], same["frozen"]) == (1, 1)
    other = ablations.compare_layer(weight, reference, Variant("4 groups", {"groups": 4}, regroups=True))
    assert other["same"] is other["eq3"] is None
    assert other["shared"] < other["kept"]


def test_summaries_pool_groups_and_kernels():
    rows = [
        {"groups": 8, "kept": 10, "shared": 10, "same": 8, "eq3": 1.0, "frozen": 1.0},
        {"groups": 8, "kept": 30, "shared": 20, "same": 2, "eq3": 0.5, "frozen": 0.8},
    ]
    summary = ablations.summarise(rows)
    assert (summary["same_groups"], summary["same_percent"]) == (10, 62.5)
    assert (summary["shared_percent"], summary["eq3_percent"]) == (75, 75)
    assert ablations.summarise([rows[0] | {"same": None}])["eq3_percent"] is None


def test_the_facts_of_a_network(authors20):
    few = [Variant(REFERENCE, channels=16), Variant("roughest kernels", {"strategy": "roughest"}, 16)]
    facts = ablations.search_facts([("resnet20", "authors")], few)
    name = "resnet20 (authors)"
    assert facts["searches"][REFERENCE]["networks"][name]["same_percent"] == 100
    assert facts["searches"]["roughest kernels"]["networks"][ALL]["groups"] == 56
    assert facts["smoother"][name]["by_channels"]["16"] > 99


def test_titles_are_unique_and_every_option_is_one_of_the_search():
    titles = [variant.title for variant in ablations.VARIANTS]
    assert titles[0] == REFERENCE
    assert len(set(titles)) == len(titles)
    for variant in ablations.VARIANTS:
        select(torch.randn(16, 16, 3, 3), **variant.options, generator=torch.Generator())
    assert "search-ablations" in suites.get("cifar10-resnet20-ablations").facts


def test_recorded_searches_stand_in_the_order_of_the_variants():
    recorded = {
        "searches": {title: {} for title in sorted(v.title for v in ablations.VARIANTS)} | {"own": {}}
    }
    assert ablations.titles(recorded) == [*(v.title for v in ablations.VARIANTS), "own"]
