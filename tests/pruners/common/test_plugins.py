"""The plug-in of docs/extend.md, taken from there, and what can go wrong with one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkp import cli, pruners
from gkp.nets import models
from gkp.pruners.common import plugins, registry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plug-in outlives its test, and none of another file's tests is there."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setenv(plugins.VARIABLE, "")
    _forget_plugins()
    yield
    _forget_plugins()


def _forget_plugins() -> None:
    for name in [name for name in sys.modules if name.startswith("gkp_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def entropy(tmp_path: Path) -> Path:
    """The example of docs/extend.md as a file."""
    blocks = re.findall(r"```python\n(# entropy\.py.*?)```", (ROOT / "docs/extend.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    code = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(code) < 15
    path = tmp_path / "entropy.py"
    path.write_text(blocks[0])
    return path


def test_the_documented_example_prunes(entropy: Path, clean: None) -> None:
    plugins.load([entropy, entropy])
    model = models.create("resnet8")
    pruned = pruners.prune(model, "entropy", rate=0.5)
    share = model.layer1[0].conv1.weight.detach().abs().flatten(1)
    share = share / share.sum(1, keepdim=True)
    kept = torch.distributions.Categorical(share).entropy().topk(8).indices.sort().values
    assert torch.equal(pruned.layer1[0].conv1.weight, model.layer1[0].conv1.weight[kept])
    assert "entropy" in pruners.methods()


def test_the_command_line_and_worker_processes_know_it(
    entropy: Path, clean: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gkp", "--plugin", str(entropy), "list"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert not ending.value.code
    assert "entropy" in capsys.readouterr().out
    code = "import gkp; assert 'entropy' in gkp.methods()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True)


def test_errors_name_the_file(tmp_path: Path, clean: None) -> None:
    with pytest.raises(FileNotFoundError, match="missing.py"):
        plugins.load([tmp_path / "missing.py"])
    (tmp_path / "broken.py").write_text("def (")
    with pytest.raises(ValueError, match="broken.py, line 1"):
        plugins.load([tmp_path / "broken.py"])
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"ends in \.py"):
        plugins.load([tmp_path / "text.txt"])
    (tmp_path / "taken.py").write_text(
        "from gkp.pruners.common.registry import register\n"
        "@register('l1', structure='filter', citation='', summary='')\ndef mine(model, **_): ...\n"
    )
    with pytest.raises(ValueError, match="'l1' is already registered"):
        plugins.load([tmp_path / "taken.py"])


def test_two_files_of_one_name_are_told_apart(
    tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / folder / "twin.py" for folder in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    with pytest.raises(ValueError, match=r"other/twin\.py and .*one/twin\.py have one name: rename one"):
        plugins.load(files)
    assert os.environ[plugins.VARIABLE] == str(files[0])  # the first stays, and may be given again
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join(map(str, files)))
    with pytest.raises(ValueError, match="rename one of them"):
        plugins.load_from_environment()


def test_a_plug_in_may_have_dataclasses_and_one_that_fails_is_not_taken_for_loaded(
    tmp_path: Path, clean: None
) -> None:
    path = tmp_path / "settings.py"
    path.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(RuntimeError, match="not yet"):
        plugins.load([path])
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Settings:\n    rate: float = 0.5\n"
    )
    plugins.load([path])
    assert sys.modules["gkp_plugin_settings"].Settings().rate == 0.5
