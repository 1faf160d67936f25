"""`python -m gkp ...`: prune, evaluate, run, merge, report, networks, list, notebooks.

Imports stand inside the commands because these carry the names of the modules they call.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gkp.cli import arguments, cluster, terminal

app = typer.Typer(
    help="Grouped kernel pruning and what it does to robustness: prune, attack, compare, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file that registers a method of yours; repeatable.")
    ] = None,
) -> None:
    """Grouped kernel pruning and what it does to robustness: prune, attack, compare, report.

    Exit codes: 0 done; 1 a claim, a check or a run failed; 2 wrong input, in one sentence; 130 Ctrl-C.
    """
    arguments.environment(os.environ)
    if plugin or os.environ.get("GKP_PLUGINS"):
        arguments.plugins(plugin or [])


@app.command()
def prune(
    output: Annotated[Path, typer.Option(help="Where the pruned network goes, a .safetensors file.")],
    model: Annotated[str, typer.Option(help="A name of the zoo, or a .safetensors file of this tool.")],
    method: Annotated[str, typer.Option(help="Which method; `python -m gkp list` names them.")] = "sr-gkp",
    rate: arguments.Rate = 0.4375,
    groups: arguments.Groups = None,
    dataset: arguments.Dataset = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, an option of the method, see `list`; repeatable.")
    ] = None,
    snapshot: Annotated[
        list[Path] | None,
        typer.Option(help="A file of the network from earlier in its training, for tmi-gkp; repeatable."),
    ] = None,
    epochs: arguments.Epochs = None,
    device: arguments.Device = "cpu",
    download: arguments.Download = False,
) -> None:
    """Prune a network, say what it costs before and after, and save it.

    Methods that score with images take them from the training part of the data set. Multiply-adds are those
    of one image of its size.
    """
    arguments.output_file(output, model)
    arguments.pick_device(device)
    from gkp.cli.pruning import Wanted, prune_to_file

    how = Wanted(method, rate, groups, option or (), snapshot or (), epochs, device, download)
    for line in prune_to_file(output, model, dataset, how):
        print(line)


@app.command()
def evaluate(
    suite: arguments.AnySuite = None,
    model: Annotated[str | None, typer.Option(help="One network instead: a zoo name or a file.")] = None,
    dataset: arguments.Dataset = None,
    images: arguments.Images = None,
    root: arguments.Root = Path("."),
    device: arguments.Device = "auto",
    download: arguments.Download = False,
) -> None:
    """Attack the shipped checkpoints of a suite again and compare with their records; or attack one network.

    A checkpoint differs when an accuracy is more than 0.05 points from what its record says of the same
    images, or when its file's SHA-256 is not the recorded one.
    """
    if (suite is None) == (model is None):
        raise ValueError("give either --suite NAME or --model NAME")
    if suite is not None and dataset is not None:
        raise ValueError(f"--dataset {dataset}: a suite has its own; leave it out")
    arguments.suites([] if suite is None else [suite])
    arguments.pick_device(device)
    from gkp.study.report import recheck as reevaluate
    from gkp.utils.progress import Progress

    context = reevaluate.context(root, device, Progress(), download=download)
    if model is not None:
        print(reevaluate.named(model, dataset, images, context))
        return
    text, agree = reevaluate.suite(str(suite), context, images)
    print(text)
    if not agree:
        raise typer.Exit(1)


@app.command()
def run(
    suite: arguments.SuiteNames,
    budget_minutes: arguments.BudgetMinutes = None,
    jobs: arguments.Jobs = 1,
    root: arguments.Root = Path("."),
    device: arguments.Device = "auto",
    download: arguments.Download = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay training steps as CUDA graphs; nothing on a CPU.")
    ] = False,
    side_by_side: arguments.SideBySide = None,
    slurm: cluster.Slurm = None,
) -> None:
    """Prune, fine-tune and attack everything of these suites that has no record yet.

    Killing it loses at most one epoch, five where networks train side by side, or one attack; the same
    command continues.
    """
    arguments.suites(suite)
    if slurm is not None:
        if len(suite) > 1:
            raise ValueError(f"--slurm shares one suite among jobs: give {suite[0]} alone, then the next")
        if budget_minutes is not None:
            raise ValueError("--budget-minutes is for this machine: give minutes=N in --slurm")
        options = {"jobs": jobs, "device": device, "download": download}
        options |= {"cuda_graphs": cuda_graphs, "side_by_side": side_by_side}
        cluster.run(suite[0], slurm, root, **options)
        return
    arguments.pick_device(device)
    from gkp.study.execute.suite import run_suite
    from gkp.study.runs import effort
    from gkp.study.runs.store import Store
    from gkp.utils.progress import Progress

    again = f"`python -m gkp run --suite {' --suite '.join(suite)}` continues"
    try:
        summary = run_suite(
            suite,
            budget_minutes=budget_minutes,
            jobs=jobs,
            root=root,
            device=device,
            progress=Progress(),
            download=download,
            cuda_graphs=cuda_graphs,
            side_by_side=side_by_side,
        )
    except KeyboardInterrupt:
        places = f"finished runs are in {root / 'results'}, finished epochs in {root / 'work' / 'state'}"
        print(f"interrupted: {places}; {again}", file=sys.stderr)
        sys.exit(130)
    numbers = f"{len(summary.done)} done, {len(summary.skipped)} had a record, {len(summary.left)} left"
    print(f"{', '.join(suite)}: {numbers}")
    if spent := effort.sentence(r for r in Store(root).all() if r.stem in summary.done):
        print(spent)
    if summary.failed:
        print(f"failed: {', '.join(summary.failed)}; the reasons stand above", file=sys.stderr)
        raise typer.Exit(1)
    if summary.left:
        print(f"the time is up; {again}")


@app.command()
def merge(
    source: Annotated[Path, typer.Argument(help="A folder with results/ of another machine.")],
    root: arguments.Root = Path("."),
) -> None:
    """Take records and weights that another machine computed into this repository.

    Everything is checked against its SHA-256 before anything is written. No record is replaced by one that
    says less.
    """
    from gkp.study.runs.merge import merge as take
    from gkp.study.runs.store import Store

    print("\n".join(take(source, Store(root))))


@app.command()
def report(
    suite: arguments.AnySuite = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail when something shown differs.")
    ] = False,
    root: arguments.Root = Path("."),
) -> None:
    """Make tables, figures and pages from the records, and print the verdict on every claim."""
    arguments.suites([] if suite is None else [suite])
    from gkp.study.report import build as reports
    from gkp.study.report.pages.status import closing

    if check:
        difference = reports.check(root)
        if difference:
            print(difference, end="")
            print("what is shown differs from the records: run `python -m gkp report`", file=sys.stderr)
            raise typer.Exit(1)
    else:
        for path in reports.write(root, suite):
            print(f"wrote {path}")
    judged = reports.verdicts(root, suite)
    for line in closing(judged, reports.waiting(root, suite)):
        print(line)
    if wrong := [verdict.claim.id for verdict in judged if not verdict.as_expected]:
        print(f"not as expected: {', '.join(wrong)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def networks(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all of them without names.")] = None,
    root: arguments.Root = Path("."),
) -> None:
    """Prune torchvision's classifiers, prove the results, and keep a row of each in results/networks.json.

    Networks that have a row are skipped; `report` makes docs/NETWORKS.md of it.
    """
    from gkp.study.facts import networks as anybody
    from gkp.study.report import build as report
    from gkp.utils.nearest import unknown

    known = anybody.networks()
    for name in names or ():
        if name not in known:
            raise ValueError(unknown("torchvision classifier", name, known, more="docs/NETWORKS.md has all"))
    anybody.run(root / report.NETWORKS, names or known, lambda text: print(text, flush=True))


@app.command("list")
def list_() -> None:
    """The suites and the pruning methods."""
    from gkp.study.report.pages.blocks import methods_table, suites_table
    from gkp.study.report.tables import to_markdown

    print(to_markdown(suites_table()))
    print(to_markdown(methods_table()), end="")


@app.command()
def notebooks(
    names: Annotated[list[str] | None, typer.Argument(help="Which notebooks; all without names.")] = None,
    suite: Annotated[str | None, typer.Option(help="Parameter `suite`, where a notebook has it.")] = None,
    compute: Annotated[bool, typer.Option("--compute", help="Parameter `compute`: run live.")] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE; every notebook must have it.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Replace the committed notebooks; else the result is in work/.")
    ] = False,
    jobs: arguments.Jobs = 1,
    root: arguments.Root = Path("."),
) -> None:
    """Execute the notebooks with papermill, by the Python that runs this."""
    arguments.suites([] if suite is None else [suite])
    from gkp.study.report import notebooks as runner

    strict = runner.parse_parameters(parameter or [])
    offered = ({"suite": suite} if suite else {}) | ({"compute": True} if compute else {})
    plan = runner.planned(root, names or [], strict, offered, write=write)
    for path, executed in runner.run_all(plan, root=root, write=write, jobs=jobs):
        print(f"{path.name} -> {executed}", flush=True)


def main() -> None:
    """The command line; see `gkp.cli.terminal` for exit codes and how errors are told."""

    def command() -> object:
        return app(prog_name="python -m gkp", standalone_mode=False)

    sys.exit(terminal.run(command, debug="--debug" in sys.argv))
