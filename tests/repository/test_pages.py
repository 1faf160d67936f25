"""README.md, docs/ and the other pages: size, links, commands, code, numbers, versions."""

import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import gkp
from gkp.nets.models import CIFAR_STD, IMAGENET_STD
from gkp.study.analysis.claims import Claim
from gkp.study.report.pages.blocks import BLOCK
from gkp.study.runs.run import RATE
from gkp.study.runs.suites.recipes import PAPER_RECIPE

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
MOST_LINES, MOST_BYTES = 220, 16_000
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def fences(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def prose(text: str) -> str:
    """The page without generated blocks and code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", BLOCK.sub("", text)))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- size and links ------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.encode()) <= MOST_BYTES


@pytest.mark.parametrize("page", NAMES)
def test_every_relative_link_and_image_exists(page: str) -> None:
    path = ROOT / page
    for target in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{page} links {target}"
        if anchor:
            assert anchor in anchors(linked.read_text("utf-8")), f"{page} links {target}"


def test_every_page_is_linked_from_the_readme_or_a_page_it_links() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(page.read_text("utf-8")))
        waiting += [(page.parent / target).resolve() for target in targets if target]
    assert set(PAGES) <= reached


# ---- commands and code ---------------------------------------------------------------------------


@cache
def help_of(command: str) -> str:
    line = [sys.executable, "-m", "gkp", command, "--help"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def commands(text: str) -> set[str]:
    """The `python -m gkp ...` lines of a page, in blocks and in running text."""
    text = re.sub(r"`([^`\n]*)\n([^`\n]*)`", r"`\1 \2`", text)
    return {found.strip() for found in re.findall(r"python -m gkp ([^`#\n]*)", text)} - {"", "..."}


@pytest.mark.parametrize("page", NAMES)
def test_every_command_and_its_options_exist(page: str) -> None:
    for line in commands((ROOT / page).read_text("utf-8")):
        words = [word for word in shlex.split(line) if word != "..."]
        while words and words[0].startswith("--"):  # --plugin FILE stands before the command
            words = words[2:]
        shown = help_of(words[0])
        for option in (word for word in words[1:] if word.startswith("--")):
            assert re.search(rf"(^|\s|,){re.escape(option)}\b", shown), f"{page}: {line}"


def test_the_readme_names_commands() -> None:
    assert len({line.split()[0] for line in commands(README)}) >= 4


@pytest.mark.parametrize("place", range(len(fences(README, "python"))))
def test_every_python_block_of_the_readme_runs(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(fences(README, "python")[place], f"README.md, block {place}", "exec"), {})
    assert place > 0 or {path.suffix for path in tmp_path.iterdir()} >= {".safetensors", ".onnx"}


@pytest.mark.parametrize("page", ["docs/methods.md", "docs/ROBUST_USE.md"])
def test_python_blocks_that_stand_for_themselves_run(page: str) -> None:
    whole = [code for code in fences((ROOT / page).read_text("utf-8"), "python") if code.startswith("import")]
    assert whole
    for code in whole:
        exec(compile(code, page, "exec"), {})


def test_the_readme_has_code_to_run() -> None:
    assert len(fences(README, "python")) >= 2


def test_the_claim_shown_in_the_docs_is_one() -> None:
    (block,) = fences((ROOT / "docs" / "extend.md").read_text("utf-8"), "toml")
    (claim,) = tomllib.loads(block)["claim"]
    Claim(**claim)
    known = tomllib.loads((ROOT / "expected" / "claims.toml").read_text("utf-8"))["claim"]
    assert claim["id"] not in {table["id"] for table in known}


# ---- numbers and words ---------------------------------------------------------------------------


def constants() -> set[str]:
    """What may stand in the README's prose as a number: constants of the code and of the set-up."""
    usage = (ROOT / "reproduce.sh").read_text("utf-8")
    python = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    first, beyond = re.findall(r"3\.(\d+)", python)
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"][0]
    sizes = re.findall(r"(\d+) GB", usage)
    cores = re.search(r"on (\d+) cores", usage)[1]
    terms = {"95", "0", "1"}  # of the interval's level; pixels in [0, 1]
    return {f"3.{first}", f"3.{int(beyond) - 1}", str(paper["year"]), cores, *sizes, *terms}


def test_every_number_in_the_readme_is_generated_or_a_constant() -> None:
    text = LINK.sub(lambda match: match[0].partition("](")[0], prose(README))
    text = re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE)  # of a list
    text = re.sub(r"\b(?:ResNet|CIFAR|SHA)-\d+|\bEq\. \d+|\d\d_\w+", "", text)
    numbers = set(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", text))
    assert numbers <= constants()


def test_minutes_in_the_readme_are_those_of_the_script() -> None:
    usage = (ROOT / "reproduce.sh").read_text("utf-8")
    minutes = {job: int(n) for job, n in re.findall(r"^  (\w+) .*<= (\d+) min", usage, flags=re.MULTILINE)}
    whole = re.search(r"bash reproduce.sh +# .*<= (\d+) min", README)[1]
    assert int(whole) == minutes["smoke"] + minutes["replay"]
    assert int(re.search(r"bash reproduce.sh test +# .*<= (\d+) min", README)[1]) == minutes["test"]


def test_the_papers_unit_is_as_much_smaller_as_the_readme_says() -> None:
    factors = sorted(round(3 / sum(deviations)) for deviations in (IMAGENET_STD, CIFAR_STD))
    assert factors == [4, 5]
    assert "four to five times smaller in pixels" in README


def test_constants_named_in_words_are_those_of_the_code() -> None:
    assert f"rate={RATE:g}" in README
    assert f"the paper's {PAPER_RECIPE.epochs} are" in README
    networks = (ROOT / "docs" / "NETWORKS.md").read_text("utf-8")
    pruned, tried = re.search(r"^(\d+) of (\d+) classifiers", networks, flags=re.MULTILINE).groups()
    assert ("every classifier of torchvision" in README) == (pruned == tried)


def test_accuracy_without_attack_has_one_word() -> None:
    without = prose(README)
    assert "benign" in without.lower()
    assert not re.search(r"\bclean\b|\bnatural accuracy\b|\bstandard accuracy\b", without)


@pytest.mark.parametrize("term", ["Benign", "Control", "Point", "Shown", "Paper's units", "Predicted labels"])
def test_terms_are_defined_once(term: str) -> None:
    assert README.count(f"*{term}*") == 1


# ---- versions and forms --------------------------------------------------------------------------


def test_all_files_name_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## ([\d.]+), (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project["version"] == gkp.__version__ == citation["version"] == newest[1]
    assert str(citation["date-released"]) == newest[2]


def test_the_workflow_calls_the_script_that_is_tested() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem
)
def test_issue_forms_have_what_github_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text("utf-8"))
    assert content["name"]
    assert content["description"]
    ids = [part["id"] for part in content["body"]]
    assert len(set(ids)) == len(ids)
    for part in content["body"]:
        assert part["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert part["attributes"]["label"]
        assert part["type"] != "dropdown" or part["attributes"]["options"]


def test_there_are_two_issue_forms() -> None:
    assert len(list((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))) == 2
