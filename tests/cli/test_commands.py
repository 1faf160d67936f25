"""The command line: one clear sentence for a user's error, an exit code that means something."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from record_factory import make_record

from gkp import cli, data, evaluate
from gkp.attacks import Attack
from gkp.attacks.outcome import pack_bits, unpack_bits
from gkp.nets import checkpoint, models
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import Kept, Metric
from gkp.study.runs.run import UNPRUNED, Run
from gkp.study.runs.store import Store
from gkp.utils import files


def gkp(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["gkp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code or 0


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    torch.manual_seed(0)
    checkpoint.save_model(models.create("resnet8").eval(), path, network="resnet8", dataset="digits")
    return path


def test_prune_says_the_cost_and_saves_a_network_that_loads(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pruned.safetensors"
    assert gkp(monkeypatch, "prune", "--model", network, "--output", output) == 0
    before, after, saved = capsys.readouterr().out.splitlines()
    assert float(after.split()[1]) < float(before.split()[1])
    assert str(output) in saved
    assert checkpoint.load_file(output)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "cifar11"], "unknown suite 'cifar11'"),
        (["report", "--suite", "cifar11"], "unknown suite 'cifar11'"),
        (["evaluate", "--suite", "cifar11"], "unknown suite 'cifar11'"),
        (["evaluate"], "--suite NAME or --model NAME"),
        (["prune", "--model", "resnet21", "--output", "x.safetensors"], "resnet21"),
        (["prune", "--model", "gone.safetensors", "--output", "x.safetensors"], "gone.safetensors"),
        (["notebooks", "09_none"], "09_none"),
        (["notebooks", "-p", "suite"], "name=value"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gkp(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--rate", "0"), ("--rate", "1.2"), ("--groups", "7"), ("--method", "l3")]
)
def test_values_out_of_range_name_themselves(
    option: str,
    value: str,
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "pruned.safetensors"
    assert gkp(monkeypatch, "prune", "--model", network, "--output", output, option, value) == 2
    assert value in capsys.readouterr().err
    assert not output.exists()


def test_a_truncated_checkpoint_is_named(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network.write_bytes(network.read_bytes()[:-100])
    assert gkp(monkeypatch, "prune", "--model", network, "--output", tmp_path / "x.safetensors") == 2
    assert "network.safetensors is damaged" in capsys.readouterr().err


def test_a_text_file_named_parquet_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    (folder / "test-00000-of-00001.parquet").write_text("not a table")
    monkeypatch.setenv("GKP_DATA", str(tmp_path))
    monkeypatch.setattr("gkp.nets.zoo.load_model", lambda *_, **__: models.create("resnet8").eval())
    assert gkp(monkeypatch, "evaluate", "--model", "resnet20", "--device", "cpu") == 2
    assert "test-00000-of-00001.parquet" in capsys.readouterr().err


def test_debug_shows_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gkp", "--debug", "run", "--suite", "cifar11"])
    with pytest.raises(ValueError, match="cifar11"):
        cli.main()


def test_list_names_suites_and_methods(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gkp(monkeypatch, "list") == 0
    text = capsys.readouterr().out
    assert "cifar10-resnet20-short" in text
    assert "sr-gkp" in text


@pytest.fixture
def shipped(network: Path, tmp_path: Path) -> Store:
    """A store with one record of `network` on 60 digits, as it really is."""
    digits = data.load("digits", "test").take(60)
    outcome = evaluate.outcome(checkpoint.load_file(network), digits.pixels(), digits.labels, Attack("none"))
    record = make_record(Run("digits", "resnet8", UNPRUNED, weights="x"), "method")
    metrics = {"benign": Metric.of(outcome, Entry(Attack("none"), 60))}
    kept = Kept(0, files.sha256_file(network), network.name, metrics, ())
    Store(tmp_path).write(replace(record, kept={"last": kept}))
    return Store(tmp_path)


def evaluate_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> int:
    return gkp(monkeypatch, "evaluate", "--suite", "method", "--root", store.root, "--device", "cpu")


def test_evaluate_of_one_network_prints_its_accuracy_and_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, path = models.create("resnet8").eval(), tmp_path / "net.safetensors"
    checkpoint.save_model(model, path, network="resnet8", dataset="digits")
    assert gkp(monkeypatch, "evaluate", "--model", path, "--images", 40, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    (benign,) = (line for line in lines if line.startswith("| benign"))
    test = data.load("digits", "test")
    expected = 100 * evaluate.accuracy(model, test.pixels(slice(40)), test.labels[:40])
    title, images, accuracy, interval = (cell.strip() for cell in benign.strip("|").split("|"))
    assert (title, images, accuracy) == ("benign", "40", f"{expected:.2f}")
    low, high = map(float, interval.split(" to "))
    assert low <= expected <= high
    assert high - low > 5


def test_evaluate_looks_for_a_run_below_its_root(
    shipped: Store, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shipped.checkpoints / "mine" / "run.safetensors"
    files.atomic_write_bytes(file, network.read_bytes())
    manifest = {"mine/run.safetensors": {"sha256": files.sha256_file(network)}}
    files.atomic_write_text(shipped.checkpoints / "manifest.json", json.dumps(manifest))
    name = "mine/run"
    options = ("--images", 40, "--device", "cpu")
    assert gkp(monkeypatch, "evaluate", "--model", name, "--root", shipped.root, *options) == 0
    assert "| benign" in capsys.readouterr().out
    assert gkp(monkeypatch, "evaluate", "--model", name, *options) == 2


def test_evaluate_agrees_with_a_true_record(
    shipped: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_again(shipped, monkeypatch) == 0
    assert "1 of 1 accuracies within 0.05 points" in capsys.readouterr().out


def reverse(metric: dict) -> None:
    """Wrong for right and right for wrong, in the JSON of a metric."""
    right = ~unpack_bits(metric["bits"], 60)
    correct = int(right.sum())
    metric |= {"bits": pack_bits(right), "correct": correct, "accuracy": correct / 60}


def test_evaluate_attacks_weights_once_that_several_rules_chose(
    shipped: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = shipped.results.rglob("*.json")
    record = json.loads(path.read_text())
    record["checkpoints"]["best-test"] = copy.deepcopy(record["checkpoints"]["last"])
    path.write_text(json.dumps(record))
    assert evaluate_again(shipped, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "best-test, last" in said or "last, best-test" in said
    assert "1 of 1 accuracies" in said

    metric = record["checkpoints"]["last"]["metrics"]["benign"]  # two that differ are both looked at
    reverse(metric)
    path.write_text(json.dumps(record))
    assert evaluate_again(shipped, monkeypatch) == 1
    assert "1 of 2 accuracies" in capsys.readouterr().out


def test_evaluate_finds_a_record_that_is_not_true(
    shipped: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = shipped.results.rglob("*.json")
    record = json.loads(path.read_text())
    reverse(record["checkpoints"]["last"]["metrics"]["benign"])
    path.write_text(json.dumps(record))
    assert evaluate_again(shipped, monkeypatch) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_evaluate_finds_weights_that_are_not_the_recorded_ones(
    shipped: Store, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    about = {"saved": "again"}
    checkpoint.save_model(
        models.create("resnet8").eval(), network, network="resnet8", dataset="digits", about=about
    )
    assert evaluate_again(shipped, monkeypatch) == 1
    assert "SHA-256 differs" in capsys.readouterr().out


def test_report_check_fails_on_a_difference_and_report_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("<!-- generated:suites -->\nold\n<!-- end -->\n")
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "claims.toml").write_text("")
    assert gkp(monkeypatch, "report", "--check", "--root", tmp_path) == 1
    assert "-old" in capsys.readouterr().out
    assert gkp(monkeypatch, "report", "--root", tmp_path) == 0
    assert gkp(monkeypatch, "report", "--check", "--root", tmp_path) == 0


def test_a_claim_without_a_record_fails_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "claims.toml").write_text(
        '[[claim]]\nid = "T1"\nstatement = "s"\nunit = "%"\nwhy = "w"\nexpect = 90\n'
        'ours = { suite = "method", attack = "benign" }\n'
    )
    assert gkp(monkeypatch, "report", "--root", tmp_path) == 1
    captured = capsys.readouterr()
    assert "[MISSING] T1" in captured.out
    assert "not as expected: T1" in captured.err
