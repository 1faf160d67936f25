"""`python -m gkp export`: a network as a file for a runtime, with the table of what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gkp.cli import arguments
from gkp.cli.commands import app

MOST_BATCH, MOST_THREADS = 4096, 1024

_batch = arguments.whole("--batch", 1, MOST_BATCH)
_threads = arguments.whole("--threads", 1, MOST_THREADS)
Batch = Annotated[int, typer.Option(parser=_batch, metavar="N", help="Images at once; the file is for N.")]
Threads = Annotated[
    int | None, typer.Option(parser=_threads, metavar="N", help="Threads to be fast with; PyTorch's without.")
]


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="The file: .onnx, or .pt2 for torch.")],
    model: Annotated[str, typer.Option(help="A name of the zoo, or a .safetensors file of this tool.")],
    runtime: Annotated[str, typer.Option(help="onnxruntime, openvino or torch.")] = "onnxruntime",
    batch: Batch = 1,
    threads: Threads = None,
    dataset: arguments.Dataset = None,
    cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps the times of layers for the next export.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise for ONNX Runtime too, calibrated with test images.")
    ] = False,
    images: arguments.Images = None,
    download: arguments.Download = False,
) -> None:
    """Write a network as the file that runs fastest here and computes the same, and say what was measured.

    Every layer of grouped kernels is measured as a dense, a grouped and a split one; then the whole network.
    A report goes beside the file, as JSON. Where no form is clearly faster, the dense network is written.
    """
    arguments.existing_folder("--output", output.parent)
    if cache is not None:
        arguments.output_folder("--cache", cache)
    if images is not None and not int8:
        raise ValueError(f"--images {images}: images are for --int8; leave it out")
    from gkp import data, deploy
    from gkp.deploy import runtimes
    from gkp.nets import zoo
    from gkp.utils.progress import Progress, showing

    runtimes.check(runtime)
    _, network, dataset = zoo.named_model(model, dataset)
    import torch

    example = torch.zeros(1, 3, data.IMAGE_SIZES[dataset], data.IMAGE_SIZES[dataset])
    zoo.check_fits(network, example, model, dataset)
    split = _calibration(dataset, images, download) if int8 else None
    with showing(Progress(stream=sys.stderr)):  # standard output is for the result
        report = deploy.export(
            network,
            output,
            example_input=example,
            runtime=runtime,
            batch=batch,
            threads=threads,
            cache=cache,
            int8=int8,
            data=split,
        )
    for line in [*lines(report), f"saved {output} and {output}.json"]:
        print(line)


def _calibration(dataset: str, images: int | None, download: bool) -> Any:
    """The test images of a data set, or the first of them; ValueError for more than there are."""
    from gkp import data

    if dataset not in data.DATASETS:
        raise ValueError(f"--int8 needs images, those of {dataset} are not read here: use gkp.export(data=)")
    split = data.load(dataset, "test", download=download)
    return split if images is None else split.take(images)


def lines(report: dict[str, Any]) -> list[str]:
    """The report of `gkp.export` as text: tables of the layers and of the whole network, what is shipped."""
    from gkp.deploy.forms import FORMS

    rows = [["layer", "kind", "input", "groups", "kept", *FORMS, "taken"]]
    for layer in report["layers"]:
        times = [f"{layer['ms'][form]:.3f}" if form in layer["ms"] else "" for form in FORMS]
        shape = "x".join(map(str, layer["shape"]))
        groups, keep = str(layer["groups"]), str(layer["keep"])
        rows.append([layer["layer"], layer["kind"], shape, groups, keep, *times, layer["taken"]])
    networks = [["network", "least ms", "quartiles", "of dense"]]
    dense = report["network_ms"]["dense"]["least"]
    for name, ms in report["network_ms"].items():
        quartiles = f"{ms['low']:.3f} {ms['median']:.3f} {ms['high']:.3f}"
        networks.append([name, f"{ms['least']:.3f}", quartiles, f"{ms['least'] / dense:.2f}"])
    text = [*(_table(rows) if len(rows) > 1 else ["no layer of grouped kernels"]), "", *_table(networks), ""]
    text.append(
        f"shipped: {report['shipped']}" + ("" if report["form_wins"] else ", since nothing is faster")
    )
    if eight := report.get("int8"):
        told = ", ".join(
            f"{name} {ms:.3f} ms, accuracy {eight['accuracy'][name]:.2%}" for name, ms in eight["ms"].items()
        )
        text.append(f"{told} ({eight['images']} images); int8 is {'' if eight['shipped'] else 'not '}shipped")
    return text


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]
