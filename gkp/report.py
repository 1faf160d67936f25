"""Tables and the verdict, generated from records; nothing here holds a number of its own.

`generate` gives the text of every generated file. `write` puts it on disk, `check` compares it with what
is there, so that a number in the README or a table can only come from a record.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gkp import claims, suites
from gkp.files import atomic_write_text
from gkp.records import Record, Store, misses_target, table

# The columns of a table in the README; all of them stand in figures/<suite>/results.md.
SHORT = (
    "benign",
    "fgsm_norm_0.01_predicted",
    "pgd3_norm_8/255_step2/255_true",
    "fgsm_pixel_1/255_true",
    "pgd10_pixel_0.5/255_step0.125/255_true",
)
LIVE = "digits"  # this suite's records are made on the reader's machine and are not committed
BLOCK = re.compile(r"(<!-- generated:([\w:-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
COUNT = re.compile(r"\d+(?= of \d+ images)")  # in a sentence of a self-check


def generate(root: str | Path, suite: str | None = None) -> dict[Path, str]:
    """Relative path -> text of every generated file: tables of one suite or of all committed ones, README."""
    store = Store(root)
    names = [suite] if suite else sorted({record["suite"] for record in store.all()} - {LIVE})
    texts: dict[Path, str] = {}
    for name in names:
        texts |= suite_tables(name, store.of_suite(name))
    readme = store.root / "README.md"
    if suite is None and readme.exists():
        texts[Path("README.md")] = fill_blocks(readme.read_text("utf-8"), store)
    return texts


def write(root: str | Path, suite: str | None = None, *, figures: bool = True) -> list[Path]:
    """Write what `generate` gives, and the figures of the same suites; returns the paths."""
    root, written = Path(root), []
    for path, text in generate(root, suite).items():
        atomic_write_text(root / path, text)
        written.append(path)
    if figures and importlib.util.find_spec("gkp.plots"):
        from gkp import plots

        for folder in sorted({path.parent for path in written} - {Path(".")}):
            plots.save_all(folder.name, Store(root).of_suite(folder.name), root / folder)
    return written


def check(root: str | Path) -> str:
    """Unified diff between what is on disk and what the records give; "" when they agree."""
    root = Path(root)
    parts: list[str] = []
    for path, text in generate(root).items():
        shown = (root / path).read_text("utf-8") if (root / path).exists() else ""
        parts += difflib.unified_diff(
            shown.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{path} (shown)",
            f"{path} (from the records)",
        )
    return "".join(parts)


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
    return claims.judge(chosen, store.of_suite) + printed


def waiting(root: str | Path, suite: str | None = None) -> dict[str, int]:
    """Suite -> how many numbers of the paper's tables it can reach and has no record of."""
    missing = [v for v in _of_the_paper(Store(root), suite) if v.status == "MISSING"]
    return dict(Counter(v.claim.ours["suite"] for v in missing))


def _of_the_paper(store: Store, suite: str | None) -> list[claims.Verdict]:
    from gkp import published  # it reads tables that are made here

    path = store.root / published.TABLES
    found = published.claims(path) if path.exists() else []
    chosen = [claim for claim in found if suite in (None, claim.ours["suite"])]
    return claims.judge(chosen, store.of_suite)


# ---- tables --------------------------------------------------------------------------------------


def suite_tables(suite: str, records: Sequence[Record]) -> dict[Path, str]:
    """figures/<suite>/results.{md,csv,tex}; {} for a suite without attacked networks.

    The first table has the paper's units, the second pixels.
    """
    titles = attack_titles(records)
    if not titles:
        return {}
    folder, note = Path("figures") / suite, footnote(records)
    pixel = [name for name in titles if "_pixel_" in name]
    frames = [summary(records, titles.keys() - set(pixel))]
    frames += [summary(records, ["benign", *pixel])] if pixel else []
    csv = io.StringIO()
    table(records).drop(columns="bits").to_csv(csv, index=False, float_format="%.6g", lineterminator="\n")
    return {
        folder / "results.md": "\n".join([*map(to_markdown, frames), f"{note}\n", self_checks(records)]),
        folder / "results.csv": csv.getvalue(),
        folder / "results.tex": "\n".join(frame.to_latex(index=False, escape=True) for frame in frames),
    }


