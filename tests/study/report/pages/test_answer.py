"""What the README says first and last follows the verdicts, and names suite, epochs and seeds."""

import pytest
from pages_factory import committed_evidence, verdict

from gkp.study.analysis.labels import CONTROL
from gkp.study.report.pages import answer
from gkp.study.report.pages.findings import LONG_56


@pytest.fixture(scope="module")
def committed():
    return committed_evidence()


def test_five_lines_that_follow_the_verdicts(committed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer.first_lines(committed).count("\n- ") == 4
    ahead = [verdict("", "OK", (2.0,), (1.0, 3.0)), verdict("", "OK", (4.0,), (1.0, 5.0))]
    monkeypatch.setattr(answer, "robust", lambda *_: ahead)
    text = answer.first_lines(committed)
    assert "**Free robustness is shown**" in text
    assert "control under 0 of 2 attacks (ResNet-56, 57 epochs" in text
    assert "; to be more robust under 6.\n" in text
    behind = [verdict("", "MISS", (-2.0,), (-3.0, -1.0)), verdict("", "OPEN", (-1.0,), (-3.0, 1.0))]
    monkeypatch.setattr(answer, "robust", lambda *_: behind)
    text = answer.first_lines(committed)
    assert "control under 1 of 2 attacks by 2.0 to 2.0 points (ResNet-56, 57 epochs" in text
    assert "; to be more robust under none.\n" in text


def test_a_setting_has_network_epochs_and_the_seeds_of_what_is_compared(committed) -> None:
    own = committed.comparison(LONG_56).seeds_of_each
    pair = len(own["sr-gkp"] & own[CONTROL])
    assert f"57 epochs, {pair} seed" in answer.first_lines(committed).splitlines()[1]
    everybody = len(set.intersection(*own.values()))
    assert f"(ResNet-56, 57 epochs, {everybody} seed" in answer.beside_others(committed)
    assert f"57 epochs and {pair} seed" in answer.provisional(committed)
    assert (pair != everybody) == (f"{everybody} for the rest)" in answer.provisional(committed))


def test_few_seeds_are_said_to_be_few(committed) -> None:
    count = len(committed.comparison(LONG_56).seeds)
    assert ("say nothing about other" in answer.what_few_seeds_leave(committed)) == (count < 3)
