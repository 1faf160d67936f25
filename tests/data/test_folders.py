"""gkp.data.load_folder: which files are images of which class, and what is said of the others."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gkp import data


def test_folder_of_images(tmp_path):
    for name, level, shape in [("cats", 10, (40, 60)), ("dogs", 200, (90, 30))]:
        (tmp_path / name).mkdir()
        Image.fromarray(np.full(shape, level, np.uint8)).save(tmp_path / name / "1.png")
    split = data.load_folder(tmp_path, 24)
    assert split.classes == ("cats", "dogs")
    assert split.images.shape == (2, 3, 24, 24)
    assert split.images.flatten(1).unique().tolist() == [10, 200]
    (tmp_path / "dogs" / "2.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"2\.jpg"):
        data.load_folder(tmp_path, 24)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        data.load_folder(tmp_path / "cats", 24)


@pytest.fixture
def two_classes(tmp_path):
    tmp_path = tmp_path / "classes"
    tmp_path.mkdir()
    for level, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), level).save(tmp_path / name / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    "clutter",
    [
        ".ipynb_checkpoints",
        "__pycache__",
        ".git",
        "@eaDir",
        "__MACOSX",
        ".Trash-1000",
        "lost+found",
        "#recycle",
    ]
    + ["$RECYCLE.BIN", "System Volume Information", ".DS_Store"],
)
def test_hidden_folders_are_no_class_and_hold_no_image(two_classes, clutter):
    before = data.load_folder(two_classes, 8)
    for parent in (two_classes, two_classes / "cat", two_classes / "dog"):
        (parent / clutter / "deeper").mkdir(parents=True)
        for place in (clutter, f"{clutter}/deeper"):
            Image.new("L", (8, 8), 99).save(parent / place / "a.png")
    (two_classes / "cat" / "._a.png").write_bytes(b"\0\5\x16\7")  # the resource fork that macOS leaves
    after = data.load_folder(two_classes, 8)
    assert after.classes == before.classes == ("cat", "dog")
    assert after.fingerprint == before.fingerprint


def test_images_in_folders_of_a_class_count_and_other_files_do_not(two_classes):
    (two_classes / "dog" / "more").mkdir()
    (two_classes / "dog" / "folder.png").mkdir()
    Image.new("L", (8, 8), 9).save(two_classes / "dog" / "more" / "b.PNG")
    (two_classes / "dog" / "notes.txt").write_text("no image")
    assert data.load_folder(two_classes, 8).labels.tolist() == [0, 1, 1]


def test_classes_without_images_are_named_or_kept(two_classes):
    for name in ("bird", "zebra"):
        (two_classes / name).mkdir()
    (two_classes / "zebra" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="without images: bird, zebra; .*allow_empty=True"):
        data.load_folder(two_classes, 8)
    kept = data.load_folder(two_classes, 8, allow_empty=True)
    assert kept.classes == ("bird", "cat", "dog", "zebra")
    assert kept.labels.tolist() == [1, 2]
    assert kept.labels.dtype == torch.int64


@pytest.mark.parametrize("size", [0, -1, 8.5, "8", None])
def test_a_size_is_a_number_of_pixels(two_classes, size):
    with pytest.raises(ValueError, match="whole number from 1"):
        data.load_folder(two_classes, size)


def test_a_folder_may_be_named_in_any_way(two_classes, monkeypatch):
    whole = data.load_folder(two_classes, 8)
    monkeypatch.setenv("HOME", str(two_classes.parent))
    monkeypatch.chdir(two_classes)
    for path in (str(two_classes), f"~/{two_classes.name}", ".", Path(".")):
        found = data.load_folder(path, 8)
        assert (found.fingerprint, found.dataset) == (whole.fingerprint, two_classes.name)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        data.load_folder(two_classes / "nowhere", 8)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        data.load_folder(two_classes / "cat" / "a.png", 8)


def test_images_that_are_passed_over_are_counted(two_classes):
    for name in ("b.GIF", "c.heic", "d.heic"):
        (two_classes / "cat" / name).write_bytes(b"image")
    Image.new("L", (8, 8), 9).save(two_classes / "beside.png")
    (two_classes / ".hidden.gif").write_bytes(b"image")
    (two_classes / "cat" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"passed over.*: 1 \.gif, 2 \.heic, 1 \.png$"):
        assert data.load_folder(two_classes, 8).labels.tolist() == [0, 1]


def test_a_class_may_be_a_link_and_its_images_count(two_classes):
    (two_classes / "dog").rename(two_classes.parent / "elsewhere")
    (two_classes.parent / "elsewhere" / "b.gif").write_bytes(b"image")
    (two_classes / "dog").symlink_to(two_classes.parent / "elsewhere")
    with pytest.warns(UserWarning, match=r"passed over.*: 1 \.gif$"):
        assert data.load_folder(two_classes, 8).labels.tolist() == [0, 1]


def test_nothing_is_said_where_every_image_is_read(two_classes):
    (two_classes / "cat" / "notes.txt").write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load_folder(two_classes, 8)


def test_parts_of_a_data_set_are_no_classes(two_classes):
    root = two_classes / "set"
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        (two_classes / ("cat" if part == "train" else "dog")).rename(root / part / "cat")
    with pytest.raises(ValueError, match=r"parts of a data set \(train, val\), not.*: give .*train"):
        data.load_folder(root, 8)
    assert data.load_folder(root / "train", 8).classes == ("cat",)
    (root / "val" / "cat" / "a.png").rename(
        root / "val" / "a.png"
    )  # whose images lie in it: a class so named
    (root / "train" / "cat" / "a.png").rename(root / "train" / "a.png")
    assert data.load_folder(root, 8).classes == ("train", "val")