def summary(records: Sequence[Record], attacks: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per method and checkpoint rule: costs, then accuracy in percent, by default under every attack.

    One seed: ± half the 95 % Wilson interval. Several seeds: mean ± standard deviation over seeds.
    """
    long = table(records)
    if long.empty:
        return long
    titles = attack_titles(records)
    if attacks is not None:
        chosen = set(attacks)
        titles = {name: title for name, title in titles.items() if name in chosen}
    order = {label: place for place, label in enumerate(_label_order(records))}
    rows = []
    for (label, rule), group in sorted(
        long.groupby(["label", "rule"], sort=False), key=lambda item: (order[item[0][0]], item[0][1])
    ):
        row: dict[str, Any] = {"method": marked(label, long), "checkpoint": rule}
        row["MACs (M)"] = f"{group.macs.mean() / 1e6:.2f}"
        row["params (M)"] = f"{group.params.mean() / 1e6:.3f}"
        for attack, title in titles.items():
            row[title] = _cell(group[group.attack == attack])
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.drop(columns="checkpoint") if set(frame["checkpoint"]) == {"last"} else frame


def marked(label: str, long: pd.DataFrame) -> str:
    """The label, with a dagger where a network of it misses the target of MACs."""
    return f"{label} †" if long[long.label == label]["misses_target"].any() else label


def _cell(group: pd.DataFrame) -> str:
    """ "91.98 ± 0.53": half the Wilson interval of one seed, or the spread over several."""
    if group.empty:
        return "–"
    values = 100 * group.accuracy
    half = values.std() if len(values) > 1 else 50 * (group.high - group.low).iloc[0]
    return f"{values.mean():.2f} ± {half:.2f}"


def _label_order(records: Sequence[Record]) -> list[str]:
    """Baseline and controls first, then methods by their clean accuracy, the best first."""
    first = ("baseline", "unpruned", "unpruned + fine-tune", "random")
    long = table(records)
    clean = long[long.attack == "benign"].groupby("label").accuracy.mean() if len(long) else {}
    place = {name: (0, position, name) for position, name in enumerate(first)}
    labels = {record["label"] for record in records}
    return sorted(labels, key=lambda name: place.get(name, (1, -clean.get(name, 0.0), name)))


def attack_titles(records: Sequence[Record]) -> dict[str, str]:
    """Attack name -> column title: clean, the paper's attacks, the same with true labels, then pixels."""
    attacks = {
        name: metric["attack"]
        for record in records
        for kept in record.get("checkpoints", {}).values()
        for name, metric in kept["metrics"].items()
    }
    ordered = sorted(attacks, key=lambda name: _place(attacks[name]))
    return {name: attack_title(attacks[name]) for name in ordered}


def _place(attack: dict[str, Any]) -> tuple:
    kinds = ("none", "highpass", "fgsm", "pgd", "autoattack")
    relabelled = attack["space"] == "normalized" and attack["kind"] == "fgsm" and attack["labels"] == "true"
    order = (attack["kind"] != "none", attack["space"] == "pixel", relabelled, kinds.index(attack["kind"]))
    return (*order, attack["iterations"], attack.get("restarts", 0), attack["eps"], attack.get("theta", 0.0))


def attack_title(attack: dict[str, Any]) -> str:
    """{"kind": "fgsm", ...} -> "FGSM 1/255" in pixels, "FGSM 0.01 norm., pred." in the paper's units."""
    if attack["kind"] == "none":
        return "benign"
    if attack["kind"] == "highpass":
        return f"high-pass {attack['theta']:g}"
    if attack["kind"] == "autoattack":
        return f"AutoAttack {attack['eps'] * 255:g}/255"
    eps = attack["eps"]
    pixel = attack["space"] == "pixel" or attack["kind"] == "pgd"
    size = f"{eps * 255:g}/255" if pixel else f"{eps:g}"
    kind = attack["kind"].upper() + (f"-{attack['iterations']}" if attack["kind"] == "pgd" else "")
    kind += f" +{attack['restarts']}" if attack.get("restarts") else ""
    marks = ("" if attack["space"] == "pixel" else " norm.") + (
        ", pred." if attack["labels"] == "predicted" else ""
    )
    marks += ", loss in float64" if attack.get("loss") == "float64" else ""
    return f"{kind} {size}{marks}"


def footnote(records: Sequence[Record], attacks: Iterable[str] | None = None) -> str:
    """What the table's numbers are counted on, and what its words mean."""
    titles = attack_titles(records)
    if not titles:
        return "No records yet."
    chosen = set(titles if attacks is None else attacks)
    sizes: dict[int, set[str]] = {}
    for name, n in table(records).groupby("attack")["n"].max().items():
        if name in chosen:
            sizes.setdefault(n, set()).add(name)
    ordered = [
        (n, [title for name, title in titles.items() if name in names])
        for n, names in sorted(sizes.items(), reverse=True)
    ]
    counted = "; ".join(f"{n:,} images: {', '.join(names)}" for n, names in ordered)
    facts = next(r["provenance"]["data"] for r in records if "data" in r["provenance"])
    official = facts["official_size"]
    whole = "" if facts["images"] == official else f" of the publisher's {official:,}"
    seeds = sorted({record["config"]["seed"] for record in records if "seed" in record["config"]})
    spread = (
        "half the 95 % Wilson interval"
        if len(seeds) == 1
        else "standard deviation over seeds (one seed: half the interval)"
    )
    return (
        f"Accuracy in % ± {spread}. Test set: {facts['images']:,}{whole} images. {counted}. "
        '"norm.": eps counts after normalisation, the paper\'s unit (0.01 is about 0.5/255); '
        '"pred.": the attack uses predicted labels, as the released code does. '
        "MACs and parameters in the usual convention."
        + (" † More than 1 % off the target of MACs." if any(map(misses_target, records)) else "")
    )


def self_checks(records: Sequence[Record]) -> str:
    """What the evaluations found wrong with themselves, one line for all networks alike; "" when nothing.

    Sentences that differ in their count of images alone are one line, with the least and the most.
    """
    found: dict[str, tuple[list[int], list[str]]] = {}
    networks = 0
    for record in records:
        for rule, kept in record.get("checkpoints", {}).items():
            networks += 1
            for sentence in kept["self_check"]:
                who = f"{record['label']}, seed {record['config']['seed']}, {rule}"
                counts, whose = found.setdefault(COUNT.sub("{}", sentence), ([], []))
                counts += map(int, COUNT.findall(sentence))
                whose.append(who)
    lines = []
    for sentence, (counts, whose) in found.items():
        span = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts))))) if counts else ""
        who = f"all {networks} networks" if len(whose) == networks else "; ".join(whose)
        lines.append(f"- {sentence.replace('{}', span)} ({who})\n")
    return f"\nThe evaluations about themselves:\n\n{''.join(lines)}" if lines else ""


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; text stays text."""
    return frame.to_markdown(index=False, disable_numparse=True, stralign="left") + "\n"


# ---- README --------------------------------------------------------------------------------------


def fill_blocks(text: str, store: Store) -> str:
    """Fill in between `<!-- generated:NAME -->` and `<!-- end -->`; ValueError for an unknown NAME."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], store)}{match[3]}", text)


