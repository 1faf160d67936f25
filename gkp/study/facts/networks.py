"""What `gkp.prune` does to networks that nobody here built: torchvision's classifiers, one by one."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gkp.nets import cost
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import SkippedLayers, filter_weight, left_out, prunable_layers, summary
from gkp.pruners import prune
from gkp.pruners.kernels.layers import layers_to_prune
from gkp.study.runs.run import RATE
from gkp.utils import files

METHODS = ("l1", "group-norm", "sr-gkp")
SMALL = 64  # height and width at which most convolutional classifiers run; the others at their own
SEARCHED = 512  # input channels up to which kernels are searched here; in wider networks they are drawn
Row = dict[str, Any]
# Reasons for a layer to stay, without what is particular to it.
KINDS = (
    (r"^its filters are summed with those of .*", "summed with those of another layer"),
    (r"^its filters are the network's output", "the network's output"),
    (r"^.*, an? (\w+), mixes its filters.*", r"mixed by \1"),
    (r"^it has groups=.*", "grouped or depthwise"),
    (r"^its \d+ filters go in \d+ sets only.*", "in whole groups only"),
    (r"^(without some of its filters the network \w+ \w+ \w+).*", r"\1"),
)


def networks() -> list[str]:
    """The names of all classifiers of the installed torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The classifier with random weights (seed 0), in eval mode, and the smallest usual image it takes."""
    import torchvision

    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **slow).eval()
        sizes = (SMALL, 224, 299, 384, 518)
        for size in sizes:
            x = torch.rand(1, 3, size, size)
            try:
                with torch.no_grad():
                    model(x)
            except (RuntimeError, AssertionError, ValueError):
                continue
            return model, x
    raise ValueError(f"{name} takes none of the image sizes {sizes}")


def survey(name: str, methods: Iterable[str] = METHODS) -> Row:
    """Prune the classifier by each method, with the proof: what was pruned, left and why, and seconds."""
    model, x = build(name)
    whole = cost.count(model, x)
    started = time.perf_counter()
    offered, left = prunable_layers(model, x), left_out(model, x)
    row: Row = {
        "network": name,
        "image": x.shape[-1],
        "params": whole.params,
        "filters": {"pruned": len(offered), "left": summary(left)},
        "groups": len(channels_of(model, x).bundles),
        "seconds": {"looking and proof": time.perf_counter() - started},
        "methods": {},
    }
    for method in methods:
        row["methods"][method] = _one(model, x, method, whole)
    return row


def _one(model: nn.Module, x: Tensor, method: str, whole: cost.Cost) -> Row:
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedLayers)
        try:
            options = _options(model, x) if method == "sr-gkp" else {}
            pruned = prune(model, method, rate=RATE, example_input=x, **options)
        except ValueError as error:
            return {"refused": str(error), "seconds": time.perf_counter() - started}
    left = cost.count(pruned, x)
    changed = _changed(model, pruned)
    return {
        "layers": changed,
        "macs": left.macs / whole.macs,
        "params": left.params / whole.params,
        "left": "; ".join(sorted({str(w.message) for w in caught if issubclass(w.category, SkippedLayers)})),
        "options": options,
        "seconds": time.perf_counter() - started,
    }


def _options(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Of SR-GKP: one start a layer, or kernels at random; what is tested here depends on neither."""
    layers = layers_to_prune(model, 8, "skip", x, pointwise=True)
    widest = max(filter_weight(layer).shape[1] for layer in layers.values())
    return {"starts": 1} if widest <= SEARCHED else {"strategy": "random"}


def _changed(model: nn.Module, pruned: nn.Module) -> int:
    """Convolutions and linear layers whose weight has another shape."""
    before = {name: p.shape for name, p in model.named_parameters() if name.endswith("weight")}
    after = {name: p.shape for name, p in pruned.named_parameters()}
    return sum(after.get(name) != shape for name, shape in before.items() if len(shape) > 1)


