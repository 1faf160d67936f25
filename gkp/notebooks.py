"""Executing the notebooks with papermill, so that parameters count and outputs can be committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkp.files import atomic_write_text

FOLDER = Path("notebooks")
EXECUTED = Path("work") / "notebooks"
KERNEL = "python3"  # of the environment that runs this: jupyter_client starts it with sys.executable


def find(root: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of that name (with or without .ipynb), all of them without names."""
    known = {path.stem: path for path in sorted((Path(root) / FOLDER).glob("*.ipynb"))}
    wanted = [Path(name).stem for name in names] or list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"no notebook {name!r}; there are: {', '.join(known) or 'none'}")
    return [known[name] for name in wanted]


def run(
    path: str | Path, *, root: str | Path, parameters: Mapping[str, Any] | None = None, write: bool = False
) -> Path:
    """Execute one notebook and return where the result is: below work/notebooks, or in place with `write`.

    ValueError for a parameter the notebook does not have (papermill only warns) and for `write` with
    parameters, because the committed outputs are those of the defaults. An error inside the notebook
    reaches the caller and leaves the committed file as it was.
    """
    import nbformat
    import papermill

    path, parameters = Path(path), dict(parameters or {})
    check_parameters(path, parameters)
    if write and parameters:
        raise ValueError("the committed notebooks show their default parameters: leave out --write or -p")
    executed = Path(root) / EXECUTED / path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(path),
        str(executed),
        parameters=parameters,
        kernel_name=KERNEL,
        cwd=str(path.parent),
        progress_bar=False,
    )
    target = path if write else executed
    atomic_write_text(target, nbformat.writes(without_traces(nbformat.read(executed, as_version=4))) + "\n")
    return target


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """ValueError when the notebook's parameters cell does not have one of these names."""
    known = parameter_names(path)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown)}; it has: {', '.join(known) or 'none'}"
        )


def parameter_names(path: Path) -> list[str]:
    """The names that the notebook's parameters cell defines."""
    import papermill

    return list(papermill.inspect_notebook(str(path)))


def without_traces(notebook: Any) -> Any:
    """Remove what differs between two runs or machines: times, paths, versions, transient output names."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
    return notebook


def parse_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """["suite=digits", "compute=true"] -> {"suite": "digits", "compute": True}; values read as YAML."""
    import yaml

    parameters = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"parameter {text!r}: write name=value, e.g. suite=digits")
        parameters[name] = yaml.safe_load(value)
    return parameters
