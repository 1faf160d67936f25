"""Table 8: a row for each method compared, corrections that correct, and agreement with the registry."""

from pathlib import Path

import pytest

from gkp import pruners
from gkp.study.analysis import paper
from gkp.study.analysis.method import properties

EXPECTED = Path(__file__).parents[4] / "expected"
ROWS = properties.load(EXPECTED / properties.TABLE.name)
OURS = [(name, label) for name, row in ROWS.items() for label in row["labels"]]
CORRECTED = [(*where, cell) for *where, cell in properties._wrong(ROWS)]


def test_every_method_of_the_papers_tables_has_its_row() -> None:
    compared = set(paper.printed(EXPECTED / "paper_cifar10.csv").method) - {"Unpruned"}
    assert {name.removesuffix("-A").removesuffix("-B") for name in compared} == set(ROWS)


def test_every_label_is_a_method_here_by_the_cited_authors() -> None:
    assert {label for _, label in OURS} >= set(paper.NAMES.values()) - {"unpruned"}
    for name, label in OURS:
        cited = ROWS[name]["cited"].rsplit(maxsplit=1)[0]
        assert cited in pruners.get(label).citation, label


@pytest.mark.parametrize(("name", "column", "cell"), CORRECTED)
def test_a_correction_differs_from_what_is_printed_and_gives_its_reason(name, column, cell) -> None:
    assert set(cell) == {"printed", "corrected", "reason", "source"}
    assert cell["printed"] != cell["corrected"]
    assert min(len(cell["reason"]), len(cell["source"])) > 10


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_all_cells_and_no_other(name) -> None:
    assert set(ROWS[name]) - {"here"} == {"labels", "cited", *properties.COLUMNS}
    assert set(ROWS[name].get("here", {})) <= set(properties.COLUMNS)


def agreements(name: str, label: str) -> dict[str, bool]:
    """Column -> whether the registry says the same, where both say something."""
    method, row = pruners.get(label), ROWS[name]
    cell = {column: properties.corrected(row[column]) for column in properties.COLUMNS}
    found = {
        "type": properties.STRUCTURES[cell["type"]] == method.structure,
        "procedure": cell["procedure"].startswith("one-shot") == (method.schedule == "one-shot"),
    }
    if method.from_scratch or "scratch" in cell["procedure"]:
        found["procedure"] &= method.from_scratch and "scratch" in cell["procedure"]
    if method.schedule == "one-shot":  # what trains has data anyway
        said = {word for word in ("data", "snapshots") if word in cell["setup"]}
        needed = {"data"} if method.needs.startswith("images") else {*method.needs.split()} & {"snapshots"}
        found["setup"] = said == needed
    return found


@pytest.mark.parametrize(("name", "label"), OURS)
def test_the_registry_agrees_but_where_ours_differs_on_purpose(name, label) -> None:
    differing = {column for column, same in agreements(name, label).items() if not same}
    assert differing == set(ROWS[name].get("here", {}))


def test_the_table_shows_both_texts_and_numbers_the_reasons() -> None:
    shown = properties.table(EXPECTED / properties.TABLE.name).set_index("method")
    reasons = properties.corrections(EXPECTED / properties.TABLE.name)
    gal = reasons[(reasons.method == "GAL") & (reasons.column == "type")].iloc[0]
    assert shown.loc["GAL, Lin et al. 2019", "type"] == f"~~F~~ block [{gal['no.']}]"
    assert shown.loc["SFP, He et al. 2018", "type"] == "F"
    assert shown.loc["HRank, Lin et al. 2020", "here"] == "`hrank` (procedure: one-shot, all layers at once)"
    assert sum(cell.startswith("~~") for cell in shown.to_numpy().flatten()) == len(reasons) == len(CORRECTED)
