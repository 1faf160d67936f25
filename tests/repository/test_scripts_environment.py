"""reproduce.sh sets up its environment: once, again where the lock changed, and with or without uv."""

import subprocess

import pytest


def only_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The single line on stderr of a script that could not set up."""
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("reproduce.sh: ")
    assert line.endswith(".")
    return line


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
    assert sandbox.setups()[-4:] == ["uv venv --no-project", *sandbox.INSTALL]
    (sandbox.root / ".venv/.requirements.lock").unlink()
    sandbox.run("replay")
    assert sandbox.jobs() == ["notebooks --jobs 2", "report"], "the uv in .cache is used again"


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


@pytest.mark.parametrize("python", ["python2", "echo", "true", " ", "requirements.lock", "/"])
def test_a_wrong_python_is_named_even_where_it_is_not_needed(sandbox, python):
    assert sandbox.run("replay").returncode == 0
    sentence = only_sentence(sandbox.run("replay", GKP_PYTHON=python))
    assert f"GKP_PYTHON={python} is not a working Python" in sentence
    assert sandbox.calls == []


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