def block(name: str, store: Store) -> str:
    """The text of one generated block: "claims", "suites", "methods" or "table:SUITE"."""
    kind, _, suite = name.partition(":")
    if kind == "claims":
        judged = [v for v in verdicts(store.root) if v.claim.ours["suite"] != LIVE]
        return to_markdown(claims_table(judged))
    if kind == "suites":
        return to_markdown(suites_table())
    if kind == "methods":
        return to_markdown(methods_table().drop(columns="options"))  # they stand in `gkp list`
    if kind == "table":
        records = store.of_suite(suite)
        return f"{to_markdown(summary(records, SHORT))}\n{footnote(records, SHORT)}\n"
    raise ValueError(f"README.md: no generated block {name!r}; use claims, suites, methods or table:SUITE")


def claims_table(judged: Sequence[claims.Verdict]) -> pd.DataFrame:
    """The verdicts as a table: what is claimed, expected, ours, tolerance with its reason."""
    return pd.DataFrame(
        {
            "": verdict.status,
            "id": verdict.claim.id,
            "claim": verdict.claim.statement,
            "expected": f"{verdict.claim.wanted} {verdict.claim.unit}",
            "tolerance": f"± {verdict.claim.tolerance:g}" if verdict.claim.tolerance else "none",
            "ours": verdict.ours_text,
            "because": verdict.claim.explanation or verdict.claim.why,
        }
        for verdict in judged
    )


def suites_table() -> pd.DataFrame:
    """What can be run, what it needs and about how long it takes on 2 CPU cores."""
    rows = []
    for name in suites.SUITES:
        suite = suites.get(name)
        minutes = sum(suites.minutes(run) for run in suite.ordered())
        length = f"{minutes / 60:.0f} h" if minutes > 90 else f"{max(minutes, 1):.0f} min"
        rows.append({"suite": name, "what": suite.title, "needs": suite.needs, "2 CPU cores": length})
    return pd.DataFrame(rows)


def methods_table() -> pd.DataFrame:
    """The registered pruning methods: what each removes, when, by what, and who published it."""
    from gkp import pruners

    entries = sorted((pruners.get(name) for name in pruners.methods()), key=lambda m: (m.structure, m.name))
    return pd.DataFrame(
        {
            "method": entry.name,
            "removes": entry.structure,
            "when": entry.schedule,
            "scores with": entry.needs,
            "how": entry.summary,
            "source": entry.citation,
            "options": ", ".join(f"{name}={value!r}" for name, value in entry.options.items()) or "none",
        }
        for entry in entries
    )
