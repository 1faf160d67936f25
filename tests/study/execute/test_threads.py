"""The number of threads stays what it was: with another one the same run comes out otherwise."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from record_factory import edited

from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.one_run import execute
from gkp.study.execute.suite import run_suite
from gkp.study.execute.threads import begun_with, begun_with_in, computing_with, most_threads
from gkp.study.runs import suites
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites.grids import Suite
from gkp.train.state import save_state, threads_of


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    with computing_with(None):
        yield


def context(root: Path) -> Context:
    return Context(Store(root), torch.device("cpu"))


def one_epoch(run: Run, where: Context) -> None:
    where.deadline = time.monotonic()
    with pytest.raises(OutOfTime):
        execute(run, "tiny", where)


def save(run: Run, where: Context, threads: int, part: str = "") -> None:
    with computing_with(threads):
        save_state(where.state_path(run, part), {}, {"epochs": []})


def test_a_block_gives_back_the_threads_it_found() -> None:
    torch.set_num_threads(2)

    def fail() -> None:
        assert torch.get_num_threads() == 3
        raise KeyError

    with pytest.raises(KeyError), computing_with(3):
        fail()
    assert torch.get_num_threads() == 2
    with computing_with(None):
        assert torch.get_num_threads() == 2


def test_a_run_ends_with_the_threads_that_it_was_begun_with(tiny: Suite, tmp_path: Path) -> None:
    run = tiny.ordered()[0]
    torch.set_num_threads(1)
    whole = execute(run, "tiny", context(tmp_path / "whole"))
    one_epoch(run, context(tmp_path / "cut"))
    torch.set_num_threads(2)
    cut = execute(run, "tiny", context(tmp_path / "cut"))
    assert torch.get_num_threads() == 2
    assert cut.provenance.threads == whole.provenance.threads == 1
    for rule in run.rules:
        assert cut.kept[rule].sha256 == whole.kept[rule].sha256


def test_a_suite_is_continued_with_the_threads_of_its_first_run(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Suite("tiny", "", "", (tiny.runs[0],))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)
    torch.set_num_threads(1)
    execute(tiny.ordered()[0], "tiny", context(tmp_path))
    torch.set_num_threads(2)
    run_suite("tiny", root=tmp_path, device="cpu")
    assert [record.provenance.threads for record in Store(tmp_path).all()] == [1, 1]
    assert torch.get_num_threads() == 2


def test_the_first_run_that_was_begun_decides(tiny: Suite, tmp_path: Path) -> None:
    torch.set_num_threads(3)  # what is found must not exceed it, or the cores
    where, (first, second, third, *_) = context(tmp_path), tiny.ordered()
    assert begun_with_in([first, second], where) is None
    save(third, where, 1)
    save(second, where, 2, part="-pruning")
    assert [begun_with(run, where) for run in (first, second, third)] == [None, 2, 1]
    assert begun_with_in([first, second, third], where) == 2
    where.state_path(first).write_bytes(b"damaged")
    assert begun_with_in([first, second, third], where) == 2


def test_threads_that_cannot_be_kept(tiny: Suite, tmp_path: Path) -> None:
    where, run = context(tmp_path), tiny.ordered()[0]
    save(run, where, most_threads() + 1)
    assert begun_with(run, where) is None
    record = execute(run, "tiny", context(tmp_path / "other"))
    about = record.provenance
    assert begun_with(run, where, record) == about.threads
    for name, value in (("device", "cuda: another one"), ("threads", most_threads() + 1), ("threads", None)):
        assert begun_with(run, where, edited(record, (("provenance", name), value))) is None


def test_a_state_of_before_its_threads_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: written(state | {"threads": None}, file))
    save_state(tmp_path / "s.pt", {}, {})
    assert threads_of(tmp_path / "s.pt") is None
    monkeypatch.setattr(
        torch, "save", lambda state, file: written({k: v for k, v in state.items() if k != "threads"}, file)
    )
    save_state(tmp_path / "s.pt", {}, {})
    assert threads_of(tmp_path / "s.pt") is None
