"""What is committed: every claim comes out as written down, every checkpoint answers as recorded."""

from pathlib import Path

import pytest
import torch

from gkp.nets.checkpoint import load_file
from gkp.study.report import build
from gkp.study.runs.store import Store
from gkp.utils.files import sha256_file

ROOT = Path(__file__).parents[2]
STORE = Store(ROOT)
IMAGES = 100


@pytest.mark.evidence
def test_every_claim_comes_out_as_written_down() -> None:
    judged = build.verdicts(ROOT)
    assert len(judged) > 100
    assert [verdict.line for verdict in judged if not verdict.as_expected] == []


@pytest.mark.evidence
def test_every_checkpoint_is_the_recorded_one_and_answers_alike(cifar10_test) -> None:
    """Without attack; other processors round differently on a handful of images, hence one of 100."""
    x, y = cifar10_test.pixels(slice(IMAGES)), cifar10_test.labels[:IMAGES]
    seen = set()
    for record in STORE.all():
        for kept in record.kept.values():
            if kept.file is None or kept.sha256 in seen or record.run.dataset != "cifar10":
                continue
            seen.add(kept.sha256)
            path = ROOT / kept.file
            assert sha256_file(path) == kept.sha256, path
            model = load_file(path).to(memory_format=torch.channels_last)
            with torch.inference_mode():
                right = model(x).argmax(1) == y
            assert (right != kept.metrics["benign"].right[:IMAGES]).sum() <= 1, path
    manifest = {about["sha256"] for about in STORE.manifest().values()}
    assert seen == manifest
