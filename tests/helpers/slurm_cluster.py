"""A Slurm cluster of one node on this machine, of Debian's packages slurm-wlm and munge, without systemd.

    python tests/helpers/slurm_cluster.py COMMAND ...      runs the command in it, then ends it

Key, sockets, state and logs are in a temporary folder. The node claims more cores than there may be, so that
some jobs run at once. Works for root and, where the packages let it, for others.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CORES = 8
PARTITION = "short"
PATIENCE_SECONDS = 30
DAEMONS = ("munged", "slurmctld", "slurmd")
SYSTEM = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # not on everybody's PATH

MUNGE = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
# A job that was put into the queue again may not start before its credential has expired; 5 s are the least.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=localhost CPUs={cores} State=UNKNOWN
PartitionName={partition} Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What is not installed here, in words; "" when a cluster can be made."""
    lacking = [
        name for name in (*DAEMONS, "sbatch", "srun", "squeue", "scontrol", "scancel") if not find(name)
    ]
    return f"needs Debian's packages slurm-wlm and munge: no {', '.join(lacking)}" if lacking else ""


def find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextmanager
def daemon(name: str, *arguments: object, log: Path) -> Iterator[subprocess.Popen]:
    """A program that runs in the foreground until the end of the block."""
    with open(log, "ab") as output:
        command = [find(name), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment variables by which Slurm's commands find the cluster, which ends with the block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)  # munge's socket must be reachable
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=folder,
                user=getpass.getuser(),
                cores=CORES,
                partition=PARTITION,
                controller_port=free_port(),
                node_port=free_port(),
            )
        )
        environment = {"SLURM_CONF": str(configuration)}
        munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
        stack.enter_context(daemon("munged", "--foreground", "--force", *munge, log=folder / "munge.out"))
        await_(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(daemon("slurmctld", "-D", "-f", configuration, log=folder / "slurmctld.out"))
        stack.enter_context(
            daemon("slurmd", "-D", "-N", "localhost", "-f", configuration, log=folder / "slurmd.out")
        )
        await_(lambda: "idle" in asked(environment, "sinfo", "--noheader", "--format=%T"), folder)
        try:
            yield environment
        finally:
            asked(environment, "scancel", f"--user={getpass.getuser()}")
            await_(lambda: not asked(environment, "squeue", "--noheader").strip(), folder)


def asked(environment: dict[str, str], *command: str) -> str:
    """What one of Slurm's commands answers; "" when it fails."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def await_(condition: Callable[[], bool], folder: Path) -> None:
    """Wait until it holds; RuntimeError with what the programs said when it does not."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            said = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
                for pattern in ("*.out", "*.log")
                for path in sorted(folder.glob(pattern))
            )
            raise RuntimeError(f"the cluster does not answer\n{said}")
        time.sleep(0.2)


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    with cluster() as variables:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | variables).returncode)
