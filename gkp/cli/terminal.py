"""Between a command and the shell: exit codes, errors in one sentence, any encoding, Ctrl-C, warnings.

Exit codes: 0 done; 1 a check or a run failed, or something nobody foresaw; 2 wrong input; 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from gkp.cli.arguments import Misuse

USER_ERRORS = (ValueError, OSError)
LENIENT = ("replace", "backslashreplace", "xmlcharrefreplace", "namereplace", "ignore")
ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EACCES: "choose a place that you may use, or change its permissions",
    errno.EPERM: "choose a place that you may use, or change its permissions",
    errno.EROFS: "choose a place that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of it is a file: check the name",
    errno.EISDIR: "give a file",
    errno.ELOOP: "mend the links, which go in a circle",
}


def run(command: Callable[[], Any], *, debug: bool) -> int:
    """Run `command`, say on standard error what went wrong, and return the exit code."""
    if sys.stdout is None:
        say("error: standard output is closed: give it a place, such as > /dev/null")
        return 2
    with lenient_streams(), short_warnings():
        try:
            code = command() or 0
            if (lost := _lost_output()) is not None:
                code = _tell(lost)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Misuse as error:
            code = _misuse(error)
        except USER_ERRORS as error:
            if debug:
                raise
            unnamed = isinstance(error, OSError) and bool(error.errno) and error.filename is None
            code = _tell(_lost_output(probe=unnamed) or error)
        except Exception as error:
            if debug:
                raise
            say(f"error: {type(error).__name__}: {sentence(error)} (`python -m gkp --debug ...` shows where)")
            code = 1
        if code == 130:  # how typer hands on Ctrl-C
            say("interrupted: no file is half written; the same command starts again")
    return int(code)


def say(text: str) -> None:
    """One line on standard error; none where that is closed."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """What an error says, on one line; that of the operating system with its path and what to do."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        advice = "" if ": " in error.strerror else f": {ADVICE.get(error.errno or 0, 'choose another place')}"
        return _one_line(f"{where}{error.strerror}{advice}")
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text else text


def _misuse(error: Any) -> int:
    """Wrong arguments: the sentence and where the right ones are listed; help where nothing was given."""
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.format_message())
        return 2
    path = error.ctx.command_path if error.ctx else "python -m gkp COMMAND"
    say(f"error: {_one_line(error.format_message()).rstrip('.')} (see `{path} --help`)")
    return 2


def _tell(error: Exception) -> int:
    """Say what is wrong with the input or the place, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return 1  # `| head` has read enough, which is nothing to complain about
    say(f"error: {sentence(error)}")
    return 2


def _lost_output(*, probe: bool = False) -> OSError | None:
    """Write what is left to standard output; what is wrong with it if that fails.

    probe: end the line too, since an output without a buffer has lost what it was given already.
    """
    try:
        if probe:
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its end, and fail with a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "standard output")
    return None


@contextmanager
def lenient_streams() -> Iterator[None]:
    """What the encoding of standard output cannot show is replaced, and does not end a run."""
    changed: list[tuple[io.TextIOWrapper, str | None]] = []
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in LENIENT:
            changed.append((stream, stream.errors))
            stream.reconfigure(errors=errors)
    try:
        yield
    finally:
        for stream, before in changed:
            # Python writes what is left when it ends, so the process' own streams stay as they are now.
            if stream not in (sys.__stdout__, sys.__stderr__):
                stream.reconfigure(errors=before)


@contextmanager
def short_warnings() -> Iterator[None]:
    """The library's own warnings are one line each: "left unpruned: ..."; others look as ever."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.partition(".")[0] == "gkp":
            say(_one_line(str(message)))
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
