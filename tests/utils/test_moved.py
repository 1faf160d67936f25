"""Code that was written against version 0.1 finds what it imports."""

import importlib
import sys

import pytest

from gkp.utils.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_the_old_name_is_the_same_module_and_says_the_new_one(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"is now {MOVED[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old]


def test_other_names_are_unknown_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"gkp\.nonsense"):
        importlib.import_module("gkp.nonsense")
