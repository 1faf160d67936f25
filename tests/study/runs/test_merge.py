"""Records of another machine: what says more is taken with its weights, what says less is left."""

from pathlib import Path

import pytest
from record_factory import RUN, edited, make_record, with_metrics, with_right

from gkp.attacks import Attack
from gkp.nets import models
from gkp.nets.checkpoint import save_model
from gkp.study.runs.merge import merge
from gkp.study.runs.store import Store

FILE = "checkpoints/small/net.safetensors"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    """A store with one record and its weights."""
    store = Store(tmp_path / "elsewhere")
    (store.root / FILE).parent.mkdir(parents=True)
    sha256 = save_model(models.create("resnet8"), store.root / FILE, network="resnet8", dataset="digits")
    last = ("checkpoints", "last")
    store.write(edited(make_record(), ((*last, "file"), FILE), ((*last, "sha256"), sha256)))
    return store


def test_a_record_comes_with_its_weights_and_a_second_time_nothing_does(elsewhere: Store, tmp_path: Path):
    here = Store(tmp_path / "here")
    assert merge(elsewhere.root, here) == [f"took small/{RUN.stem}"]
    assert here.find(RUN) == elsewhere.find(RUN)
    assert (here.root / FILE).read_bytes() == (elsewhere.root / FILE).read_bytes()
    assert FILE.removeprefix("checkpoints/") in here.manifest()
    assert merge(elsewhere.root, here) == [f"left small/{RUN.stem}: what is here says as much"]


def test_only_more_measurements_of_the_same_weights_replace_a_record(elsewhere: Store, tmp_path: Path):
    here = Store(tmp_path / "here")
    merge(elsewhere.root, here)
    record, attack = elsewhere.find(RUN), Attack("fgsm", eps=0.1)
    more = with_right(record, attack, record.metrics()["benign"].right)
    elsewhere.write(more)
    assert merge(elsewhere.root, here) == [f"took small/{RUN.stem}"]
    assert here.find(RUN) == more
    # another one instead: says something else, not more
    elsewhere.write(with_metrics(more, {attack.name: more.metrics()[attack.name]}))
    assert merge(elsewhere.root, here)[0].startswith("left")
    assert "benign" in here.find(RUN).metrics()


def test_nothing_is_written_when_one_file_is_damaged(elsewhere: Store, tmp_path: Path):
    (elsewhere.root / FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="another SHA-256"):
        merge(elsewhere.root, Store(tmp_path / "here"))
    assert not (tmp_path / "here").exists()
