"""The result store: nothing half written, nothing wrong taken for right."""

import copy
import errno
import json
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import RUN, edited, make_record, with_right

from gkp.attacks import Attack
from gkp.study.runs import protocols
from gkp.study.runs.provenance import device_name, peak_memory_mb, provenance, weights_sha256
from gkp.study.runs.record import parse
from gkp.study.runs.run import VERSION, Run
from gkp.study.runs.store import DamagedRecord, Store, asked_for


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_written_is_read_back_and_found_by_its_configuration(store: Store) -> None:
    record = make_record()
    path = store.write(record)
    assert path == store.root / "results" / "small" / f"{RUN.stem}.json"
    assert store.read(path) == store.find(RUN) == record
    assert store.find(Run("digits", "resnet8", "l2", weights="resnet8", rate=0.4375)) is None


def test_one_record_serves_every_suite(store: Store) -> None:
    store.write(make_record(suite="another"))
    assert store.find(RUN).suite == "another"


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_record_cut_anywhere_is_named_and_refused(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("cut"))
    path = store.write(make_record())
    whole = path.read_text().rstrip()
    path.write_text(whole[: int(share * len(whole))])
    with pytest.raises(DamagedRecord, match=RUN.stem):
        store.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": VERSION + 1}, "version"),
        ({"stem": "l1-s1-00000000"}, "holds l1-s1"),
        ({"hash": "0" * 16}, "another configuration"),
        ({"suite": "other"}, "of the suite 'other', in whose folder"),
        ({"suite": "../other"}, "of the suite '../other', in whose folder"),
    ],
    ids=["other version", "renamed", "foreign hash", "copied to another suite", "pointing elsewhere"],
)
def test_a_record_that_is_not_what_its_name_says(store: Store, change: dict, message: str) -> None:
    record = make_record()
    path = store.path("small", RUN.stem)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record.json | change))
    with pytest.raises(DamagedRecord, match=message):
        store.find(RUN)


BENIGN = ("checkpoints", "last", "metrics", "benign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (((*BENIGN, "correct"), 91), "91 images are said to be right, the bits have 90"),
        (((*BENIGN, "accuracy"), 0.91), "its accuracy is said to be 0.91, the bits give 0.9"),
        (((*BENIGN, "bits"), "/w=="), "do not hold the bits of 100 images"),
        (((*BENIGN, "attack", "kind"), "fgsm"), "under benign"),
    ],
)
def test_a_record_that_contradicts_itself_is_named(store: Store, change: tuple, message: str) -> None:
    path = store.path("small", RUN.stem)
    path.parent.mkdir(parents=True)
    path.write_text(edited(make_record(), change).text)
    with pytest.raises(DamagedRecord, match=rf"{RUN.stem}\.json: .*{message}"):
        store.all()


def test_a_default_that_changed_under_an_old_hash_is_noticed(store: Store) -> None:
    store.write(edited(make_record(), (("config", "groups"), 4)))
    with pytest.raises(DamagedRecord, match="VERSION"):
        store.find(RUN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_never_enters_the_store(store: Store, value: float) -> None:
    record = edited(make_record(), (("provenance", "seconds"), value))
    with pytest.raises(ValueError, match="JSON"):
        store.write(record)
    assert not list(store.root.rglob("*.json"))


def test_a_nan_written_by_hand_is_refused(store: Store) -> None:
    path = store.write(make_record())
    path.write_text(path.read_text().replace('"accuracy": 0.9', '"accuracy": NaN'))
    with pytest.raises(DamagedRecord, match="NaN"):
        store.read(path)


def test_a_full_disk_names_the_path_and_keeps_the_old_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write(make_record())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"{RUN.stem}.json.*No space left"):
        store.write(make_record(correct=1))
    assert store.read(path) == make_record()
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_names_the_path(store: Store) -> None:
    (store.root / "results").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=RUN.stem):
        store.write(make_record())


