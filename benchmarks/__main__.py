"""Every ratio of speed, measured side by side, kept as records: python -m benchmarks [PART ...]

    python -m benchmarks                      # all parts; two to three hours
    python -m benchmarks attacks training     # some of them

Each part prints its table and is written to results/benchmarks/, from where notebook 04 and
docs/deployment.md take it (`python -m gkp report`). Times belong to the machine, ratios much less.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import attacks, choices, deployment, search, training
from benchmarks.ratios import Times, row
from gkp.deploy import runtimes
from gkp.study.analysis.labels import network_title
from gkp.study.analysis.method import speed
from gkp.study.report.tables import to_markdown
from gkp.study.runs.provenance import provenance
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store
from gkp.utils.progress import Progress, showing

Part = dict[str, Any]  # "rows" as of `benchmarks.ratios.row` where it has ratios, and what else it keeps
GOAL = round(1 / 0.75, 3)  # of large networks: three quarters of the dense time
BIG = ("resnet50", "vgg16_bn")


def of_search(threads: int) -> Part:
    """The search beside plain Python and tensors, and beside a busy process; seconds by width and groups."""
    plain = search.plain_python_ratio()
    rows = [row("search, a layer of 16 channels", _times(plain, ours="ours", other="plain"), "ours", "other")]
    rows[0]["against"] = "the same in plain Python"
    found = {
        "search, 18 layers of a ResNet-20": search.resnet20_seconds(),
        "search, a layer of 512 channels": search.wide_seconds(),
    }
    for what, each in found.items():
        times: Times = {way: [of["median"]] for way, of in each.items()}
        rows.append(row(what, times, "alone", "tensors"))
        rows[-1] |= {"ours": "ours", "against": "without Numba"}
        rows.append(row(what, times, "beside", "alone", goal=0.5))
        rows[-1]["ours"] = "beside a busy process"
    return {"rows": rows, "by_size": search.seconds_by_size()}


def of_sharing(threads: int) -> Part:
    """What sets that groups share cost by Eq. 3, on the authors' ResNet-20."""
    return {"shares": choices.sharing()}


def of_optimality(threads: int) -> Part:
    """How far the beam is from the proved optimum of Eq. 3; minutes."""
    return choices.optimality()


def of_attacks(threads: int) -> Part:
    """FGSM and PGD on the folded network, beside other libraries and our own on the network as it is.

    "at_peak": how many times as fast an attack would be that only multiplies, at the machine's peak.
    """
    rows, equal, peak = [], {}, deployment.machine(threads)["operations"]
    for name, images, rounds in (("FGSM", 200, 9), ("PGD-10", 100, 7), ("PGD-50", 64, 3)):
        found = attacks.compare(name, images, rounds)
        what = f"{name}, ResNet-20, {images} images"
        for against, goal in (("torchattacks", 1.5), ("ART", 2.0), ("unfolded", None)):
            measured = row(what, found["seconds"], "folded", against, goal)
            measured["at_peak"] = round(measured["against_seconds"] * peak / found["operations"], 2)
            rows.append(measured)
        equal[name] = found["ways"]
    return {"rows": rows, "results": equal, "peak": peak}


def of_training(threads: int) -> Part:
    """An epoch of ours beside the usual recipe's, dense and pruned networks."""
    found = training.compare(images=384, rounds=5, threads=threads)
    rows = []
    for network in found["networks"]:
        times = found["seconds"][network]
        for precision in ("float32", "bfloat16"):
            what = f"training, ResNet-20, {'SR-GKP' if network == 'sr-gkp' else network}"
            rows.append(row(what, times, precision, "usual", 1.5))
            rows[-1]["against"] = "usual recipe"
    both = {name: times["float32"] for name, times in found["seconds"].items()}
    rows.append(row("training, ResNet-20", both, "sr-gkp", "dense", 1.0))
    return {"rows": rows, "images": found["images"], "networks": found["networks"]}


def of_deployment(threads: int, name: str, batch: int, runtime: str, root: Path = Path()) -> Part:
    """One network, exported: SR-GKP and filters removed at the same multiply-adds, beside the dense one.

    What an earlier record says of others stays, as it was measured then; of this one, its ratios.
    """
    kept = Store(root).fact(speed.SUITE, "deployment")
    found = dict(kept.facts) if kept else {"rows": [], "networks": [], "roofline": []}
    what = f"{network_title(name)}, batch {batch}, {runtime}"
    with showing(Progress(stream=sys.stderr, prefix=f"{what}, ")):
        new = deployment.measure(name, batch, runtime, threads=threads, rounds=15 if batch == 1 else 7)
    times = {title: [each / 1000 for each in own] for title, own in new.pop("times").items()}
    for ours in ("sr-gkp", "l1"):
        goal = GOAL if name in BIG and ours == "sr-gkp" else None
        measured = row(what, times, ours, "dense", goal)
        for old in (old for old in found["rows"] if (old["what"], old["ours"]) == (what, ours)):
            measured["earlier"] = [*old.get("earlier", ()), old["ratio"]]
        found["rows"] = _with(found["rows"], measured, "what", "ours")
    new.pop("layers")
    found["networks"] = _with(found["networks"], new, "network", "batch", "runtime")
    found["machine"] = deployment.machine(threads)
    for groups in (2, 8) if name in BIG else ():
        ratio = deployment.least_ratio(name, batch, groups, found["machine"])
        least = {"network": name, "batch": batch, "groups": groups, "of_dense": ratio}
        found["roofline"] = _with(found["roofline"], least, "network", "batch", "groups")
    return found


def _with(rows: list[dict[str, Any]], new: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """`rows` with `new` in place of the one that has the same values of `keys`, or at the end."""
    for place, old in enumerate(rows):
        if all(old[key] == new[key] for key in keys):
            return [*rows[:place], new, *rows[place + 1 :]]
    return [*rows, new]


def _times(found: dict[str, float], **keys: str) -> Times:
    return {name: [found[key]] for name, key in keys.items()}


PARTS: dict[str, Callable[..., Part]] = {
    "search": of_search,
    "sharing": of_sharing,
    "optimality": of_optimality,
    "attacks": of_attacks,
    "training": of_training,
    "deployment": of_deployment,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--network", action="append", choices=deployment.BATCHES, help="repeatable")
    parser.add_argument("--batch", action="append", type=int, help="repeatable; by the network without it")
    parser.add_argument("--root", type=Path, default=Path(), help="where results/ is")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")  # of the other libraries
    torch.set_num_threads(given.threads)
    for name in given.parts or PARTS:
        for measure in _measurements(name, given):
            found = {**measure(given.threads), "threads": given.threads}
            Store(given.root).write(Fact.of(name, speed.SUITE, found, provenance("cpu")))
            print(to_markdown(speed.text(given.root, name)), flush=True)


def _measurements(part: str, given: argparse.Namespace) -> list[Callable[[int], Part]]:
    """What is measured and written one after the other."""
    if part != "deployment":
        return [PARTS[part]]
    return [
        partial(of_deployment, name=name, batch=batch, runtime=runtime, root=given.root)
        for name in given.network or deployment.BATCHES
        for batch in given.batch or deployment.BATCHES[name]
        for runtime in runtimes.SUFFIXES
    ]


if __name__ == "__main__":
    main()
