"""reproduce.sh and .ci/run in a folder of their own, with a fake uv and Python that note their calls."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("reproduce.sh", ".ci/run")
TOOLS = ("awk", "bash", "cat", "cmp", "cp", "dirname", "mkdir", "rm", "sleep")

# FAIL: a part of the command line that fails, with the exit code CODE.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && { echo "$0"; exit "${UNSUPPORTED:-0}"; }
echo "python $*" >>"$CALLS"
[[ -z ${FAIL:-} || "$*" != *"$FAIL"* ]] || exit "$CODE"
[[ -z ${SLOW:-} || "$*" != *"$SLOW"* ]] || exec sleep 20
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip install uv") cp "$FAKE_UV" "$(dirname "$0")/uv" ;;
    *"--target "*) mkdir -p .cache/uv/bin && cp "$FAKE_UV" .cache/uv/bin/uv ;;
    *" gkp list") printf '| %s |\n' "suite | time" "--- | ---" "method | 1 h" "cifar10-resnet20-short | 2 h";;
    *" gkp report"*) echo "path $PYTHONPATH" >>"$CALLS" ;;
esac
"""
UV = """#!/usr/bin/env bash
[[ $1 == --version ]] && exit
echo "uv $1 $2 index=${UV_DEFAULT_INDEX:-}" >>"$CALLS"
[[ -z ${FAIL:-} || "uv $*" != *"$FAIL"* ]] || { echo "dns error" >&2; exit "$CODE"; }
if [[ $1 == venv ]]; then mkdir -p "${*: -1}/bin" && cp "$FAKE_PYTHON" "${*: -1}/bin/python"; fi
"""


