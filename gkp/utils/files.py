"""Files that are never half written, hashes of what they hold, and downloads checked against them.

Nothing but plain files is read or replaced: reading a named pipe never ends, and replacing a device takes it
from everybody on the machine. A symbolic link is followed: what it points to is replaced, the link stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from gkp.utils.progress import Progress


class DownloadError(FileNotFoundError):
    """A file is not on this machine and could not be downloaded."""


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` such that a reader sees the old content or the new, never a part.

    The data go to a temporary file in the same folder, reach the disk, and are renamed; the permissions
    of a file that was there stay. When anything fails (full disk, read-only folder, Ctrl-C), the
    temporary file is removed, the old content stays, and the error reaches the caller; an OSError names
    `path`. Missing parent folders are made. FileExistsError for a folder, a device, a pipe or a socket;
    see `writable_place` for links.
    """
    target = writable_place(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name is shortened, since a temporary one is longer than what may be as long as names can be.
        temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb") as file:
                if target.exists():  # before anybody could read what is private
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        # Writing names no file, and the others name the temporary one.
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def writable_place(path: str | Path) -> Path:
    """Where a file that is written to `path` goes: `path`, or what it links to.

    FileExistsError when something is there that is no plain file, FileNotFoundError for a link to
    nothing (a disk that is not mounted, mostly), OSError for links in a circle.
    """
    path = Path(path)
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if target != path:
            reason = f"a link to {target}, which is not there: remove the link or mend it"
            raise FileNotFoundError(errno.ENOENT, reason, str(path)) from None
        return path
    if not stat.S_ISREG(mode):
        reason = f"{kind_of(mode)}, which is never replaced: give another name"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    return target


def readable_file(path: str | Path) -> Path:
    """`path` when a plain file is there (or a link to one); FileNotFoundError, or ValueError if not."""
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}: check the name") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {kind_of(mode)}: give a file")
    return path


def kind_of(mode: int) -> str:
    """What a st_mode that is not a plain file's belongs to, in words."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no plain file")


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of the UTF-8 encoding; line ends are written as they stand."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the file's content in hex; reads it in pieces. Errors as `readable_file`."""
    with open(readable_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path, sha256: str) -> None:
    """Raise ValueError when the file's SHA-256 does not begin with `sha256` (all 64 digits, or fewer)."""
    digest = sha256_file(path)
    if not digest.startswith(sha256.lower()):
        raise ValueError(
            f"{path} is damaged or not the published file: SHA-256 should be {sha256}"
            f"{'...' if len(sha256) < 64 else ''} but is {digest}; delete it and fetch it again"
        )


def cache_folder() -> Path:
    """Where downloads and decoded data are kept: GKP_CACHE if set, else ~/.cache/gkp."""
    given = os.environ.get("GKP_CACHE")
    try:
        folder = Path(given or "~/.cache/gkp").expanduser()
    except RuntimeError as error:  # no HOME, or ~ and the name of nobody
        place = f"GKP_CACHE={given}" if given else "the cache ~/.cache/gkp"
        raise ValueError(f"{place} has no place ({error}): set GKP_CACHE to a folder") from error
    if not given and os.environ.get("HOME") == "":
        raise ValueError("the cache ~/.cache/gkp has no place (HOME is empty): set GKP_CACHE to a folder")
    return folder


def download(
    url: str, folder: str | Path, sha256: str, *, hint: str, progress: Progress | None = None
) -> Path:
    """Download `url` into `folder` under its own name unless a file with this hash is there already.

    sha256: the expected hash, all 64 hex digits or a prefix. hint: what a user without a network can do;
    it ends the message of the DownloadError. A file with another hash is deleted and raises ValueError.
    """
    import pooch
    import requests

    def stream(url: str, output: str, _: Any) -> None:
        with requests.get(url, stream=True, timeout=30) as response, open(output, "wb") as file:
            response.raise_for_status()
            megabytes = int(response.headers.get("content-length", 0)) / 1e6
            with (progress or Progress()).task(f"download {url.rsplit('/', 1)[-1]} (MB)", megabytes) as task:
                for chunk in response.iter_content(1 << 18):
                    try:
                        file.write(chunk)
                    except OSError as error:  # a full disk, which names no file
                        raise OSError(error.errno, error.strerror, str(target)) from error
                    task.advance(len(chunk) / 1e6)

    pooch.get_logger().setLevel("ERROR")  # its messages go to standard error
    name = url.rsplit("/", 1)[-1]
    known = f"sha256:{sha256}" if len(sha256) == 64 else None
    target = Path(folder) / name
    try:
        path = Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=stream))
    except requests.RequestException as error:
        response = error.response
        reason = type(error).__name__ if response is None else f"HTTP {response.status_code}"
        raise DownloadError(f"cannot download {url} to {target} ({reason}): {hint}") from error
    except ValueError as error:
        raise ValueError(f"the download of {url} is damaged: {error}") from error
    try:
        verify(path, sha256)
    except ValueError:
        path.unlink()
        raise
    return path
