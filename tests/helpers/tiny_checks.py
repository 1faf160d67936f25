"""What the suite "tiny" gives where nobody disturbs it, and whether another store has the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_run import few_digits, lasting, suite_of

from gkp import data
from gkp.study.execute.leftovers import TEMPORARY
from gkp.study.execute.suite import run_suite
from gkp.study.execute.threads import computing_with
from gkp.study.runs import suites
from gkp.study.runs.store import Store


def undisturbed(
    root: Path,
    methods: tuple[str, ...],
    threads: int | None = None,
    epochs: int = 2,
    side_by_side: int | None = None,
) -> Store:
    """The suite done by this process.

    threads: those that it computes with, by default as many as each of two processes has.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // 2)
    with pytest.MonkeyPatch.context() as patch, computing_with(threads):
        patch.setattr(data, "load", data.load)  # to be put back
        few_digits()
        patch.setitem(suites.SUITES, "tiny", lambda: suite_of(list(methods), epochs))
        run_suite("tiny", root=root, device="cpu", side_by_side=side_by_side)
    return Store(root)


def assert_same(found: Store, expected: Store) -> None:
    """Bit-equal records and weights, and nothing else left."""
    assert [lasting(record.json) for record in found.all()] == [
        lasting(record.json) for record in expected.all()
    ]
    weights = [
        {path.relative_to(store.root): path.read_bytes() for path in store.root.rglob("*.safetensors")}
        for store in (found, expected)
    ]
    assert weights[0] == weights[1]
    assert found.manifest() == expected.manifest() != {}
    assert not [path for pattern in TEMPORARY for path in found.root.glob(pattern)]
    assert not list(found.root.glob("work/state/*.pt"))
