"""Executing notebooks: parameters that count, outputs that do not tell where they were made."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gkp.study.report import notebooks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    parameters = new_code_cell("value = 1\ncompute = False", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# A question"), parameters, new_code_cell("print(value + 1)")]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "00_sum.ipynb")
    return tmp_path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.text for output in cells[-1].outputs)


def test_parameters_reach_the_notebook_and_the_committed_file_stays(root: Path) -> None:
    (path,) = notebooks.find(root)
    before = path.read_bytes()
    executed = notebooks.run(path, root=root, parameters={"value": 41})
    assert executed == root / "work" / "notebooks" / "00_sum.ipynb"
    assert printed(executed) == "42\n"
    assert path.read_bytes() == before


def test_write_is_in_place_and_twice_the_same_bytes(root: Path) -> None:
    (path,) = notebooks.find(root, ["00_sum.ipynb"])
    assert notebooks.run(path, root=root, write=True) == path
    first = path.read_bytes()
    assert printed(path) == "2\n"
    assert str(root) not in first.decode()
    assert "papermill" not in json.loads(first)["metadata"]
    notebooks.run(path, root=root, write=True)
    assert path.read_bytes() == first


def test_an_unknown_parameter_fails_before_anything_runs(root: Path) -> None:
    (path,) = notebooks.find(root)
    with pytest.raises(ValueError, match=r"no parameter valeu; it has: value, compute"):
        notebooks.run(path, root=root, parameters={"valeu": 2})
    assert not (root / "work").exists()


def test_outputs_of_other_parameters_are_never_committed(root: Path) -> None:
    (path,) = notebooks.find(root)
    with pytest.raises(ValueError, match="default parameters"):
        notebooks.run(path, root=root, parameters={"value": 2}, write=True)


def test_an_unknown_notebook_lists_the_known_ones(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'01_sum': did you mean 00_sum"):
        notebooks.find(root, ["01_sum"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("n=3", 3), ("n=0.5", 0.5), ("n=true", True), ("n=digits", "digits"), ("n=a=b", "a=b")],
)
def test_parameters_are_read_as_yaml(text: str, value: object) -> None:
    assert notebooks.parse_parameters([text]) == {"n": value}


@pytest.mark.parametrize("text", ["n", "=3", "2n=3"])
def test_parameters_without_a_name_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name=value"):
        notebooks.parse_parameters([text])


@pytest.mark.parametrize(
    "name", ["../00_sum", "00_sum.txt", "00_sum.ipynb.ipynb", "elsewhere/00_sum.ipynb", ""]
)
def test_only_the_name_or_the_path_of_a_notebook_is_one(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="unknown notebook"):
        notebooks.find(root, [name])


def test_a_notebook_named_twice_or_by_its_path_runs_once(root: Path) -> None:
    path = root / "notebooks" / "00_sum.ipynb"
    assert notebooks.find(root, ["00_sum", str(path), "00_sum.ipynb"]) == [path]


def test_a_folder_without_notebooks_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no notebooks in .*--root"):
        notebooks.find(tmp_path)


@pytest.mark.parametrize("parameters", [{"value": True}, {"value": "1"}, {"value": 1.5}, {"compute": 1}])
def test_a_parameter_of_another_kind_fails_before_anything_runs(root: Path, parameters: dict) -> None:
    (path,) = notebooks.find(root)
    with pytest.raises(ValueError, match="give"):
        notebooks.run(path, root=root, parameters=parameters)
    assert not (root / "work").exists()


def test_two_at_a_time_are_returned_in_order_and_the_failure_is_named(root: Path) -> None:
    (first,) = notebooks.find(root)
    second = first.with_name("01_broken.ipynb")
    broken = nbformat.read(first, as_version=4)
    broken.cells[-1].source = "1 / (compute - compute)"
    nbformat.write(broken, second)
    done = notebooks.run_all([(first, {"value": 4}), (second, {})], root=root, jobs=2)
    path, executed = next(done)
    assert (path, printed(executed)) == (first, "5\n")
    with pytest.raises(notebooks.NotebookError, match=r"01_broken.ipynb failed in cell 2: ZeroDivisionError"):
        next(done)


def test_a_cell_that_fails_is_named_and_the_committed_file_stays(root: Path) -> None:
    path = root / "notebooks" / "00_sum.ipynb"
    path.write_text(path.read_text().replace("print(value + 1)", "print(value / 0)"))
    before = path.read_bytes()
    with pytest.raises(notebooks.NotebookError, match=r"00_sum.ipynb failed in cell 2: ZeroDivisionError"):
        notebooks.run(path, root=root, write=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["python3", "Python3"])
def test_the_kernel_is_this_python_whatever_jupyter_offers(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    foreign = root / "jupyter" / "kernels" / name
    foreign.mkdir(parents=True)
    argv = ["/bin/false", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    text = json.dumps({"argv": argv, "display_name": "another environment", "language": "python"})
    (foreign / "kernel.json").write_text(text)
    monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    path = root / "notebooks" / "00_sum.ipynb"
    path.write_text(path.read_text().replace("print(value + 1)", "import sys; print(sys.executable)"))
    assert printed(notebooks.run(path, root=root)) == f"{sys.executable}\n"


def test_kernels_warn_of_nothing_and_leave_no_sockets(root: Path, capfd, monkeypatch, tmp_path: Path) -> None:
    """Open TCP ports are warned of on the terminal; sockets of the file system are not, and are removed."""
    sockets = tmp_path / "s"
    sockets.mkdir()
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(sockets))
    (path,) = notebooks.find(root)
    if len(str(sockets)) < notebooks.LONGEST:
        notebooks.run(path, root=root)
        assert capfd.readouterr() == ("", "")
        assert list(sockets.glob("gkp-*")) == []


def test_every_kernel_has_sockets_of_its_own() -> None:
    """In one folder they would take one another's messages."""
    first, second = (notebooks.own_kernel_manager()() for _ in range(2))
    assert first.transport == "ipc"
    assert first.ip != second.ip


def test_a_folder_too_long_for_sockets_is_passed_over(monkeypatch) -> None:
    monkeypatch.setattr(notebooks.tempfile, "gettempdir", lambda: "/" + "x" * 90)
    manager = notebooks.own_kernel_manager()()
    assert (manager.transport, manager.ip) == ("tcp", "127.0.0.1")
