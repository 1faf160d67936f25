"""The status of the replication: claims by what they are about, counted so that a reader can add them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from gkp.study.analysis.claims import Verdict
from gkp.study.analysis.labels import CONTROL
from gkp.study.report.pages.evidence import Evidence, compact
from gkp.study.report.tables import claims_table, to_markdown
from gkp.study.runs.suites.grids import LIVE

METHOD = "sr-gkp"
FEW = 20  # claims that a report prints one by one
STATUSES = ("OK", "MISS", "OPEN", "MISSING")
# First letter of a claim's id -> what is printed there, by the paper or by its release.
PAPER = {
    "C": "multiply-adds and parameters of networks",
    "P": "accuracies of Tables 9 to 12, a row per method",
    "W": "accuracies of the ResNet-56, with eps as large in pixels as the paper's",
}
RELEASE = {
    "S": "kernels that its search keeps",
    "B": "accuracy of its ResNet-20",
    "R": "accuracy that its code computes",
    "N": "accuracy that its notebook prints",
}
OPPONENTS = ("the equally fine-tuned network", "the untouched network", "other methods", "its own variants")
CHOSEN = "any of these, at the epoch that is best on test images"
GROUPS = {
    "paper": "what the paper prints",
    "release": "what the release prints or computes",
    "differences": "SR-GKP against another network on the same images",
    "statements": "what else we state about networks, attacks and code",
    "assumptions": "assumptions that the records refute",
}


def group(verdict: Verdict) -> str:
    """What the claim is about, a key of GROUPS.

    "assumptions" are claims that were written down to be put to the test and that the records refute: their
    opposite is what we say.
    """
    claim = verdict.claim
    if claim.id[0] in PAPER:
        return "paper"
    if claim.id[0] in RELEASE:
        return "release"
    if "against" in claim.ours and claim.ours["label"] == METHOD:
        return "differences"
    return "assumptions" if claim.verdict == "miss" else "statements"


def grouped(judged: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Group -> its verdicts, without those of the live suite, whose records are not committed."""
    committed = [verdict for verdict in judged if verdict.claim.ours["suite"] != LIVE]
    return {name: [v for v in committed if group(v) == name] for name in GROUPS}


def status(evidence: Evidence) -> str:
    """What is printed, and how much of it we meet; how differences and other statements come out."""
    groups = grouped(evidence.judged)
    numbers = groups["paper"] + groups["release"]
    differences, further = groups["differences"], groups["statements"] + groups["assumptions"]
    ahead, behind, unclear = (_count(differences, name) for name in ("OK", "MISS", "OPEN"))
    held, refuted, undecided = (_count(further, name) for name in ("OK", "MISS", "OPEN"))
    counts = [len(part) for part in (numbers, differences, further)]
    return (
        f"What is printed:\n\n{compact(printed(numbers, evidence.waiting))}\n"
        f"Of {len(differences)} differences of SR-GKP to another network on the same images it is shown "
        f"ahead in {ahead} and behind in {behind}; {unclear} are open. Of {len(further)} further statements "
        f"about networks, attacks and code {held} hold, {refuted} are refuted and {undecided} are open. "
        f"In sum {' + '.join(map(str, counts))} = {sum(counts)} claims with a record, all in "
        f"[docs/claims.md]({evidence.up}docs/claims.md) with number, tolerance and reason.\n"
    )


def _count(verdicts: Sequence[Verdict], status: str) -> int:
    return sum(verdict.status == status for verdict in verdicts)


def compared(evidence: Evidence) -> str:
    """Differences of SR-GKP by what it is compared with and by direction, as a table."""
    return compact(directions(grouped(evidence.judged)["differences"]))


def printed(judged: Sequence[Verdict], waiting: Mapping[str, int]) -> pd.DataFrame:
    """Numbers that the paper and its release print: within tolerance, outside, and without a record."""
    rows = []
    for letter, title in (PAPER | RELEASE).items():
        source = "paper" if letter in PAPER else "release"
        statuses = [verdict.status for verdict in judged if verdict.claim.id[0] == letter]
        none = statuses.count("MISSING") + (sum(waiting.values()) if letter == "P" else 0)
        rows.append((f"{source}: {title}", statuses.count("OK"), statuses.count("MISS"), none))
    frame = pd.DataFrame(rows, columns=["printed", "met", "missed", "no record yet"])
    return with_sums(frame, "sum")


def directions(judged: Sequence[Verdict]) -> pd.DataFrame:
    """Differences of SR-GKP to others by what they are compared with: ahead, behind, not told apart."""
    rows = []
    for title in (*OPPONENTS, CHOSEN):
        statuses = [verdict.status for verdict in judged if opponent(verdict) == title]
        rows.append((title, statuses.count("OK"), statuses.count("MISS"), statuses.count("OPEN")))
    frame = pd.DataFrame(rows, columns=["SR-GKP, beside", "shown ahead", "shown behind", "open"])
    return with_sums(frame, "sum")


def opponent(verdict: Verdict) -> str:
    """What a difference of SR-GKP is taken to, in words."""
    if verdict.claim.ours.get("rule", "last") != "last":
        return CHOSEN
    against = verdict.claim.ours["against"]
    tuned, untouched, others, variants = OPPONENTS
    known = {CONTROL: tuned, "unpruned": untouched}
    return known.get(against, variants if against.startswith(METHOD) else others)


def with_sums(frame: pd.DataFrame, title: str) -> pd.DataFrame:
    """The counts with their sum to the right, titled, and below."""
    frame = frame.assign(**{title: frame.iloc[:, 1:].sum(axis=1)})
    frame.loc[len(frame)] = ["sum", *frame.iloc[:, 1:].sum()]
    return frame


def all_of(evidence: Evidence, name: str) -> str:
    """The table of one group's claims, expected and ours; ValueError for an unknown group."""
    if name not in GROUPS:
        raise ValueError(f"no group of claims {name!r}: use one of {', '.join(GROUPS)}")
    return to_markdown(claims_table(grouped(evidence.judged)[name]))


# ---- the end of a report -------------------------------------------------------------------------


def closing(judged: Sequence[Verdict], waiting: Mapping[str, int]) -> list[str]:
    """What the report prints in the end: the claims, how many came out as expected, what waits.

    Few claims have a line each; of many those that did not come out as expected do, and the rest are counted.
    waiting: suite -> how many numbers of the paper's tables have no record.
    """
    wrong = [verdict for verdict in judged if not verdict.as_expected]
    many = len(judged) > FEW
    lines = to_markdown(counted(judged)).splitlines() + [""] if many else []
    lines += [verdict.line for verdict in (wrong if many else judged)]
    if many:
        lines.append("One by one, with number, tolerance and reason: docs/claims.md")
    lines.append(f"{len(judged) - len(wrong)} of {len(judged)} claims came out as expected")
    if waiting:
        names = ", ".join(f"{count} of {name}" for name, count in waiting.items())
        lines.append(f"{sum(waiting.values())} numbers of the paper's tables wait for records: {names}")
    return lines


def counted(judged: Sequence[Verdict]) -> pd.DataFrame:
    """One row per group of claims: how many are met, missed, open or without a record, and as expected."""
    rows = []
    for name, title in GROUPS.items():
        verdicts = [verdict for verdict in judged if group(verdict) == name]
        counts = [str([v.status for v in verdicts].count(status)) for status in STATUSES]
        expected = sum(verdict.as_expected for verdict in verdicts)
        rows.append([title, *counts, f"{expected} of {len(verdicts)}"])
    return pd.DataFrame(rows, columns=["claims", *STATUSES, "as expected"])
