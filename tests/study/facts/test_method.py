"""Facts that are recorded once are still what the code computes."""

from pathlib import Path

import pytest

from gkp.study.facts.method import cost_table, search_equality
from gkp.study.runs.store import Store

STORE = Store(Path(__file__).parents[3])


@pytest.mark.evidence
def test_the_recorded_search_equality_is_that_of_the_search_as_it_is_now(authors20):
    found = search_equality()
    assert (found["random_equal"], found["random_layers"]) == (24, 24)
    assert (found["resnet20_equal"], found["resnet20_layers"]) == (18, 18)
    recorded = STORE.fact("method", "search-equality").facts
    assert recorded | {"resnet20_seconds": 0} == found | {"resnet20_seconds": 0}


@pytest.mark.evidence
def test_the_recorded_costs_are_those_that_are_counted_now():
    found = cost_table()
    assert found == STORE.fact("method", "cost-table").facts
    assert found["SR-GKP"]["networks"] > 0
    assert found["SR-GKP"]["macs_equal"] == found["SR-GKP"]["networks"]
