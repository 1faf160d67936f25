"""gkp.utils.files: atomic writes and hashes."""

import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkp.utils import files


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


def test_a_file_that_is_replaced_keeps_its_permissions_from_the_first_byte(tmp_path, monkeypatch):
    path, fsync, modes = tmp_path / "private", os.fsync, []
    path.write_bytes(b"old")
    path.chmod(0o600)
    monkeypatch.setattr(os, "fsync", lambda file: (modes.append(os.fstat(file).st_mode), fsync(file)))
    files.atomic_write_bytes(path, b"new")
    assert [stat.S_IMODE(mode) for mode in (*modes, path.stat().st_mode)] == [0o600, 0o600]


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


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    path = tmp_path / ("é" * 127)
    files.atomic_write_bytes(path, b"1")
    assert path.read_bytes() == b"1"


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "there", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to("disk/there")
    files.atomic_write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _dangling(path):
    path.symlink_to("unmounted/file")


def _circle(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [os.mkdir, _pipe, _socket, _dangling, _circle])
def test_what_is_no_plain_file_is_never_replaced_nor_read(tmp_path, make):
    path = tmp_path / "x"
    make(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="x'"):
        files.atomic_write_bytes(path, b"1")
    with pytest.raises((OSError, ValueError), match="x"):
        files.sha256_file(path)
    assert os.lstat(path) == before
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_is_never_replaced_nor_read(tmp_path, monkeypatch, kind):
    path = tmp_path / "disk"
    path.write_bytes(b"a device, as far as the system says")
    real = os.stat

    def as_device(where, *arguments, **options):
        found = real(where, *arguments, **options)
        if os.fspath(where) != str(path):
            return found
        return os.stat_result((kind | 0o660, *found[1:]))

    monkeypatch.setattr(os, "stat", as_device)
    with pytest.raises(FileExistsError, match="a device, which is never replaced"):
        files.atomic_write_bytes(path, b"1")
    with pytest.raises(ValueError, match="disk is a device"):
        files.sha256_file(path)
    monkeypatch.undo()
    assert path.read_bytes().startswith(b"a device")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device", "/tmp/other")

    (tmp_path / "x").write_bytes(b"0")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        files.atomic_write_bytes(tmp_path / "x", b"1")
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize(("variable", "value"), [("HOME", ""), ("GKP_CACHE", "~no-such-user/cache")])
def test_a_cache_without_a_place_is_named(monkeypatch, variable, value):
    monkeypatch.delenv("GKP_CACHE", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match="set GKP_CACHE to a folder"):
        files.cache_folder()
