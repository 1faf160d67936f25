"""The figures of a suite: which its records allow, and their files."""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from gkp.study.analysis import seeds, training
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import evenly, paper_attacks, pixel_attacks
from gkp.study.analysis.labels import BENIGN, CONTROL
from gkp.study.report.plots import attacks, courses, differences
from gkp.study.report.plots.attacks import CURVE, METHOD
from gkp.study.report.plots.style import save

FEW = 3  # rows that a forest plot is worth
MANY = 20  # epochs whose course is worth a figure
NAMES = {"trainings", "differences", "epsilon", "epsilon-pgd", "ladder", "choices", "course"}


def save_all(suite: str, records: Comparison, folder: str | Path) -> list[Path]:
    """Write every figure that the suite's records allow as PDF and PNG into `folder`; returns the paths.

    What an earlier report left of the others in NAMES goes. Networks of fewer seeds than most, and seeds that
    others lack, are left out. A suite that only attacks another's networks has those of its attacks alone.
    """
    figures: dict[str, Figure] = {}
    records = evenly(records)
    trained_here = any(record.suite == suite for record in records)
    control = reference(records)
    if trained_here and control and len(records.labels) > FEW:
        names = differences.headlines(records)
        several = not seeds.against(records, names[0], control).empty
        draw = differences.trainings if several else differences.forest
        figures["trainings" if several else "differences"] = draw(
            records, [BENIGN, *paper_attacks(records), *names[1:]], control
        )
        if len(pixel_attacks(records, "fgsm")) > 1 and control == CONTROL and not several:
            figures["epsilon"] = attacks.epsilon_curve(records)
    stronger = records.having(CURVE)
    if trained_here and control == CONTROL and {METHOD, CONTROL} <= set(stronger.labels):
        figures["epsilon-pgd"] = attacks.epsilon_curve(stronger, "pgd", CURVE)
    if attacks.climbed(records):
        figures["ladder"] = attacks.ladder(records)
    if training.courses(records):
        figures["choices"] = courses.choices(records)
    if trained_here and len(records.trained) and records.trained[0].run.epochs > MANY:
        figures["course"] = courses.over_epochs(records)
    for name, kind in itertools.product(NAMES - figures.keys(), ("pdf", "png")):
        (Path(folder) / f"{name}.{kind}").unlink(missing_ok=True)
    return [path for name, figure in figures.items() for path in save(figure, Path(folder) / name)]


def reference(records: Comparison) -> str:
    """What a suite's networks are compared with: the method whose variants they are, else the control.

    "" where there is neither.
    """
    labels = {record.label for record in records}
    if METHOD in labels and any(label.startswith(f"{METHOD} (") for label in labels):
        return METHOD
    return CONTROL if CONTROL in labels else ""
