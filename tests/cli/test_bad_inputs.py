"""Whatever the command line is given: a sentence and exit code 2, no traceback, nothing written, no hang.

`bad_cases` lists what is given and what the sentence has to name, `bad_inputs` makes the files among which
the cases run; none of them may change.
"""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from bad_cases import CASES
from bad_inputs import make_place

from gkp import cli

REMEDY = re.compile(
    r"\b(give|choose|write|check|set|leave|make|mend|use|see|did you mean|delete|restore|fetch|copy|rename|"
    r"free|remove|go to|unset|load|update|clone|run|lower|unpack|ask for|needs|it has|at least|lies in|"
    r"from 0|up to)\b"
)
SECONDS = 60  # after which a case counts as hanging


def label(case: tuple) -> str:
    text = " ".join(case[0])
    return (text if len(text) < 90 else f"{text[:90]}...").replace("\n", "\\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_place(folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """What stands below the folder, and what would change when something is written to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if "__pycache__" not in path.parts:
            found[str(path)] = (about.st_mode, 0 if path.is_dir() else about.st_mtime_ns)
    return found


def gkp(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process, for `SECONDS` at most; returns its exit code."""

    def late(*_: object) -> None:
        pytest.fail(f"still running after {SECONDS} s")

    monkeypatch.setattr(sys, "argv", ["gkp", *arguments])
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as ending:
            cli.main()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ending.value.code or 0


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`place` as the current folder, and none of the reader's own settings."""
    monkeypatch.chdir(place)
    for name in [name for name in os.environ if name.startswith("GKP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GKP_PLUGINS", "")
    return place


def test_there_are_as_many_cases_as_were_promised() -> None:
    assert len({(case[0], str(case[2:])) for case in CASES}) == len(CASES) >= 206


@pytest.mark.parametrize("case", CASES, ids=label)
def test_it_is_refused_in_one_sentence_and_nothing_is_written(
    case: tuple,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, said, *rest = case
    for name, value in (rest[0] if rest else {}).items():
        monkeypatch.setenv(name, value)
    before = contents(here)
    code = gkp(monkeypatch, *arguments)
    output, errors = capsys.readouterr()
    assert code == 2, (code, output, errors)
    assert output == ""
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1, errors
    assert len(errors) < 1200
    assert "Traceback" not in errors
    assert "--debug" not in errors, "nobody foresaw it"
    for part in said:
        assert part in errors
    assert REMEDY.search(errors.partition("error: ")[2]), errors
    assert contents(here) == before
