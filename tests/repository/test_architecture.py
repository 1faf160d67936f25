"""Which room may know which: every import of the package, those inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From left to right: a room imports itself and rooms to its left.
ORDER = (
    "utils", "search", "data", "nets", "attacks", "evaluate", "train", "pruners", "deploy",
    "study.runs", "study.facts", "study.analysis", "study.execute", "study.report", "cli",
)  # fmt: skip
# Rooms that do not know one another although the order would allow it.
STRANGERS = {
    "search": {"utils"},
    "data": {"search"},
    "nets": {"data"},
    "attacks": {"data", "nets", "search"},
    "study.execute": {"study.analysis"},
}
MAY_EXECUTE = ("study.execute", "study.report", "cli")
SLOW = ("scipy", "statsmodels", "torch_pruning", "robustbench")  # seconds each: imported where they are used
ROOMS, FILES = 10, 11


def room_of(module: str) -> str:
    """ "gkp.study.runs.store" -> "study.runs"; "" for the package's own files."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "__main__":
        return "cli" if parts else ""
    return ".".join(parts[:2]) if parts[0] == "study" else parts[0]


def modules(package: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.Module, known: set[str]) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether the import is at the top) of all that the code imports at run time."""
    checked = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module, node.lineno, top


def wrong(package: Path) -> list[str]:
    """One sentence for each import that the rule forbids."""
    found, known = [], modules(package)
    for name, path in known.items():
        room = room_of(name)
        for target, line, top in imports(ast.parse(path.read_text("utf-8")), set(known)):
            reason = why_not(room, target, top)
            if reason:
                found.append(f"{path.relative_to(package.parent)}:{line} imports {target}: {reason}")
    return found


def why_not(room: str, target: str, top: bool) -> str:
    """Why code of `room` may not import `target`; "" where it may."""
    first = target.split(".")[0]
    library = room and not room.startswith("study") and room != "cli"
    if first == "matplotlib" and room != "study.report":
        return "figures are drawn in study/report"
    if first == "seaborn" and room != "study.report":
        return "figures are drawn in study/report"
    if first == "pandas" and not room.startswith("study") and room != "data":
        return "tables are made in study"
    if first in SLOW and library and top:
        return "slow to import: import it in the function that needs it"
    if first != "gkp" or target == "gkp" or room == "":
        return ""
    other = room_of(target)
    if other == room or other == "":
        return ""
    if other not in ORDER or ORDER.index(other) > ORDER.index(room):
        return f"{other} stands to the right of {room}"
    if other in STRANGERS.get(room, ()):
        return f"{room} does not know {other}"
    if other == "study.execute" and room not in MAY_EXECUTE:
        return "only reports and the command line start anything"
    return ""


def test_every_import_goes_to_the_left() -> None:
    assert wrong(ROOT / "gkp") == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("attacks/linf.py", "from gkp.nets import models"),
        ("nets/zoo.py", "def f():\n    from gkp.attacks import Attack"),
        ("search/beam.py", "import gkp.utils.files"),
        ("pruners/norms.py", "from gkp.study.runs.store import Store"),
        ("study/analysis/verdict.py", "import matplotlib"),
        ("study/analysis/verdict.py", "from gkp.study.execute import queue"),
        ("study/execute/suite.py", "from gkp.study.analysis import verdict"),
        ("study/facts/method.py", "from gkp.study.execute.context import Context"),
        ("evaluate.py", "import scipy.stats"),
        ("train/loop.py", "import pandas as pd"),
    ],
)
def test_a_forbidden_import_is_named(tmp_path: Path, place: str, line: str) -> None:
    for name in {
        place,
        *(path.relative_to(ROOT / "gkp").as_posix() for path in modules(ROOT / "gkp").values()),
    }:
        path = tmp_path / "gkp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + "\n" if name == place else "")
    (only,) = wrong(tmp_path / "gkp")
    assert only.startswith(f"gkp/{place}:")


def test_rooms_are_few_and_small() -> None:
    package = ROOT / "gkp"
    rooms = [path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(rooms) <= ROOMS
    for room in [*rooms, *(path for path in package.rglob("*") if path.is_dir())]:
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= FILES, room.relative_to(ROOT)
    assert sorted(path.name for path in package.glob("*.py")) == ["__init__.py", "__main__.py", "evaluate.py"]


def test_no_circle_within_a_room() -> None:
    """Imports at the top of modules alone: that is what Python runs when it loads them."""
    known = modules(ROOT / "gkp")
    graph = {
        name: {
            target
            for target, _, top in imports(ast.parse(path.read_text("utf-8")), set(known))
            if top and target in known and path.name != "__init__.py"
        }
        for name, path in known.items()
    }
    waiting = dict(graph)
    while waiting:
        free = [name for name, targets in waiting.items() if not targets & waiting.keys() - {name}]
        assert free, f"a circle among {sorted(waiting)}"
        for name in free:
            del waiting[name]


def test_tests_stand_where_the_code_does() -> None:
    rooms = {
        path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")
    }
    code = {path.parent.relative_to(ROOT / "gkp").as_posix() for path in (ROOT / "gkp").rglob("*.py")}
    assert rooms - code == {"repository"}
