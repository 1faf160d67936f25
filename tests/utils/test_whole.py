"""What counts as a whole number."""

import pytest

from gkp.utils.whole import is_whole


@pytest.mark.parametrize(("value", "least"), [(1, 1), (7, 1), (0, 0), (-2, -3)])
def test_whole(value, least):
    assert is_whole(value, least)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, "3", None, float("nan")])
def test_not_whole(value):
    assert not is_whole(value)
