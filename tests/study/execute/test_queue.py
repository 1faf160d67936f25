"""Several processes at one queue: claims, locks, and what a killed one leaves."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_suite import baseline_of, context

from gkp.study.execute import one_run as execute
from gkp.study.execute.queue import claim_first, has_start, is_claimed, tidy
from gkp.study.execute.suite import run_suite
from gkp.study.runs import suites
from gkp.study.runs.run import Run
from gkp.study.runs.suites.grids import Suite


def test_one_run_is_claimed_once_and_free_again_after_a_kill(tiny: Suite, tmp_path: Path) -> None:
    first, second = tiny.runs[:2]
    with claim_first([first, second], tmp_path) as mine:
        assert mine == first
        assert is_claimed(first, tmp_path)
        with claim_first([first, second], tmp_path) as other:
            assert other == second
        with claim_first([first], tmp_path) as none_left:
            assert none_left is None
    assert not is_claimed(first, tmp_path)

    lock = tmp_path / "work" / "locks" / f"{first.hash}.lock"
    hold = f"import fcntl, time; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert is_claimed(first, tmp_path)
        holder.kill()
        holder.wait()
    assert not is_claimed(first, tmp_path)


def test_a_lock_that_is_only_looked_at_ends_nobodys_work(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that asks whether a run is taken holds its lock for that moment."""
    monkeypatch.setattr("gkp.study.execute.queue.POLL_SECONDS", 0.0)
    small, calls = Suite("tiny", "", "", (tiny.runs[0],)), 0
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)

    @contextmanager
    def taken_once(runs: list[Run], root: Path) -> Iterator[Run | None]:
        nonlocal calls
        calls += 1
        with claim_first([] if calls == 1 else runs, root) as claimed:
            yield claimed

    monkeypatch.setattr("gkp.study.execute.queue.claim_first", taken_once)
    assert len(run_suite("tiny", root=tmp_path, device="cpu").done) == 2


def test_what_ends_while_we_look_is_seen(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process ends the baseline after we saw that nothing can be begun."""
    small = Suite("tiny", "", "", (tiny.runs[0],))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: small)
    baseline, seen = baseline_of(tiny), []

    def ended_now(other: Run, root: Path) -> bool:
        if not seen:
            execute.execute(baseline, "tiny", context(root))
        seen.append(other)
        return False

    monkeypatch.setattr(
        "gkp.study.execute.queue.has_start", lambda r, store: r != baseline and has_start(r, store)
    )
    monkeypatch.setattr("gkp.study.execute.queue.is_claimed", ended_now)
    summary = run_suite("tiny", root=tmp_path, device="cpu")
    assert seen
    assert len(summary.done) == 2


def test_what_a_killed_process_left_is_removed(tiny: Suite, tmp_path: Path) -> None:
    one, baseline = tiny.runs[0], baseline_of(tiny)
    queue, where = [("tiny", baseline), ("tiny", one)], context(tmp_path)
    execute.execute(baseline, "tiny", where)
    left = [
        where.state_path(baseline),  # killed between the record and this
        where.state_folder / f".{baseline.hash}.pt.ab12.tmp",
        where.store.results / "tiny" / f".{one.stem}.json.ab12.tmp",
        where.store.checkpoints / "tiny" / f".{one.stem}-best-test.safetensors.ab12.tmp",
    ]
    kept = [
        where.state_path(one),  # to be continued
        where.state_folder / ".0123456789abcdef.pt.ab12.tmp",  # of another suite
        where.snapshots_folder(baseline) / "epoch-001.safetensors",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    tidy(queue, where)
    assert [path.name for path in (*left, *kept) if path.exists()] == [path.name for path in kept]


def test_what_a_living_process_writes_is_not_removed(tiny: Suite, tmp_path: Path) -> None:
    where, first = context(tmp_path), baseline_of(tiny)
    path = where.state_folder / f".{first.hash}.pt.ab12.tmp"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"being written")
    with claim_first([first], tmp_path):
        tidy([("tiny", first)], where)
        assert path.exists()
    tidy([("tiny", first)], where)
    assert not path.exists()
