"""What runs the files: PyTorch, ONNX Runtime, OpenVINO; writing for each of them, and loading."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gkp.deploy import graphs
from gkp.deploy.forms import in_forms
from gkp.deploy.grouping import Grouping
from gkp.utils.nearest import unknown

SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".onnx", "torch": ".pt2"}
NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}

Run = Callable[[Tensor], Tensor]
Write = Callable[[Mapping[str, str], Path], None]  # forms of the layers, file


def check(runtime: str) -> None:
    """ValueError for a runtime that is unknown or not installed."""
    if runtime not in SUFFIXES:
        raise ValueError(unknown("runtime", runtime, SUFFIXES))
    missing = [name for name in NEEDS.get(runtime, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'runtime="{runtime}" needs more packages: pip install {" ".join(missing)}')


def version(runtime: str) -> str:
    return importlib.metadata.version(runtime)


def writer(
    runtime: str,
    network: nn.Module,
    grouped: Mapping[str, Grouping],
    x: Tensor,
    graph: graphs.Graph | None = None,
) -> Write:
    """What writes the dense `network` with layers in given forms as a file for inputs of the shape of x.

    graph: for ONNX, that of a network of the same structure; by default torch.onnx makes it.
    """
    if runtime == "torch":

        def write(forms: Mapping[str, str], path: Path) -> None:
            torch.export.save(_program(in_forms(network, grouped, forms), x), path)

        return write
    made = graphs.exported(network, x) if graph is None else graph

    def write_graph(forms: Mapping[str, str], path: Path) -> None:
        path.write_bytes(graphs.with_forms(made, network, grouped, forms).SerializeToString())

    return write_graph


def _program(network: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """The program of a network without gradients."""
    try:
        with torch.no_grad():
            return torch.export.export(network, (x,))
    except Exception as error:  # whatever a forward raises that meets symbols
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch.export cannot follow this {type(network).__name__}: {reason}; take what branches on "
            "values out of its forward"
        ) from error


def load(runtime: str, path: Path, threads: int) -> Run:
    """The network in a file, as a function of tensors; PyTorch's has the threads of `threads_of`."""
    if runtime == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights in channels last, which are on the CPU here
            return torch.export.load(path).module()
    if runtime == "openvino":
        return _openvino(path, threads)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {graphs.INPUT: x.numpy()})[0])


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    # Without the precision the numbers would be rounded on processors that have bfloat16.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    network = openvino.Core().compile_model(path, "CPU", settings)
    return lambda x: torch.from_numpy(network(x.numpy())[0])


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    """Within the block PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
