"""Everything shown comes from records, and a difference is noticed."""

import dataclasses
from pathlib import Path

import pytest
from many_records import many_records
from record_factory import RUN, make_record

from gkp import report
from gkp.attacks import Attack
from gkp.records import Store

README = "# Title\n\n<!-- generated:table:method -->\nold\n<!-- end -->\n\nText.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    record = make_record(suite="method")
    record["provenance"]["data"] = {"images": 100, "official_size": 120}
    Store(tmp_path).write(record)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "claims.toml").write_text(
        '[[claim]]\nid = "T1"\nstatement = "s"\nunit = "%"\nwhy = "w"\nexpect = 90\n'
        'ours = { suite = "method", attack = "benign" }\n'
    )
    return tmp_path


def write(root: Path) -> None:
    report.write(root, figures=False)


def test_check_fails_before_and_agrees_after_writing(root: Path) -> None:
    assert "-old" in report.check(root)
    write(root)
    assert report.check(root) == ""


def test_a_number_changed_by_hand_is_noticed(root: Path) -> None:
    write(root)
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("90.00", "91.00"))
    difference = report.check(root)
    assert "-| l1" in difference
    assert "91.00" in difference
    table = root / "figures" / "method" / "results.csv"
    table.write_text(table.read_text().replace("0.9", "0.8"))
    assert "results.csv (shown)" in report.check(root)


def test_a_changed_record_is_noticed(root: Path) -> None:
    write(root)
    record = Store(root).find(RUN)
    record["checkpoints"]["last"]["metrics"]["benign"]["accuracy"] = 0.89
    Store(root).write(record)
    assert "+| l1" in report.check(root)


def test_text_outside_the_blocks_is_left_alone(root: Path) -> None:
    write(root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:table:method -->\n| method")
    assert text.endswith("<!-- end -->\n\nText.\n")


def test_an_unknown_block_is_named(root: Path) -> None:
    (root / "README.md").write_text(README.replace("table:method", "tables"))
    with pytest.raises(ValueError, match="'tables'"):
        report.check(root)


def test_the_claims_block_shows_status_and_numbers(root: Path) -> None:
    block = report.block("claims", Store(root))
    assert "| OK | T1 | s" in " ".join(block.split())
    assert "90.00 (n=1)" in block


def test_images_short_of_the_official_set_are_never_called_the_test_set(root: Path) -> None:
    assert "100 of the publisher's 120 images" in report.footnote(Store(root).all())


def test_one_seed_shows_its_interval_and_several_their_spread(root: Path) -> None:
    one = report.summary(Store(root).all())
    assert one["benign"].tolist() == ["90.00 ± 7.50"]
    second = make_record(dataclasses.replace(RUN, seed=1), suite="method", correct=92)
    both = report.summary([*Store(root).all(), second])
    assert both["benign"].tolist() == ["91.00 ± 1.41"]


def test_live_digits_are_judged_when_asked_for_or_present(root: Path) -> None:
    claims = root / "expected" / "claims.toml"
    claims.write_text(
        claims.read_text() + claims.read_text().replace("T1", "D1").replace('"method"', '"digits"')
    )
    assert [verdict.claim.id for verdict in report.verdicts(root)] == ["T1"]
    missing = report.verdicts(root, "digits")
    assert [(verdict.claim.id, verdict.status) for verdict in missing] == [("D1", "MISSING")]
    Store(root).write(make_record(suite="digits"))
    assert [verdict.status for verdict in report.verdicts(root)] == ["OK", "OK"]
    assert not any("digits" in str(path) for path in report.generate(root))


def test_columns_are_the_papers_attacks_then_true_labels_then_pixels() -> None:
    attacks = [
        Attack("pgd", eps=1 / 255, step=1 / 1020, iterations=10),
        Attack("fgsm", eps=8 / 255),
        Attack("fgsm", eps=0.01, space="normalized"),
        Attack("fgsm", eps=2 / 255),
        Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3, space="normalized"),
        Attack("fgsm", eps=0.1, space="normalized", labels="predicted"),
        Attack("none"),
        Attack("fgsm", eps=0.01, space="normalized", labels="predicted"),
    ]
    record = make_record()
    metric = record["checkpoints"]["last"]["metrics"]["benign"]
    metrics = {attack.name: metric | {"attack": dataclasses.asdict(attack)} for attack in attacks}
    record["checkpoints"]["last"]["metrics"] = metrics
    assert list(report.attack_titles([record]).values()) == [
        "benign",
        "FGSM 0.01 norm., pred.",
        "FGSM 0.1 norm., pred.",
        "PGD-3 8/255 norm.",
        "FGSM 0.01 norm.",
        "FGSM 2/255",
        "FGSM 8/255",
        "PGD-10 1/255",
    ]


@pytest.mark.parametrize(
    ("attack", "title"),
    [
        ({"kind": "none"}, "benign"),
        ({"kind": "fgsm", "eps": 0.5 / 255, "space": "pixel", "labels": "true"}, "FGSM 0.5/255"),
        ({"kind": "fgsm", "eps": 0.1, "space": "normalized", "labels": "predicted"}, "FGSM 0.1 norm., pred."),
        (
            {"kind": "pgd", "eps": 8 / 255, "iterations": 3, "space": "normalized", "labels": "true"},
            "PGD-3 8/255 norm.",
        ),
    ],
)
def test_attack_titles(attack: dict, title: str) -> None:
    assert report.attack_title(attack) == title


def test_the_readme_of_the_repository_shows_what_the_records_give() -> None:
    assert report.check(".") == ""


def test_what_evaluations_say_about_themselves_is_said_once_with_its_range():
    first, second, third = many_records(("l1",))
    for record, count in ((first, 3), (second, 12), (third, 7)):
        sentences = [f"fgsm_0.1: {count} of 400 images are wrong", "pgd3: 0.75 eps"]
        record["checkpoints"]["last"]["self_check"] = sentences[: 1 + (record is second)]
    lines = report.self_checks([first, second, third]).strip().splitlines()[2:]
    assert lines == [
        "- fgsm_0.1: 3 to 12 of 400 images are wrong (all 3 networks)",
        "- pgd3: 0.75 eps (unpruned + fine-tune, seed 0, last)",
    ]


def test_methods_stand_by_clean_accuracy_below_the_controls():
    frame = report.summary(many_records(("slimming", "l1", "random", "chip")), ["benign"])
    assert list(frame.method)[:3] == ["unpruned", "unpruned + fine-tune", "random"]
    clean = [float(cell.split(" ± ")[0]) for cell in frame["benign"][3:]]
    assert clean == sorted(clean, reverse=True)
    assert set(frame.method[3:]) == {"slimming", "l1", "chip"}
