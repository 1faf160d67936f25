"""The search computes with one thread, and leaves the number of threads as it was."""

import pytest
import torch

from gkp.search import arena, select
from gkp.search.threads import one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_is_one_inside_and_comes_back() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="stop"), one_thread():
        raise RuntimeError("stop")
    assert torch.get_num_threads() == 2


def test_the_search_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, search = [], arena.search

    def spied(*args):
        seen.append(torch.get_num_threads())
        return search(*args)

    monkeypatch.setattr(arena, "search", spied)
    select(torch.randn(8, 6, 3, 3), groups=2)
    assert seen == [1]
    assert torch.get_num_threads() == 2
