"""The files of the set-up agree with one another: project, lock, conda environment, citation, licence."""

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11.7", "3.12.1", "3.13.0")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UV = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def lock_entries() -> dict[str, list[str]]:
    """Requirement line of the lock -> its hashes."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    entries = {}
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        entries[requirement] = hashes
    return entries


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def pins(lines, python: str, platform: str = "linux", machine: str = "x86_64") -> dict[str, str]:
    """Name -> version of what pip would install there; a name that is pinned twice fails."""
    setting = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": platform,
        "platform_machine": machine,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
    }
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(setting):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python} on {platform}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def test_every_locked_package_has_one_version_and_a_hash():
    entries = lock_entries()
    assert len(entries) > 100
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"==[\w.+!]+", str(Requirement(requirement).specifier)), requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("name", ["requirements.lock", "environment.yml"])
def test_pins_name_no_host_and_no_folder(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(-|i |f |e )(?!hash=)", text, flags=re.MULTILINE)
    assert " @ " not in text


@pytest.mark.parametrize(("platform", "machine"), PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_direct_dependency(python, platform, machine):
    locked = pins(lock_entries(), python, platform, machine)
    for requirement in DIRECT + [Requirement(text) for text in UV["constraint-dependencies"]]:
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), requirement


def test_the_lock_was_compiled_from_this_project():
    """uv notes under each package who asked for it."""
    blocks = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text())
    asked = {re.match(r"[\w.-]+", block)[0] for block in blocks if "gkp (pyproject.toml)" in block}
    assert asked == {canonicalize_name(requirement.name) for requirement in DIRECT}


def test_conda_gets_the_pins_of_the_lock():
    conda = next(part["pip"] for part in environment()["dependencies"] if isinstance(part, dict))
    assert conda == list(lock_entries()), "renew environment.yml with the command in its first lines"


def test_conda_gets_a_python_that_the_project_supports():
    specs = [part for part in environment()["dependencies"] if isinstance(part, str)]
    pinned = next(spec.removeprefix("python=") for spec in specs if spec.startswith("python="))
    assert "pip" in specs
    assert SpecifierSet(PROJECT["requires-python"]).contains(pinned)


def test_reproduce_takes_the_pythons_that_the_project_supports():
    script = (ROOT / "reproduce.sh").read_text()
    low, high = re.search(r"\((\d, \d+)\) <= sys.version_info\[:2\] <= \((\d, \d+)\)", script).groups()
    first, last = low.replace(", ", "."), high.replace(", ", ".")
    after = f"3.{int(last.split('.')[1]) + 1}"
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={first},<{after}")
    assert f"'{PROJECT['requires-python']}'" in script


def test_the_installed_packages_are_the_locked_ones():
    stamp = Path(sys.prefix) / ".requirements.lock"
    if not stamp.exists():
        pytest.skip("reproduce.sh did not make this environment")
    for requirement in map(Requirement, lock_entries()):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier == SpecifierSet(f"=={version(requirement.name)}"), requirement.name


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["title"]
    assert citation["message"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert "Free Adversarial Robustness" in paper["title"]
    assert len(paper["authors"]) == 10


def test_licence_is_the_one_that_is_declared():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith(PROJECT["license"] + " License")
    assert PROJECT["authors"][0]["name"] in text
