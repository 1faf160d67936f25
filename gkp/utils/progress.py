"""Progress with an estimate of the time left, on standard output unless another stream is given.

On a terminal a bar (rich); elsewhere (a file, a notebook, CI) plain lines that read well in a log: one for
each thing worth saying, and a sign of life when nothing was said for a while. What notebooks run leaves
standard error alone, which nbval and papermill would treat as output that changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

MODES = ("bar", "lines", "off")


def default_mode(stream: TextIO) -> str:
    """GKP_PROGRESS if set, else "bar" on a terminal outside CI, else "lines"."""
    mode = os.environ.get("GKP_PROGRESS")
    if mode:
        return mode
    return "bar" if stream.isatty() and not os.environ.get("CI") else "lines"


def clock_text(seconds: float) -> str:
    """75.2 -> "1:15", 3700 -> "1:01:40"."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Task:
    """One piece of work of `total` units, `done` of which are finished already (a resumed run)."""

    def __init__(
        self,
        title: str,
        total: float,
        *,
        done: float = 0,
        write: Callable[[str], None] | None = None,
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.done = title, total, done
        self._write, self._every, self._clock = write, every_seconds, clock
        self._initial, self._start = done, clock()
        self._last_line = self._start

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more units as done; says so when nothing was written for a while."""
        self.done += amount
        if self._write is not None and self._clock() - self._last_line >= self._every:
            self.say("")

    def say(self, text: str) -> None:
        """Write one line: `text` after the share done and the time left."""
        if self._write is None:
            return
        self._last_line = self._clock()
        self._write(f"{self.title}: {self.status()}{'  ' + text if text else ''}")

    def seconds_left(self) -> float | None:
        """The time left at the pace so far, in seconds; None before anything was done."""
        fresh = self.done - self._initial
        if fresh <= 0:
            return None
        return (self._clock() - self._start) * max(self.total - self.done, 0) / fresh

    def status(self) -> str:
        percent = 100 * self.done / self.total if self.total else 100
        left = self.seconds_left()
        return f"{percent:3.0f} %" + ("" if left is None else f", {clock_text(left)} left")


class BarTask(Task):
    """A `Task` shown as a bar on a terminal; what it says scrolls above the bar."""

    def __init__(self, bar: RichProgress, title: str, total: float, *, done: float = 0) -> None:
        super().__init__(title, total, done=done)
        self._bar = bar
        self._id = bar.add_task(title, total=total, completed=int(done))

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self._bar.update(self._id, completed=self.done)

    def say(self, text: str) -> None:
        if text:
            self._bar.console.print(f"{self.title}: {text}", markup=False, highlight=False)


class Progress:
    """Where and how progress is shown; `None` for a `progress` argument means not at all.

    mode: "bar", "lines", "off", or None to choose by `default_mode`. every_seconds: the longest silence
    in "lines" mode while work advances. prefix: begins every title.
    """

    def __init__(
        self,
        mode: str | None = None,
        *,
        stream: TextIO | None = None,
        every_seconds: float = 30.0,
        prefix: str = "",
    ) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.mode = mode or default_mode(self.stream)
        if self.mode not in MODES:
            raise ValueError(
                f"progress mode {self.mode!r} (or GKP_PROGRESS): choose one of {', '.join(MODES)}"
            )
        self.every_seconds, self.prefix = every_seconds, prefix

    @contextmanager
    def task(self, title: str, total: float, *, done: float = 0) -> Iterator[Task]:
        """Open a piece of work; call `advance` and `say` on what this yields."""
        title = self.prefix + title
        if self.mode == "bar":
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with RichProgress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=self.stream)
            ) as bar:
                yield BarTask(bar, title, total, done=done)
        else:
            write = self._write if self.mode == "lines" else None
            yield Task(title, total, done=done, write=write, every_seconds=self.every_seconds)

    def _write(self, line: str) -> None:
        # Flushed: a log that is read while the run lasts must not lag behind by a buffer.
        print(line, file=self.stream, flush=True)


T = TypeVar("T")
_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Inside, long work that has no argument for it shows progress too, see `each_shown`."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


def each_shown(title: str, items: Mapping[str, T], work: Mapping[str, float]) -> Iterator[tuple[str, T]]:
    """The items one by one, in silence; inside `showing` all but the first are named as they begin.

    work: how much each of them is, in any unit.
    """
    with (_shown.get() or Progress("off")).task(title, sum(work[name] for name in items)) as task:
        for number, (name, item) in enumerate(items.items(), start=1):
            if number > 1:  # what is wrong from the start is told alone
                task.say(f"{number} of {len(items)}: {name}")
            yield name, item
            task.advance(work[name])
