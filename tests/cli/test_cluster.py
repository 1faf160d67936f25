"""`--slurm KEY=VALUE,...`: every mistake is one sentence that names the fix, and right values arrive."""

from pathlib import Path

import pytest

from gkp.cli import cluster, commands
from gkp.cli.arguments import Misuse
from gkp.study.execute.cluster import slurm


def test_right_values_arrive() -> None:
    text = "partition=gpu, gpus=1,cpus=4,minutes=60,jobs=8,account=a-b,constraint=a100&ib,memory_gb=1.5"
    assert cluster.parse(f"{text},executor=local,wait=no") == {
        "partition": "gpu",
        "gpus": 1,
        "cpus": 4,
        "minutes": 60,
        "jobs": 8,
        "account": "a-b",
        "constraint": "a100&ib",
        "memory_gb": 1.5,
        "executor": "local",
        "wait": False,
    }


def test_every_key_is_one_of_the_allocation() -> None:
    fields = set(slurm.Allocation.__dataclass_fields__)
    assert set(cluster.KEYS) == fields | {"wait"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give KEY=VALUE"),
        ("gpu", "'gpu': give KEY=VALUE"),
        ("jobs=2,", "give KEY=VALUE"),
        ("partitio=gpu", "did you mean partition"),
        ("nodes=2", "unknown key 'nodes'"),
        ("jobs=2,jobs=3", "jobs stands twice"),
        ("jobs=0", "jobs '0': give a whole number from 1 to 1000"),
        ("jobs=1e3", "jobs '1e3'"),
        ("jobs=", "jobs ''"),
        ("gpus=-1", "gpus '-1'"),
        ("cpus=0", "cpus '0'"),
        ("minutes=0.5", "minutes '0.5': give a whole number"),
        ("minutes=1:00:00", "minutes '1:00:00'"),
        ("memory_gb=64G", "memory_gb '64G': give a number"),
        ("memory_gb=nan", "memory_gb 'nan'"),
        ("partition=", "partition=: give a name"),
        ("partition=--wrap", "partition=--wrap: give a name"),
        ("account=a b", "account=a b: give a name"),
        ("constraint=$(id)", "constraint=$(id): give a name"),
        ("executor=pbs", "executor=pbs: give slurm or local"),
        ("wait=1", "wait=1: give yes or no"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_fix(text: str, said: str) -> None:
    with pytest.raises(Misuse) as error:
        cluster.parse(text)
    message = error.value.format_message()
    assert message.startswith("--slurm")
    assert said in message
    assert len(message.splitlines()) == 1


def test_nothing_is_submitted_where_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "missing", lambda *_: [])
    monkeypatch.setattr(slurm, "submit", lambda *_, **__: pytest.fail("submitted"))
    cluster.run("digits", {"jobs": 2}, tmp_path)
    assert "nothing to submit" in capsys.readouterr().out


def test_the_time_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give minutes=N in --slurm"):
        commands.run(["digits"], budget_minutes=5.0, root=tmp_path, slurm={"jobs": 1})


def test_jobs_share_one_suite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give digits alone, then the next"):
        commands.run(["digits", "method"], root=tmp_path, slurm={"jobs": 1})
