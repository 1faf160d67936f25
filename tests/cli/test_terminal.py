"""Between a command and the shell: encodings, closed outputs, Ctrl-C, warnings, full disks."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gkp import cli
from gkp.cli import terminal

ROOT = Path(__file__).parents[2]
# A command that prints a line that not every terminal can show, and ends with an exit code of its own.
SCRIPT = """
import sys
from gkp.cli import terminal

def command():
    print(LENGTH * "x", "98 \\u00b1 4", "\\udcff")
    return CODE

sys.exit(terminal.run(command, debug=False))
"""


def shell(script: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'"{sys.executable}" -c "$CODE" {redirect}'
    given = os.environ | {"CODE": script, "PYTHONPATH": str(ROOT), "GKP_PLUGINS": ""} | environment
    return subprocess.run(["bash", "-c", command], env=given, capture_output=True, timeout=120)


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "1", "NO_COLOR": "1"},
    ],
    ids=lambda environment: next(iter(environment.values())),
)
def test_any_terminal_shows_the_line_and_the_exit_code_stays(code: int, environment: dict[str, str]) -> None:
    done = shell(SCRIPT.replace("CODE", str(code)).replace("LENGTH", "1"), **environment)
    assert (done.returncode, done.stderr) == (code, b"")
    assert done.stdout.startswith(b"x 98 ")
    assert done.stdout.endswith(b"4 ?\n")


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        (">/dev/full", 2, "error: standard output: No space left on device: free some space"),
        (">&-", 2, "error: standard output is closed"),
        ("2>&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_an_output_that_takes_nothing(redirect: str, code: int, said: str) -> None:
    length = "10**6" if "|" in redirect else "1"  # more than a pipe holds
    done = shell(SCRIPT.replace("CODE", "0").replace("LENGTH", length), redirect)
    assert done.returncode == code, done.stderr
    errors = done.stderr.decode()
    assert errors.startswith(said)
    assert len(errors.splitlines()) == bool(said)


def test_help_and_mistyped_options_import_no_pytorch() -> None:
    check = "import sys; sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["prune", "--help"], ["run", "--suite", "digits", "--jobs", "0"]):
        script = f"import sys; sys.argv = ['gkp', *{arguments}]\nfrom gkp import cli\n"
        done = shell(f"{script}try:\n    cli.main()\nexcept SystemExit:\n    {check}")
        assert done.returncode == 0, done.stderr


COMMANDS = {
    "prune": ("gkp.nets.zoo.named_model", ["--model", "resnet20", "--output", "x.safetensors"]),
    "evaluate": ("gkp.nets.zoo.named_model", ["--model", "resnet20", "--device", "cpu"]),
    "run": ("gkp.study.execute.suite.run_suite", ["--suite", "digits", "--device", "cpu"]),
    "merge": ("gkp.study.runs.merge.merge", ["folder"]),
    "report": ("gkp.study.report.build.write", []),
    "list": ("gkp.study.report.pages.blocks.suites_table", []),
    "notebooks": ("gkp.study.report.notebooks.find", []),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/big/x"),
            2,
            "error: /big/x: No space left on device",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"),
            2,
            "error: /x: Permission denied: choose",
        ),
        (ValueError("one\ntwo"), 2, "error: one two"),
        (KeyError("label"), 1, "error: KeyError: 'label'"),
        (MemoryError(), 1, "error: MemoryError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_command_ends_in_one_line(
    command: str,
    error: BaseException,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, arguments = COMMANDS[command]

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gkp", command, *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == code
    errors = capsys.readouterr().err
    assert errors.startswith(said)
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_arguments_there_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gkp"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "Usage: python -m gkp" in capsys.readouterr().err


def test_only_the_librarys_own_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from gkp import SkippedLayers

    def command() -> None:
        warnings.warn("left unpruned: conv2: depthwise", SkippedLayers, stacklevel=1)
        warnings.warn("something of PyTorch", UserWarning, stacklevel=1)

    before = warnings.showwarning
    with pytest.warns(UserWarning, match="PyTorch"):
        assert terminal.run(command, debug=False) == 0
    assert warnings.showwarning is before
    assert capsys.readouterr().err == "left unpruned: conv2: depthwise\n"
