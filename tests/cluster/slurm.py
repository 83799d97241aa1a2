"""SLURM on this machine, as one node with two processors and two GPUs by name only."""

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Final, final

from .programs import (
    Started,
    environment,
    find,
    free_port,
    missing,
    wait_until,
)


# Seconds for which the credential of a job is valid. Steps must start within them, and
# a job that is queued again waits for so long: two minutes by default.
EXPIRY: Final = 15

# The node is called localhost, by which the processes of a job find each other.
_CONFIGURATION: Final = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire={expiry}
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=sched_interval=1
KillWait=5
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def why_not() -> str:
    """Return why SLURM cannot be started here, or nothing."""
    lacking = missing("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
    if lacking:
        return lacking
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


@final
class Slurm:
    """A controller and a node; they and their jobs are ended at exit."""

    def __init__(self, folder: Path) -> None:
        """Write the configuration to a new folder."""
        self._folder = folder
        self._daemons: list[Started] = []
        for name in ("state", "spool", "slurmctld", "slurmd"):
            (folder / name).mkdir(parents=True)
        text = _CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            expiry=EXPIRY,
            controller_port=free_port(),
            node_port=free_port(),
        )
        (folder / "slurm.conf").write_text(text)
        # Devices that every machine has.
        gpus = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
        (folder / "gres.conf").write_text(gpus)
        self.env = {**environment(folder), "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Slurm":
        try:
            for name in ("slurmctld", "slurmd"):
                command = str(find(name)), "-D"
                daemon = Started(self._folder / name, *command, env=self.env)
                self._daemons.append(daemon)
            is_up = lambda: self.call("sinfo", "-h", "-o", "%T", check=False) == "idle"
            wait_until(is_up, self._logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("scancel", "--user=root", check=False)
            wait_until(lambda: self.call("squeue", "-h", check=False) == "", self._logs)
        finally:
            for daemon in reversed(self._daemons):
                daemon.process.terminate()
                daemon.__exit__()

    def submit(self, folder: Path, *arguments: str) -> "Job":
        """Submit a job whose working directory is a folder."""
        printed = self.call("sbatch", "--parsable", *arguments, folder=folder)
        return Job(self, folder, printed)

    def call(
        self, *command: str, folder: Path | None = None, check: bool = True
    ) -> str:
        """Return what a command of SLURM prints."""
        done = subprocess.run(
            command, env=self.env, cwd=folder, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, (command, done.stderr, self._logs())
        return done.stdout.strip()

    def _logs(self) -> str:
        return "\n".join(daemon.log[-3000:] for daemon in self._daemons)


@final
class Job:
    """A job of `Slurm`."""

    def __init__(self, slurm: Slurm, folder: Path, number: str) -> None:
        self._slurm = slurm
        self._folder = folder
        self._number = number

    @property
    def log(self) -> str:
        """The text that all starts of the job have printed so far."""
        logs = self._folder.glob(f"*-{self._number}.log")
        return "".join(log.read_text("utf-8", "replace") for log in logs)

    def field(self, name: str) -> str:
        """Return a field of `scontrol show job`, such as JobState."""
        shown = self._slurm.call("scontrol", "show", "job", self._number)
        found = re.search(rf"\b{name}=(\S*)", shown)
        assert found is not None, shown
        return found[1]

    def wait_for(self, words: str) -> None:
        """Wait until the job has printed some words."""

        def is_printed() -> bool:
            printed = words in self.log
            assert printed or self.field("JobState") not in ENDED, self._describe()
            return printed

        wait_until(is_printed, self._describe)

    def wait_for_restart(self) -> None:
        """Wait until the job has started again."""

        def is_again() -> bool:
            state = self.field("JobState")
            assert state not in ENDED, self._describe()
            return state == "RUNNING" and self.field("Restarts") == "1"

        wait_until(is_again, self._describe)

    def end(self) -> str:
        """Wait until the job has ended, and return its state."""
        wait_until(lambda: self.field("JobState") in ENDED, self._describe)
        return self.field("JobState")

    def signal(self, name: str) -> None:
        """Send a signal to the processes of the job, as its time limit does."""
        self._slurm.call("scancel", f"--signal={name}", self._number)

    def cancel(self) -> None:
        """Cancel the job."""
        self._slurm.call("scancel", self._number)

    def limit_minutes(self, minutes: int) -> None:
        """Set the time limit of the job."""
        name = f"JobId={self._number}"
        self._slurm.call("scontrol", "update", name, f"TimeLimit={minutes}")

    def minutes(self) -> int:
        """Return for how many full minutes the job has run."""
        hours, minutes, _ = map(int, self.field("RunTime").split(":"))
        return 60 * hours + minutes

    def _describe(self) -> str:
        shown = self._slurm.call("scontrol", "show", "job", self._number, check=False)
        return f"{shown}\n{self.log[-5000:]}"


ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