@dataclass
class Sandbox:
    """A copy of the scripts in `root`, and a PATH that holds nothing but a few tools and the fakes."""

    root: Path
    bin: Path

    @property
    def environment(self) -> dict[str, str]:
        fakes = {"FAKE_UV": str(self.bin / "uv.copy"), "FAKE_PYTHON": str(self.bin / "python3")}
        return {"PATH": str(self.bin), "CALLS": str(self.root / "calls"), "CODE": "9", **fakes}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.root / "calls").write_text("")
        command = [self.bin / "bash", self.root / "reproduce.sh", *arguments]
        return subprocess.run(
            command, env=self.environment | environment, cwd="/", capture_output=True, text=True, timeout=30
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    def jobs(self) -> list[str]:
        """What Python ran, without `python -m gkp`."""
        return [
            call.removeprefix("python -m ").removeprefix("gkp ")
            for call in self.calls
            if call.startswith("python ")
        ]

    def setups(self) -> list[str]:
        """The first three words of each call of uv."""
        return [
            " ".join(call.split()[:3]).partition(" index")[0] for call in self.calls if call.startswith("uv ")
        ]

    # What puts the locked packages into an environment: all of them, then robustbench once more.
    INSTALL = ("uv pip sync", "uv pip install")


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    box = Sandbox(tmp_path / "a clone", tmp_path / "bin")
    box.root.mkdir()
    box.bin.mkdir()
    shutil.copy(ROOT / "reproduce.sh", box.root)
    (box.root / "requirements.lock").write_text("gkp==1\n")
    for tool in (*TOOLS, "env"):
        (box.bin / tool).symlink_to(shutil.which(tool))
    executable(box.bin / "python3", PYTHON)
    executable(box.bin / "uv", UV)
    executable(box.bin / "uv.copy", UV)
    return box


def only_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The single line on stderr of a script that could not set up."""
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("reproduce.sh: ")
    assert line.endswith(".")
    return line


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(["shellcheck", ROOT / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["everything"], "unknown argument 'everything'"),
        (["--fast"], "unknown argument '--fast'"),
        (["--suite"], "--suite needs a name"),
        (["train", "--suite", ""], "--suite needs a name"),
        (["smoke", "replay"], "one job at a time"),
        (["smoke", "test"], "one job at a time"),
        (["smoke", "--suite", "method"], "smoke runs the digits; train runs 'method'"),
    ],
)
def test_wrong_arguments_get_usage_and_nothing_runs(sandbox, arguments, complaint):
    result = sandbox.run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"reproduce.sh: {complaint}\n\nusage: ")
    assert sandbox.calls == []


def test_help_is_not_an_error(sandbox):
    result = sandbox.run("--help")
    assert (result.returncode, result.stderr, sandbox.calls) == (0, "", [])
    for word in ("smoke", "replay", "evaluate", "train", "test", "GKP_DATA"):
        assert word in result.stdout


SMOKE = ["run --suite digits", "notebooks --suite digits --compute", "report --suite digits"]


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ([], [*SMOKE, "notebooks", "report"]),
        (["smoke"], SMOKE),
        (["replay"], ["notebooks", "report"]),
        (["replay", "--suite", "method"], ["notebooks --suite method", "report --suite method"]),
        (["evaluate"], ["evaluate --suite cifar10-resnet20-short --download"]),
        (["--suite", "method", "evaluate"], ["evaluate --suite method --download"]),
        (
            ["train"],
            [
                "list",
                "run --suite cifar10-resnet20-short --download",
                "report --suite cifar10-resnet20-short",
            ],
        ),
        (["train", "--suite", "method"], ["list", "run --suite method --download", "report --suite method"]),
        (["test"], ["pytest", "pytest --nbval --nbval-current-env notebooks"]),
        (["test", "-k", "a b"], ["pytest -k a b", "pytest --nbval --nbval-current-env notebooks"]),
    ],
)
def test_each_job_runs_its_commands(sandbox, arguments, jobs):
    result = sandbox.run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert sandbox.jobs() == jobs


def test_the_package_is_found_in_the_clone(sandbox):
    sandbox.run("replay", PYTHONPATH="/elsewhere")
    assert f"path {sandbox.root}" in sandbox.calls


def test_training_says_first_how_long_it_takes(sandbox):
    result = sandbox.run("train", "--suite", "method")
    assert result.stdout.endswith("| suite | time |\n| --- | --- |\n| method | 1 h |\n")


@pytest.mark.parametrize(
    ("arguments", "fail", "last"),
    [
        ([], "run --suite digits", "run --suite digits"),
        ([], "report --suite digits", "report"),
        (["smoke"], "--compute", "report --suite digits"),
        (["replay"], "gkp notebooks", "report"),
        (["evaluate"], "gkp evaluate", "evaluate --suite cifar10-resnet20-short --download"),
        (["train"], "gkp list", "list"),
        (["train"], "gkp run", "run --suite cifar10-resnet20-short --download"),
        (["train"], "gkp report", "report --suite cifar10-resnet20-short"),
        (["test", "-x"], "pytest -x", "pytest --nbval --nbval-current-env notebooks"),
        (["test"], "--nbval", "pytest --nbval --nbval-current-env notebooks"),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(sandbox, arguments, fail, last):
    """What does not depend on the failed command still runs, the verdict above all."""
    assert sandbox.run(*arguments, FAIL=fail, CODE="7").returncode == 7
    assert sandbox.jobs()[-1] == last


def test_a_second_run_installs_nothing(sandbox):
    sandbox.run("replay")
    assert sandbox.setups() == ["uv venv --no-project", *sandbox.INSTALL]
    result = sandbox.run("replay", FAIL="uv ")
    assert (result.returncode, result.stdout, sandbox.setups()) == (0, "", [])


def test_a_changed_lock_is_installed_into_the_same_environment(sandbox):
    sandbox.run("replay")
    (sandbox.root / "requirements.lock").write_text("gkp==2\n")
    sandbox.run("replay")
    assert sandbox.setups() == [*sandbox.INSTALL]
    sandbox.run("replay")
    assert sandbox.setups() == []


def test_a_failed_installation_is_tried_again(sandbox):
    sandbox.run("replay")
    (sandbox.root / "requirements.lock").write_text("gkp==2\n")
    only_sentence(sandbox.run("replay", FAIL="uv pip sync"))
    (sandbox.root / "requirements.lock").write_text("gkp==1\n")
    sandbox.run("replay")
    assert sandbox.setups() == [*sandbox.INSTALL]


def test_an_environment_whose_python_is_gone_is_made_again(sandbox):
    sandbox.run("replay")
    (sandbox.root / ".venv/bin/python").unlink()
    assert sandbox.run("replay").returncode == 0
    assert sandbox.setups() == ["uv venv --no-project", *sandbox.INSTALL]


@pytest.mark.parametrize("step", ["uv venv", "uv pip sync", "uv pip install"])
def test_no_network_and_no_environment_is_one_sentence(sandbox, step):
    sentence = only_sentence(sandbox.run(FAIL=step))
    assert "network" in sentence
    assert ".cache/setup.log" in sentence
    assert "dns error" in (sandbox.root / ".cache/setup.log").read_text()
    assert sandbox.setups()[-1].startswith(step)
    assert sandbox.jobs() == []


def test_without_uv_it_is_installed_into_the_cache(sandbox):
    (sandbox.bin / "uv").unlink()
    assert sandbox.run("replay").returncode == 0
    assert sandbox.jobs()[:2] == ["venv .cache/uv", "pip install uv"]
    assert sandbox.setups()[-3:] == ["uv venv --no-project", *sandbox.INSTALL]
    (sandbox.root / ".venv/.requirements.lock").unlink()
    sandbox.run("replay")
    assert sandbox.jobs() == ["notebooks", "report"], "the uv in .cache is used again"


def test_a_python_without_venv_can_still_install_uv(sandbox):
    (sandbox.bin / "uv").unlink()
    assert sandbox.run("replay", FAIL="-m venv").returncode == 0
    assert "pip install --upgrade --target .cache/uv uv" in sandbox.jobs()


def test_no_uv_and_no_network_is_one_sentence(sandbox):
    (sandbox.bin / "uv").unlink()
    sentence = only_sentence(sandbox.run("replay", FAIL="pip install"))
    assert "uv could not be installed" in sentence
    assert ".cache/setup.log" in sentence


def test_a_wrong_python_is_named(sandbox):
    sentence = only_sentence(sandbox.run("replay", GKP_PYTHON="python2"))
    assert "GKP_PYTHON=python2" in sentence
    assert sandbox.setups() == []


def test_the_environment_can_be_elsewhere(sandbox, tmp_path):
    assert sandbox.run("replay", GKP_VENV=str(tmp_path / "other place")).returncode == 0
    assert (tmp_path / "other place/.requirements.lock").exists()
    assert not (sandbox.root / ".venv").exists()


def test_uv_is_told_the_mirror_that_pip_was_told(sandbox):
    sandbox.run("replay", PIP_INDEX_URL="mirror")
    assert "uv pip sync index=mirror" in sandbox.calls
    (sandbox.root / ".venv/.requirements.lock").unlink()
    sandbox.run("replay", PIP_INDEX_URL="mirror", UV_DEFAULT_INDEX="own")
    assert "uv pip sync index=own" in sandbox.calls


@pytest.mark.parametrize("slow", ["run --suite digits", "--compute"])
def test_control_c_stops_with_a_clean_message(sandbox, slow):
    (sandbox.root / "calls").touch()
    process = subprocess.Popen(
        [sandbox.bin / "bash", sandbox.root / "reproduce.sh", "smoke"],
        env=sandbox.environment | {"SLOW": slow},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What starts the tests in the background may have them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not any(slow in call for call in sandbox.calls) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # the note is written just before the pretended work begins
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the script and to what it runs
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 130
    assert errors == "\nStopped; the same command goes on from here.\n"
    assert slow in sandbox.calls[-1]


@pytest.mark.parametrize("offline_copy", [True, False])
def test_ci_calls_the_test_job_with_the_offline_data(tmp_path, offline_copy):
    clone = tmp_path / "a clone"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", clone / ".ci")
    executable(clone / "reproduce.sh", 'cat; echo "$* ${GKP_DATA:-none} ${GKP_CHECKPOINTS:-none}"; exit 5\n')
    if offline_copy:
        (tmp_path / "shared/data").mkdir(parents=True)
        (tmp_path / "shared/checkpoints").mkdir()
    environment = {"PATH": os.environ["PATH"]}
    ci = subprocess.run(
        [clone / ".ci/run"], env=environment, input="typed", capture_output=True, text=True, cwd="/"
    )
    folders = (
        [tmp_path / "shared/data", tmp_path / "shared/checkpoints"] if offline_copy else ["none", "none"]
    )
    assert ci.returncode == 5
    assert ci.stdout.strip() == " ".join(map(str, ["test", *folders]))
