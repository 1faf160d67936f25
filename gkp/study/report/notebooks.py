"""Executing the notebooks with papermill, so that parameters count and outputs can be committed."""

from __future__ import annotations

import ast
import concurrent.futures
import functools
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkp.utils.assignments import assignments, like
from gkp.utils.files import atomic_write_text, readable_file
from gkp.utils.nearest import unknown

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

FOLDER = Path("notebooks")
EXECUTED = Path("work") / "notebooks"
LONGEST = 80  # letters of the folder of sockets, whose paths may have about a hundred
KERNEL = "python3"  # only a name: `own_kernel_manager` decides which Python it is


class NotebookError(RuntimeError):
    """A cell of a notebook failed; the message says which and why."""


def find(root: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these names (with or without .ipynb, or paths), each once; all of them without names.

    FileNotFoundError where there are none at all, ValueError for an unknown one.
    """
    folder = Path(root) / FOLDER
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not known:
        raise FileNotFoundError(f"no notebooks in {folder}: go to the repository's folder, or give --root")
    paths: dict[Path, None] = {}
    for name in names or known:
        path = known.get(name.removesuffix(".ipynb"))
        if path is None:  # a path such as a shell completes it
            path = next((file for file in known.values() if Path(name).resolve() == file.resolve()), None)
        if path is None:
            raise ValueError(unknown("notebook", name, known))
        paths[readable_file(path)] = None
    return list(paths)


def planned(
    root: str | Path,
    names: Sequence[str],
    strict: Mapping[str, Any],
    offered: Mapping[str, Any],
    *,
    write: bool = False,
) -> list[tuple[Path, dict[str, Any]]]:
    """Which notebooks to run with which parameters, all checked before the first one runs.

    strict: parameters that every notebook must have; offered: those for the notebooks that have them. A
    notebook that has none of the offered ones shows the same whatever they are, and is left out.
    ValueError when nothing is left, and as `run` and `check_parameters`.
    """
    if twice := sorted(strict.keys() & offered.keys()):
        raise ValueError(f"parameter {twice[0]} is given twice: as an option and with -p; leave one out")
    plan = []
    for path in find(root, names):
        known = parameter_names(path)
        parameters = {name: value for name, value in offered.items() if name in known} | dict(strict)
        check_parameters(path, parameters)
        check_suite(parameters, root)
        if parameters or not offered:
            plan.append((path, parameters))
    if not plan:
        raise ValueError(f"none of these notebooks has a parameter {' or '.join(offered)}: leave it out")
    check_write(write, [name for _, parameters in plan for name in parameters])
    return plan


def check_suite(parameters: Mapping[str, Any], root: str | Path) -> None:
    """ValueError for an unknown suite, and for one without records where nothing is to be computed."""
    from gkp.study.runs import suites
    from gkp.study.runs.store import Store

    name = parameters.get("suite")
    if name is None:
        return
    if name not in suites.SUITES:
        raise ValueError(unknown("suite", name, suites.SUITES))
    if not parameters.get("compute") and not Store(root).of_suite(name):
        raise ValueError(
            f"suite {name} has no records to show: `python -m gkp run --suite {name}` makes them, "
            "or --compute lets the notebook do it"
        )


def check_write(write: bool, parameters: Sequence[str]) -> None:
    """ValueError for outputs of other parameters in place of the committed ones."""
    if write and parameters:
        raise ValueError("the committed notebooks show their default parameters: leave out --write or -p")


def run(
    path: str | Path, *, root: str | Path, parameters: Mapping[str, Any] | None = None, write: bool = False
) -> Path:
    """Execute one notebook and return where the result is: below work/notebooks, or in place with `write`.

    ValueError for a parameter the notebook does not have (papermill only warns) and for `write` with
    parameters, because the committed outputs are those of the defaults. NotebookError for an error inside
    the notebook, which leaves the committed file as it was. It runs with the Python that runs this.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    path, parameters = Path(path), dict(parameters or {})
    check_parameters(path, parameters)
    check_write(write, list(parameters))
    executed = Path(root) / EXECUTED / path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(executed),
            parameters=parameters,
            kernel_name=KERNEL,
            cwd=str(path.parent),
            progress_bar=False,
            kernel_manager_class=own_kernel_manager(),
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}; "
            f"{executed} shows where"
        ) from error
    except DeadKernelError as error:
        raise NotebookError(f"{path.name}: its Python ended early (out of memory?): {error}") from error
    target = path if write else executed
    atomic_write_text(target, nbformat.writes(without_traces(nbformat.read(executed, as_version=4))) + "\n")
    return target