def load(path: Path) -> dict[str, Row]:
    """The rows in the file, {network: row}; none where it does not exist yet."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else ()
    return {row["network"]: row for row in rows}


def run(path: Path, names: Iterable[str], say: Callable[[str], None] = print) -> dict[str, Row]:
    """Survey the networks that `path` has no row of yet; every row is written as soon as it is there."""
    import torchvision

    rows = load(path)
    for name in names:
        if name in rows:
            continue
        rows[name] = survey(name)
        about = {"torch": torch.__version__, "torchvision": torchvision.__version__, "rate": RATE}
        about["threads"] = str(torch.get_num_threads())
        missing = [key for key in networks() if key not in rows]
        text = json.dumps(
            {**about, "missing": missing, "rows": [rows[key] for key in sorted(rows)]}, indent=1
        )
        files.atomic_write_text(path, text + "\n")
        say(line(rows[name]))
    return rows


def page(path: Path) -> str:
    """docs/NETWORKS.md: what the file says, as a table with a sentence before it."""
    content = json.loads(path.read_text("utf-8"))
    rows: list[Row] = content["rows"]
    pruned = [row for row in rows if all("refused" not in row["methods"].get(m, "refused") for m in METHODS)]
    spared = sum(any(result["macs"] > 0.95 for result in row["methods"].values()) for row in pruned)
    frame = pd.DataFrame([_shown(row) for row in rows])
    missing = f" Not tried yet: {', '.join(content['missing'])}." if content["missing"] else ""
    return (
        "# torchvision's classifiers, pruned with proof\n\n"
        f"{len(pruned)} of {len(rows)} classifiers of torchvision {content['torchvision']} are pruned by all "
        f"of {', '.join(METHODS)} at rate {RATE:g}.{missing} For {spared} of them a method removes less than "
        "5 % of the multiply-adds; the last column says what stays, and why. Every result was run beside the "
        "whole network with zeros for what is gone and gave the same; a difference is an error, and there is "
        "no result then. Weights "
        f"are random (seed 0), one image, {content['threads']} CPU thread, PyTorch {content['torch']}. "
        "Layers: convolutions and linear layers whose weight shrank. Where a layer to be grouped has more "
        f"than {SEARCHED} input channels SR-GKP's kernels are drawn at random here (marked *), because what "
        "is tested does not depend on them; else one start a layer is searched. Seconds of a method come "
        "after those of looking at the network and proving, which serve all methods.\n\n"
        "`python -m gkp networks` makes what is missing; `results/networks.json` is the record.\n\n"
        + frame.to_markdown(index=False, disable_numparse=True, stralign="left")
        + "\n"
    )


def _shown(row: Row) -> dict[str, str]:
    shown = {"network": row["network"], "image": f"{row['image']}x{row['image']}"}
    for method in METHODS:
        result = row["methods"][method]
        mark = "*" if result.get("options", {}).get("strategy") == "random" else ""
        shown[f"{method}: layers, MACs left"] = (
            f"refused: {result['refused']}"
            if "refused" in result
            else f"{result['layers']}{mark}, {100 * result['macs']:.0f} %"
        )
    seconds = [row["seconds"]["looking and proof"], *(row["methods"][m]["seconds"] for m in METHODS)]
    shown["seconds: proof, methods"] = " + ".join(f"{value:.0f}" for value in seconds)
    return shown | {"filters left, and why": why(row["filters"]["left"]).replace("|", "/")}


def why(reasons: str) -> str:
    """`surgery.summary` in a few words: layers of each kind of reason, the most frequent first."""
    counts: Counter[str] = Counter()
    starts = list(re.finditer(r"(?:^|; )[\w.-]+(?: and (\d+) more)?: ", reasons))
    for match, following in zip_longest(starts, starts[1:]):
        reason = reasons[match.end() : following.start() if following else None]
        for pattern, kind in KINDS:
            reason = re.sub(pattern, kind, reason)
        counts[reason] += 1 + int(match[1] or 0)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or reasons or "none"


def line(row: Row) -> str:
    """One network in one line."""
    parts = []
    for method, result in row["methods"].items():
        said = (
            "refused"
            if "refused" in result
            else f"{result['layers']} layers, {100 * result['macs']:.0f} % MACs"
        )
        parts.append(f"{method} {said}, {result['seconds']:.0f} s")
    return f"{row['network']}: {'; '.join(parts)}"
