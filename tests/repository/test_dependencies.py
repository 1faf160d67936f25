"""What the code imports is declared in pyproject.toml, and what is declared is used."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Used without an import of ours, and how.
OTHERWISE = {
    "jupyterlab": "people read the notebooks in it",
    "ipykernel": "the kernel that executes notebooks",
    "nbval": "a plug-in of pytest: reproduce.sh test",
    "pytest-benchmark": "a plug-in of pytest: the fixture `benchmark`",
    "pytest-xdist": "a plug-in of pytest: reproduce.sh test",
    "ruff": "a command: tests/repository/test_style.py",
    "mypy": "a command: tests/repository/test_style.py",
    "pyarrow": "what pandas reads parquet with",
    "tabulate": "what pandas writes Markdown with",
    "jinja2": "what pandas writes LaTeX with",
    "onnx": "what torch.onnx writes",
    "onnxscript": "what torch.onnx exports with",
    "openvino": "a runtime of gkp.export",
    "setuptools": "robustbench imports its pkg_resources; builds this package",
}
LOCAL = {path.stem for path in (ROOT / "tests" / "helpers").glob("*.py")} | {"gkp", "benchmarks"}


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


LIBRARY = declared(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = declared(EXTRAS["slurm"] + EXTRAS["deploy"])  # imported in the functions that need it
TESTS = declared(PROJECT["optional-dependencies"]["test"])


def sources(folder: str) -> list[str]:
    if folder == "notebooks":
        notebooks = [nbformat.read(path, as_version=4) for path in (ROOT / folder).glob("*.ipynb")]
        cells = [cell.source for book in notebooks for cell in book.cells if cell.cell_type == "code"]
        return ["\n".join(line for line in cell.splitlines() if not line.startswith("%")) for cell in cells]
    return [path.read_text("utf-8") for path in (ROOT / folder).rglob("*.py")]


def imported(folder: str) -> set[str]:
    """Names of the packages that the code below `folder` imports, wherever in it."""
    names: set[str] = set()
    for source in sources(folder):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "importorskip")
            ):
                names |= {str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    owners = packages_distributions()
    found: set[str] = set()
    for name in names - set(sys.stdlib_module_names) - LOCAL:
        packages = {canonicalize_name(owner) for owner in owners.get(name, [f"({name})"])}
        found |= packages & {name} or packages  # torchattacks carries a copy of robustbench
    return found


def test_what_the_package_and_the_notebooks_import_is_declared() -> None:
    assert imported("gkp") | imported("notebooks") <= LIBRARY | OPTIONAL


def test_what_the_tests_and_benchmarks_import_is_declared() -> None:
    assert imported("tests") | imported("benchmarks") <= LIBRARY | TESTS


def test_what_is_declared_is_used() -> None:
    assert imported("gkp") | imported("notebooks") | set(OTHERWISE) >= LIBRARY | OPTIONAL
    assert imported("tests") | imported("benchmarks") | set(OTHERWISE) >= TESTS
    assert set(OTHERWISE) <= LIBRARY | TESTS
