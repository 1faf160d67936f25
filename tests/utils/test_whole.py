"""What counts as a number and as a whole one, and what becomes of NumPy's."""

import json

import numpy as np
import pytest
import torch

from gkp.utils.whole import is_number, is_whole, plain


@pytest.mark.parametrize(("value", "least"), [(1, 1), (7, 1), (0, 0), (-2, -3), (np.int64(4), 1)])
def test_whole(value, least):
    assert is_whole(value, least)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, np.bool_(True), "3", None, float("nan")])
def test_not_whole(value):
    assert not is_whole(value)


@pytest.mark.parametrize("value", [1, -0.5, float("inf"), np.float32(0.1), np.int64(3)])
def test_a_number(value):
    assert is_number(value)
    assert json.loads(json.dumps(plain(value))) == pytest.approx(float(value))


@pytest.mark.parametrize("value", ["8/255", None, True, torch.tensor(0.1), [1]])
def test_no_number(value):
    assert not is_number(value)
    assert plain(value) is value