def test_manifest_lists_saved_weights_of_committed_suites_only(store: Store) -> None:
    for suite in ("small", "digits"):
        file = f"checkpoints/{suite}/x.safetensors"
        store.write(edited(make_record(suite=suite), (("checkpoints", "last", "file"), file)))
    store.update_manifest()
    assert list(store.manifest()) == ["small/x.safetensors"]
    assert store.manifest()["small/x.safetensors"]["sha256"] == "ab"


def test_provenance_says_what_computed_the_numbers_and_not_where(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("")
    facts = provenance("cpu", tmp_path)
    assert facts["commit"] is None
    assert facts["dirty"] is None
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__
    assert facts["lock_sha256"].startswith("e3b0c442")
    assert facts["device"] == device_name("cpu")
    assert os.uname().nodename not in json.dumps(facts)
    assert peak_memory_mb("cpu")["process"] > 10


def test_provenance_calls_dirty_what_changed_in_the_code_alone(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *name, *command], check=True, capture_output=True)

    for file in ("gkp/code.py", "results/record.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert provenance("cpu", tmp_path)["dirty"] is False
    (tmp_path / "results/record.json").write_text("2")
    assert provenance("cpu", tmp_path)["dirty"] is False
    (tmp_path / "gkp/code.py").write_text("2")
    assert provenance("cpu", tmp_path)["dirty"] is True


def test_weights_hash_depends_on_names_and_values_alone() -> None:
    layer = torch.nn.Linear(3, 2)
    same = copy.deepcopy(layer)
    assert weights_sha256(layer) == weights_sha256(same)
    with torch.no_grad():
        same.weight[0, 0] += 1
    assert weights_sha256(layer) != weights_sha256(same)


def test_a_field_that_came_later_does_not_disown_old_records(store: Store) -> None:
    record = make_record().json
    del record["config"]["rules"]
    store.write(parse(record))
    assert store.find(RUN).json == record


def test_a_record_that_was_replaced_is_read_anew(store: Store) -> None:
    path = store.write(make_record())
    assert store.read(path) is Store(store.root).read(path)  # parsed once
    store.write(make_record(correct=80))
    assert store.read(path).metrics()["benign"].correct == 80


def test_a_file_in_its_place_is_read_anew_even_with_its_size_and_time(store: Store) -> None:
    path = store.write(make_record(correct=90))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert store.read(path).metrics()["benign"].correct == 90
    other = store.root / "other.json"
    other.write_text(make_record(correct=80).text.ljust(path.stat().st_size))
    os.utime(other, ns=times)
    assert other.stat().st_size == path.stat().st_size
    other.replace(path)
    assert store.read(path).metrics()["benign"].correct == 80


def test_a_suite_sees_what_is_said_of_its_own_attacks_alone(store: Store) -> None:
    asked, other = protocols.paper()[1].attack, Attack("fgsm", eps=0.25)
    right = torch.arange(100) < 50
    record = with_right(with_right(make_record(), asked, right), other, right)
    kept = record.kept["last"]
    said = (f"{asked.name} leaves 3 of 100 images more right", f"{other.name} cannot reach eps")
    record = replace(record, kept={"last": replace(kept, self_check=said)})
    seen = asked_for(record, replace(RUN, evaluation=protocols.paper())).kept["last"]
    assert seen.metrics.keys() == {"benign", asked.name}
    assert seen.self_check == said[:1]


def test_a_manifest_lacks_nothing_that_another_process_just_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(seed: int) -> None:
        record = make_record(replace(RUN, seed=seed))
        file = f"checkpoints/small/{record.stem}.safetensors"
        Store(tmp_path).write(edited(record, (("checkpoints", "last", "file"), file)))

    def another() -> None:
        write(1)
        Store(tmp_path).update_manifest()

    write(0)
    seen, others = Store.all, list[threading.Thread]()

    def all_while_another_writes(self: Store) -> list:
        records = seen(self)
        if not others:
            others.append(threading.Thread(target=another))
            others[0].start()
            others[0].join(0.5)
        return records

    monkeypatch.setattr(Store, "all", all_while_another_writes)
    Store(tmp_path).update_manifest()
    others[0].join()
    assert len(Store(tmp_path).manifest()) == 2
