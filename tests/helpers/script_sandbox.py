"""reproduce.sh in a folder of its own, with a fake uv and Python that note their calls."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("awk", "bash", "cat", "cmp", "cp", "dirname", "mkdir", "rm", "sleep")

# FAIL: a part of the command line that fails, with the exit code CODE.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && { echo "$0"; exit "${UNSUPPORTED:-0}"; }
echo "python $*" >>"$CALLS"
[[ -z ${FAIL:-} || "$*" != *"$FAIL"* ]] || exit "$CODE"
[[ -z ${SLOW:-} || "$*" != *"$SLOW"* ]] || exec sleep 20
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip install uv") cp "$FAKE_UV" "$(dirname "$0")/uv" ;;
    *"--target "*) mkdir -p .cache/uv/bin && cp "$FAKE_UV" .cache/uv/bin/uv ;;
    *" gkp list") printf '| %s |\n' "suite | time" "--- | ---" "method | 1 h" "cifar10-resnet20-short | 2 h";;
    *" gkp report"*)
        echo "path $PYTHONPATH" >>"$CALLS"
        echo "bytecode ${PYTHONDONTWRITEBYTECODE-}:${PYTHONPYCACHEPREFIX-}" >>"$CALLS" ;;
esac
"""
UV = """#!/usr/bin/env bash
[[ $1 == --version ]] && exit
echo "uv $1 $2 index=${UV_DEFAULT_INDEX:-}" >>"$CALLS"
[[ -z ${FAIL:-} || "uv $*" != *"$FAIL"* ]] || { echo "dns error" >&2; exit "$CODE"; }
if [[ $1 == venv ]]; then mkdir -p "${*: -1}/bin" && cp "$FAKE_PYTHON" "${*: -1}/bin/python"; fi
"""


@dataclass
class Sandbox:
    """A copy of the scripts in `root`, and a PATH that holds nothing but a few tools and the fakes."""

    root: Path
    bin: Path

    @property
    def environment(self) -> dict[str, str]:
        fakes = {"FAKE_UV": str(self.bin / "uv.copy"), "FAKE_PYTHON": str(self.bin / "python3")}
        return {"PATH": str(self.bin), "CALLS": str(self.root / "calls"), "CODE": "9", **fakes}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.root / "calls").write_text("")
        command = [self.bin / "bash", self.root / "reproduce.sh", *arguments]
        return subprocess.run(
            command, env=self.environment | environment, cwd="/", capture_output=True, text=True, timeout=30
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    def jobs(self) -> list[str]:
        """What Python ran, without `python -m gkp`."""
        return [
            call.removeprefix("python -m ").removeprefix("gkp ")
            for call in self.calls
            if call.startswith("python ")
        ]

    def setups(self) -> list[str]:
        """The first three words of each call of uv."""
        return [
            " ".join(call.split()[:3]).partition(" index")[0] for call in self.calls if call.startswith("uv ")
        ]

    # What fills an environment: the locked packages, robustbench once more, this package.
    INSTALL = ("uv pip sync", "uv pip install", "uv pip install")


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_sandbox(folder: Path) -> Sandbox:
    """A sandbox in `folder`, with nothing set up yet."""
    box = Sandbox(folder / "a clone", folder / "bin")
    box.root.mkdir()
    box.bin.mkdir()
    shutil.copy(ROOT / "reproduce.sh", box.root)
    (box.root / "requirements.lock").write_text("gkp==1\n")
    for tool in (*TOOLS, "env"):
        (box.bin / tool).symlink_to(shutil.which(tool))
    executable(box.bin / "python3", PYTHON)
    executable(box.bin / "uv", UV)
    executable(box.bin / "uv.copy", UV)
    return box
