"""Which epochs of a training are kept, and that they come back as they were."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkp.nets.models import create
from gkp.train import snapshots


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [(1, [1]), (4, [1]), (12, [1, 2, 3]), (100, [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])],
)
def test_early_epochs(epochs: int, kept: list[int]) -> None:
    assert snapshots.early(epochs) == kept


def test_of_the_papers_300_epochs_the_window_is_35_to_70() -> None:
    kept = snapshots.early(300)
    assert (kept[0], kept[-1], len(kept)) == (35, 70, snapshots.MOST)


@given(st.integers(1, 400))
def test_spaced_keeps_both_ends_in_order(n: int) -> None:
    kept = snapshots.spaced(range(1, n + 1))
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1], len(kept)) == (1, n, min(n, snapshots.MOST))


def test_snapshots_come_back_as_they_were(tmp_path: Path) -> None:
    model, states = create("resnet8"), {}
    hooks = snapshots.keep(tmp_path / "new", [1, 3])
    for epoch in (1, 2, 3):
        torch.nn.init.normal_(model.conv1.weight)
        hooks.after_epoch(model, epoch)
        states[epoch] = model.conv1.weight.detach().clone()
    found = snapshots.read(tmp_path / "new", [1, 3])
    assert all(torch.equal(f["conv1.weight"], states[e]) for f, e in zip(found, (1, 3), strict=True))
    assert set(found[0]) == {
        f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)
    }
    with pytest.raises(FileNotFoundError, match="epoch-002"):
        snapshots.read(tmp_path / "new", [1, 2])
