"""Notebooks: short cells, generated prose, nothing on standard error; wrong parameters fail.

That their committed outputs are what the records give is nbval's part: `pytest --nbval notebooks`.
"""

import ast
import os
import shutil
from pathlib import Path

import nbformat
import pytest

from gkp.study.report import notebooks

ROOT = Path(__file__).parents[2]
PATHS = notebooks.find(ROOT)
MAX_CELLS, MAX_LINES, MAX_FUNCTION = 25, 12, 5


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    numbered = ("method", "fragility", "ablations", "cost", "audit", "better")
    expected = {"00_start_here", *(f"{n:02}_{name}" for n, name in enumerate(numbered, start=1))}
    assert expected <= {path.stem for path in PATHS}


def test_it_starts_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert first.source.splitlines()[0].endswith("?")


def test_cells_are_few_and_short(notebook):
    assert len(notebook.cells) <= MAX_CELLS
    assert max(len(cell.source.splitlines()) for cell in _code(notebook)) <= MAX_LINES


def test_functions_belong_in_the_library(notebook):
    for cell in _code(notebook):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION


def test_one_cell_has_the_parameters(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] is _code(notebook)[0]


def test_it_changes_no_path_and_types_no_installation(notebook):
    """The package is installed; `show.root` finds the records."""
    for cell in _code(notebook):
        assert "sys.path" not in cell.source


def test_it_ends_with_the_claims_it_settles_or_the_way_on(notebook):
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert headings[-1] in ("## The claims this settles", "## How to go on")


def test_outputs_are_committed_and_clean(notebook):
    counts = [cell.execution_count for cell in _code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in _code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = str({kind: data for kind, data in output.get("data", {}).items() if "image" not in kind})
            for word in (str(ROOT), str(Path.home()) + "/", " at 0x", "nan"):
                assert word not in text


def test_every_figure_has_words_after_it(notebook):
    """A figure without a sentence that says what it shows teaches nothing."""
    for cell, following in zip(notebook.cells, notebook.cells[1:], strict=False):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert following.cell_type == "markdown" or "show.say" in following.source


# ---- running them --------------------------------------------------------------------------------


def _small(folder, source="print(number)"):
    """A folder with one notebook that has the parameter `number`."""
    cells = [nbformat.v4.new_code_cell("number = 1", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(source))
    path = folder / "notebooks" / "small.ipynb"
    path.parent.mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def test_an_unknown_parameter_fails(tmp_path):
    path = _small(tmp_path)
    with pytest.raises(ValueError, match="no parameter numbre; it has: number"):
        notebooks.run(path, root=tmp_path, parameters={"numbre": 2})
    assert not (tmp_path / notebooks.EXECUTED).exists()


def test_parameters_count_and_the_committed_notebook_stays(tmp_path):
    path = _small(tmp_path)
    before = path.read_bytes()
    done = nbformat.read(notebooks.run(path, root=tmp_path, parameters={"number": 7}), as_version=4)
    assert [out["text"] for cell in done.cells for out in cell.get("outputs", [])] == ["7\n"]
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="leave out --write"):
        notebooks.run(path, root=tmp_path, parameters={"number": 7}, write=True)


def test_an_error_reaches_the_caller_and_keeps_the_notebook(tmp_path):
    path = _small(tmp_path, "raise KeyError('lost')")
    before = path.read_bytes()
    with pytest.raises(Exception, match="lost"):
        notebooks.run(path, root=tmp_path, write=True)
    assert path.read_bytes() == before


def test_unknown_notebooks_and_bad_parameter_texts(tmp_path):
    _small(tmp_path)
    with pytest.raises(ValueError, match="unknown notebook 'big': choose one of small"):
        notebooks.find(tmp_path, ["big"])
    assert notebooks.parse_parameters(["suite=digits", "compute=true"]) == {
        "suite": "digits",
        "compute": True,
    }
    with pytest.raises(ValueError, match="write name=value"):
        notebooks.parse_parameters(["compute"])


@pytest.mark.slow
def test_all_of_them_run_live_on_digits(tmp_path, monkeypatch):
    """What `bash reproduce.sh smoke` does, in a copy of the repository without any digits record."""
    for name in ("gkp", "notebooks", "expected", "results", "checkpoints", "tests"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("digits"))
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    for path in notebooks.find(tmp_path):
        done = nbformat.read(
            notebooks.run(path, root=tmp_path, parameters={"suite": "digits", "compute": True}), as_version=4
        )
        streams = [out for cell in done.cells for out in cell.get("outputs", []) if "name" in out]
        assert [out["text"] for out in streams if out["name"] == "stderr"] == []
    assert list((tmp_path / "results" / "digits").glob("sr-gkp-*.json"))
