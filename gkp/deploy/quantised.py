"""Eight-bit networks for ONNX Runtime: static quantisation, what it costs in accuracy, what it gains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkp.data import Split
from gkp.deploy import graphs, runtimes
from gkp.deploy.choice import GAIN, Setting
from gkp.deploy.timing import interleaved

CALIBRATION = 128  # images, at most half of them all


def check(int8: bool, data: Any, runtime: str) -> None:
    """ValueError where eight bits are asked for without what they need."""
    if not int8:
        if data is not None:
            raise ValueError("data is for int8=True, to calibrate with: leave it out")
        return
    if runtime != "onnxruntime":
        raise ValueError(f'int8=True is for runtime="onnxruntime", not for {runtime!r}: leave it out')
    if not isinstance(data, Split) or len(data) < 2:
        raise ValueError("int8=True needs images: give data=gkp.data.load(...), at least 2 of them")


def report(
    file: Path, run: runtimes.Run, x: Tensor, data: Any, setting: Setting
) -> tuple[dict[str, Any], Path]:
    """(what eight bits cost and gain, the smaller file) of the network in `file`, which `run` runs.

    Ranges are those of the first images of `data`, at most `CALIBRATION` and half of all; accuracies those on
    the others. The smaller file is to be shipped where it is faster.
    """
    images = min(CALIBRATION, len(data) // 2)
    smaller = file.with_name("int8.onnx")
    _quantise(file, smaller, _Batches(data.pixels(slice(0, images)), len(x)))
    quick = runtimes.load(setting.runtime, smaller, setting.threads)
    times = interleaved({"float": run, "int8": quick}, x, rounds=setting.rounds)
    rest = range(images, len(data))
    accuracy = {
        name: _accuracy(network, data, rest, len(x)) for name, network in (("float", run), ("int8", quick))
    }
    told = {
        "shipped": times["int8"].least < GAIN * times["float"].least,
        "ms": {name: timing.least for name, timing in times.items()},
        "accuracy": accuracy,
        "images": len(rest),
        "calibration_images": images,
    }
    return told, smaller


def _quantise(file: Path, smaller: Path, batches: _Batches) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_name("prepared.onnx")
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        smaller,
        batches,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Without special instructions two products of full range would overflow 16 bits.
        reduce_range=not torch.cpu._is_vnni_supported(),
    )


class _Batches:
    """Calibration images as onnxruntime's CalibrationDataReader gives them, batch after batch."""

    def __init__(self, images: Tensor, batch: int) -> None:
        self.batches = _filled(images, batch)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {graphs.INPUT: batch.numpy()}


def _filled(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches of one size; the last one repeats its last image."""
    for part in images.split(batch):
        yield torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)])


def _accuracy(run: runtimes.Run, data: Any, rest: range, batch: int) -> float:
    """Fraction of the images at `rest` that are classified right."""
    right = 0
    for start in range(rest.start, rest.stop, batch):
        index = slice(start, min(start + batch, rest.stop))
        images = data.pixels(index)
        logits = run(next(_filled(images, batch)))[: len(images)]
        right += int((logits.argmax(1) == data.labels[index]).sum())
    return right / len(rest)
