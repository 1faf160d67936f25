"""Tables and the verdict, generated from records; nothing here holds a number of its own.

`generate` gives the text of every generated file. `write` puts it on disk, `check` compares it with what
is there, so that a number in README.md, docs/ or a table can only come from a record.
"""

from __future__ import annotations

import difflib
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

from gkp.study.analysis import claims
from gkp.study.analysis import comparison as compare
from gkp.study.analysis import paper as published
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.labels import BENIGN
from gkp.study.report.pages import details
from gkp.study.report.pages.blocks import BLOCK, fill_blocks
from gkp.study.report.pages.evidence import Evidence
from gkp.study.report.tables import footnote, self_checks, summary, to_markdown
from gkp.study.runs import suites
from gkp.study.runs.store import Store, is_complete
from gkp.study.runs.suites.grids import LIVE
from gkp.utils.files import atomic_write_text

NETWORKS = Path("results/networks.json")
# The study in one figure: the paper's own network, trained longest, then the grid of all methods.
COMPARED, SEVERAL = ("cifar10-resnet56-57", "cifar10-resnet20-short"), "cifar10-resnet20-seeds"
SHORTER = details.SHORTER  # the networks of the first one after few epochs


def generate(root: str | Path, suite: str | None = None) -> dict[Path, str]:
    """Relative path -> text of every generated file: tables of one suite, or of all and pages."""
    store = Store(root)
    names = [suite] if suite else measured_suites(store)
    texts: dict[Path, str] = {}
    for name in names:
        texts |= suite_tables(name, Comparison(store.of_suite(name)))
        if page := details.details_of(name, store):
            texts[Path("figures") / name / "details.md"] = page
    if suite is None and (store.root / NETWORKS).exists():
        from gkp.study.facts import (
            networks as anybody,  # it prunes, which a report of one suite need not be able to
        )

        texts[Path("docs/NETWORKS.md")] = anybody.page(store.root / NETWORKS)
    return texts | (pages(store) if suite is None else {})


def measured_suites(store: Store) -> list[str]:
    """The committed suites with tables: of their own records, of facts alone, or of others' networks.

    A suite that only attacks other suites' networks counts from the first network that met all its attacks.
    """
    with_records = {record.suite for record in store.all()}
    others = {file.suite for file in store.files()} - with_records
    runs_of = {name: suites.get(name).ordered() if name in suites.SUITES else [] for name in others}
    shown = {n for n, runs in runs_of.items() if not runs or any(is_complete(run, store) for run in runs)}
    return sorted((with_records | shown) - {LIVE})


def pages(store: Store) -> dict[Path, str]:
    """Relative path -> text of README.md and every page of docs/ with generated blocks, filled in."""
    paths = [path for path in (store.root / "README.md",) if path.exists()]
    paths += sorted((store.root / "docs").glob("*.md"))
    texts = {path.relative_to(store.root): path.read_text("utf-8") for path in paths}
    texts = {path: text for path, text in texts.items() if BLOCK.search(text)}
    if not texts:
        return {}
    evidence = Evidence(store, verdicts(store.root), waiting(store.root))
    seen_from = {path: replace(evidence, up="../" * (len(path.parts) - 1)) for path in texts}
    return {path: fill_blocks(text, seen_from[path], path.as_posix()) for path, text in texts.items()}


def write(root: str | Path, suite: str | None = None, *, figures: bool = True) -> list[Path]:
    """Write what `generate` gives, and the figures of the same suites; returns the paths."""
    root, written = Path(root), []
    for path, text in generate(root, suite).items():
        atomic_write_text(root / path, text)
        written.append(path)
    if figures:
        # They draw, which takes seconds to import.
        from gkp.study.report.plots import courses, differences, suites
        from gkp.study.report.plots.style import save

        store = Store(root)
        for folder in sorted({path.parent for path in written} - {Path("."), Path("docs")}):
            suites.save_all(folder.name, Comparison(store.of_suite(folder.name)), root / folder)
        compared = [Comparison(records) for name in COMPARED if (records := store.of_suite(name))]
        if suite is None and compared:
            several = Comparison(store.of_suite(SEVERAL))
            save(differences.verdict(compared, several), root / "figures" / "verdict")
        long, short = (Comparison(store.of_suite(name)) for name in (COMPARED[0], SHORTER))
        if suite in (None, COMPARED[0]) and long.trained and short.trained:
            names = [BENIGN, *compare.paper_attacks(long), *compare.if_sound(long)]
            save(courses.lengths(short, long, names), root / "figures" / COMPARED[0] / "lengths")
    return written


def check(root: str | Path) -> str:
    """Unified diff between what is on disk and what the records give; "" when they agree."""
    root = Path(root)
    diff: list[str] = []
    for path, text in generate(root).items():
        shown = (root / path).read_text("utf-8") if (root / path).exists() else ""
        diff += difflib.unified_diff(
            shown.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{path} (shown)",
            f"{path} (from the records)",
        )
    return "".join(diff)


def verdicts(root: str | Path, suite: str | None = None) -> list[claims.Verdict]:
    """The verdict of every claim about `suite`; without one, about all suites whose records are committed.

    Claims about the live suite are judged when it is asked for, or when it has records. The numbers of the
    paper's own tables are judged as far as there are records; `waiting` counts the others.
    """
    store, chosen = Store(root), claims.load(Path(root) / claims.CLAIMS)
    if suite is not None:
        suites.get(suite)
        chosen = [claim for claim in chosen if claim.ours["suite"] == suite]
    elif not store.all(LIVE):
        chosen = [claim for claim in chosen if claim.ours["suite"] != LIVE]
    printed = [v for v in _of_the_paper(store, suite) if v.status != "MISSING"]
    return claims.judge(chosen, store.entries) + printed


def waiting(root: str | Path, suite: str | None = None) -> dict[str, int]:
    """Suite -> how many numbers of the paper's tables it can reach and has no record of."""
    missing = [v for v in _of_the_paper(Store(root), suite) if v.status == "MISSING"]
    return dict(Counter(v.claim.ours["suite"] for v in missing))


def _of_the_paper(store: Store, suite: str | None) -> list[claims.Verdict]:
    path = store.root / published.TABLES
    misses = claims.explained_misses(store.root / claims.CLAIMS)
    printed = published.claims(path, misses) if path.exists() else []
    chosen = [claim for claim in printed if suite in (None, claim.ours["suite"])]
    return claims.judge(chosen, store.entries)


def suite_tables(suite: str, comparison: Comparison) -> dict[Path, str]:
    """figures/<suite>/results.{md,csv,tex}; {} for a suite without attacked networks.

    The first table has the paper's units, the second pixels. The csv has every training, the tables those of
    `compare.without_extra_seeds`, and say so.
    """
    if not comparison.met:
        return {}
    shown = compare.without_extra_seeds(comparison)
    folder, note = Path("figures") / suite, footnote(shown) + compare.extra_seeds_text(comparison)
    pixel = [name for name, attack in comparison.met.items() if compare.in_pixels(attack)]
    frames = [summary(shown, comparison.met.keys() - set(pixel))]
    frames += [summary(shown, [BENIGN, *pixel])] if pixel else []
    csv = io.StringIO()
    comparison.frame.to_csv(csv, index=False, float_format="%.6g", lineterminator="\n")
    return {
        folder / "results.md": "\n".join([*map(to_markdown, frames), f"{note}\n", self_checks(comparison)]),
        folder / "results.csv": csv.getvalue(),
        folder / "results.tex": "\n".join(frame.to_latex(index=False, escape=True) for frame in frames),
    }
