"""gkp.files: atomic writes and hashes."""

import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkp import files


def test_writes_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.bin"
    files.atomic_write_bytes(path, b"one")
    files.atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8_and_keeps_line_ends(tmp_path):
    files.atomic_write_text(tmp_path / "t", "β ≤ 1\r\nnext\n")
    assert (tmp_path / "t").read_bytes() == "β ≤ 1\r\nnext\n".encode()


def test_a_written_file_has_the_usual_permissions(tmp_path):
    files.atomic_write_bytes(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "usual")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_keeps_the_old_file_and_leaves_no_trace(tmp_path, monkeypatch, error):
    path = tmp_path / "record.json"
    path.write_bytes(b"old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        files.atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@given(st.binary(max_size=200))
def test_hashes_agree_with_hashlib(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("hash") / "f"
    path.write_bytes(data)
    assert files.sha256_file(path) == files.sha256_bytes(data) == hashlib.sha256(data).hexdigest()
