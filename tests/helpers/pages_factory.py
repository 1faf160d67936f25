"""Verdicts and evidence for tests of generated pages."""

from gkp.study.analysis.claims import Claim, Verdict
from gkp.study.report import build
from gkp.study.report.pages.evidence import Evidence
from gkp.study.runs.store import Store


def verdict(name: str, status: str, values: tuple[float, ...] = (1.0,), interval=None) -> Verdict:
    claim = Claim(name, "s", "points", "w", {"suite": "s", "attack": "a", "label": "l"}, expect=1.0)
    return Verdict(claim, values, status, interval)


def committed_evidence() -> Evidence:
    """That of the repository."""
    return Evidence(Store("."), build.verdicts("."), build.waiting("."))