def run_all(
    plan: Sequence[tuple[Path, dict[str, Any]]], *, root: str | Path, write: bool = False, jobs: int = 1
) -> Iterator[tuple[Path, Path]]:
    """Execute what was `planned`, `jobs` at a time; (notebook, result) of each in the plan's order.

    The first NotebookError ends it; those that run at the time are finished.
    """
    work = functools.partial(run, root=root, write=write)
    if jobs == 1 or len(plan) < 2:
        yield from ((path, work(path, parameters=parameters)) for path, parameters in plan)
        return
    # Processes and not threads: only in a process' first thread does Ctrl-C end the kernel, too.
    with concurrent.futures.ProcessPoolExecutor(min(jobs, len(plan)), get_context("spawn")) as pool:
        running = [(path, pool.submit(work, path, parameters=parameters)) for path, parameters in plan]
        try:
            yield from ((path, executed.result()) for path, executed in running)
        finally:
            pool.shutdown(cancel_futures=True)


def own_kernel_manager() -> type[KernelManager]:
    """A manager that starts kernels with this very Python, whatever kernels Jupyter's folders offer.

    On clusters another environment's "python3" often comes first (JUPYTER_PATH), without this package. It
    talks to them by sockets of the file system, of which kernels do not warn as they do of open TCP ports.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.localinterfaces import localhost
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnSpecs(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # An idle kernel logs as an error that it is interrupted in order to end; cells tell their own.
            started = get_kernel_dict(extra_arguments=["--log-level=50"])
            return self.kernel_spec_class(resource_dir=RESOURCES, **started)

    class OwnKernelManager(AsyncKernelManager):
        @default("transport")
        def _sockets(self) -> str:
            return "ipc" if len(tempfile.gettempdir()) < LONGEST else "tcp"

        @default("ip")
        def _place(self) -> str:  # of the sockets: without it all kernels of a folder would share them
            path = os.path.join(tempfile.gettempdir(), f"gkp-{uuid.uuid4().hex[:12]}")
            return path if self.transport == "ipc" else localhost()

        @default("kernel_spec_manager")
        def _own_specs(self) -> KernelSpecManager:
            return OwnSpecs(parent=self.parent)

    return OwnKernelManager


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """ValueError when the notebook's parameters cell does not have one of these names, or of another kind."""
    known = parameter_defaults(path)
    unknown_ones = sorted(set(parameters) - set(known))
    if unknown_ones:
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown_ones)}; it has: {', '.join(known) or 'none'}"
        )
    for name, value in parameters.items():
        like(name, value, known[name], path.name)


def parameter_names(path: Path) -> list[str]:
    """The names that the notebook's parameters cell defines."""
    return list(parameter_defaults(path))


def parameter_defaults(path: Path) -> dict[str, Any]:
    """The names that the notebook's parameters cell defines, and their values, texts for what is no literal.

    ValueError names a file that is no notebook.
    """
    import nbformat
    import papermill

    readable_file(path)
    try:
        parameters = papermill.inspect_notebook(str(path))
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is damaged or no notebook: restore it from git") from error
    return {name: _literal(about["default"]) for name, about in parameters.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
    """["suite=digits", "compute=true"] -> {"suite": "digits", "compute": True}; see `assignments`."""
    return assignments(texts)
