"""reproduce.sh and .ci/run: their arguments, the commands of each job, exit codes and Ctrl-C."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from script_sandbox import ROOT, executable

SCRIPTS = ("reproduce.sh", ".ci/run")

TESTS = "pytest -p no:nbval --numprocesses 2 --dist worksteal"
NOTEBOOKS = "pytest --numprocesses 2 --dist loadfile --nbval --nbval-current-env notebooks"


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
        (["train", "--suite", " "], "--suite needs a name"),
        (["train", "--suite", "--download"], "--suite needs a name"),
        (["train", "--suite", "../digits"], "--suite needs a name"),
        (["train", "--suite", "method; reboot"], "--suite needs a name"),
        (["train", "--suite", "method", "--suite", "digits"], "one suite at a time"),
        (["--suite", "method", "test"], "--suite is for replay, evaluate and train"),
        ([""], "unknown argument ''"),
        (["Smoke"], "unknown argument 'Smoke'"),
        (["smoke", "--", "-x"], "unknown argument '--'"),
        (["evaluate", "method"], "unknown argument 'method'"),
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


SMOKE = [
    "run --suite digits --jobs 2",
    "notebooks --suite digits --compute --jobs 2",
    "report --suite digits",
]


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ([], [*SMOKE, "notebooks --jobs 2", "report"]),
        (["smoke"], SMOKE),
        (["replay"], ["notebooks --jobs 2", "report"]),
        (["replay", "--suite", "method"], ["notebooks --jobs 2 --suite method", "report --suite method"]),
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
        (["test"], [TESTS, NOTEBOOKS]),
        (["test", "-k", "a b"], [f"{TESTS} -k a b", NOTEBOOKS]),
    ],
)
def test_each_job_runs_its_commands(sandbox, arguments, jobs):
    result = sandbox.run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert sandbox.jobs() == jobs


def test_the_package_is_found_in_the_clone(sandbox):
    sandbox.run("replay", PYTHONPATH="/elsewhere")
    assert f"path {sandbox.root}" in sandbox.calls


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, ""),
        ({"PYTHONDONTWRITEBYTECODE": "1"}, "{root}/.cache/bytecode"),
        ({"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/there"}, "/there"),
    ],
)
def test_compiled_modules_are_always_kept(sandbox, variables, kept):
    """Beside the code, or in the cache where the machine wants none there."""
    sandbox.run("replay", **variables)
    assert f"bytecode :{kept.format(root=sandbox.root)}" in sandbox.calls


def test_training_says_first_how_long_it_takes(sandbox):
    result = sandbox.run("train", "--suite", "method")
    assert result.stdout.endswith("| suite | time |\n| --- | --- |\n| method | 1 h |\n")


@pytest.mark.parametrize(
    ("arguments", "fail", "last"),
    [
        ([], "run --suite digits --jobs 2", "run --suite digits --jobs 2"),
        ([], "report --suite digits", "report"),
        (["smoke"], "--compute", "report --suite digits"),
        (["replay"], "gkp notebooks", "report"),
        (["evaluate"], "gkp evaluate", "evaluate --suite cifar10-resnet20-short --download"),
        (["train"], "gkp list", "list"),
        (["train"], "gkp run", "run --suite cifar10-resnet20-short --download"),
        (["train"], "gkp report", "report --suite cifar10-resnet20-short"),
        (["test", "-x"], "worksteal -x", NOTEBOOKS),
        (["test"], "--nbval", NOTEBOOKS),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(sandbox, arguments, fail, last):
    """What does not depend on the failed command still runs, the verdict above all."""
    assert sandbox.run(*arguments, FAIL=fail, CODE="7").returncode == 7
    assert sandbox.jobs()[-1] == last


@pytest.mark.parametrize("slow", ["run --suite digits --jobs 2", "--compute"])
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
