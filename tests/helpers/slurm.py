"""Real Slurm clusters on this host, for tests: a whole facility in a third of a second.

Every cluster has its own controller, its own munge key and its own ports, all on
loopback, so several stand side by side::

    from slurm import Cluster, require_slurm

    @pytest.fixture
    def cluster(tmp_path):
        require_slurm()                      # skips, or fails with CI=true
        with Cluster(tmp_path, "alpha", nodes=2, cpus=2) as made:
            yield made

    cluster.conf                             # for `scheduler: {type: slurm, conf: …}`
    cluster.run("squeue", "--json")          # any command; returns what it printed
    cluster.submit("sleep 5", "--nodes=2")   # a job of somebody else; returns its id
    cluster.load(10, seconds=3)              # many small jobs: a busy queue
    cluster.set_down("alpha1"); cluster.set_up("alpha1")
    cluster.kill_controller(); cluster.start_controller()
    cluster.states(job); cluster.wait(job, "RUNNING", "COMPLETED")

Partitions: ``debug`` (default) and ``high``, whose jobs preempt those of ``debug`` and
put them back into the queue. A requeued job may start again after `requeue_s` (5 at
least; Slurm takes anything less for its default, 120).

Slurm looks for jobs over their limit every 30 s only, so a job killed by walltime needs
60 to 90 s. The home of jobs is an empty folder. `with` (or `stop`) ends every process,
also those of the jobs; afterwards the logs lie in ``<root>/<name>/log``.
"""

from __future__ import annotations

import atexit
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from ports import block

INSTALL = (
    "apt-get install -y --no-install-recommends munge slurm-wlm slurm-wlm-basic-plugins"
)
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/run/munge.socket,cred_expire={requeue_s}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
TmpFS={dir}/tmp/%n
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={dir}/etc/prolog
SwitchType=switch/none
MpiDefault=none
ReturnToService=1
KillWait=3
MinJobAge={min_job_age_s}
SlurmctldTimeout=30
SlurmdTimeout=60
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,bf_resolution=10,bf_window=1440,sched_interval=2,\
batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/log/jobcomp.txt
{gres}
NodeName={name}[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 \
Port=[{first}-{last}] CPUs={cpus} RealMemory=8000 {node_extra} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60:00 State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=60:00 State=UP PriorityTier=10
"""


def slurm_missing() -> list[str]:
    """Return the programs of Slurm that are not installed."""
    return [name for name in _NEEDED if shutil.which(name, path=_PATH) is None]


def require_slurm() -> None:
    """Skip the test if Slurm is not installed; with ``CI=true`` fail it."""
    missing = slurm_missing()
    if not missing:
        return
    reason = f"Slurm is not installed ({', '.join(missing)}); try: {INSTALL}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Cluster:
    """One Slurm cluster.

    Args:
        root: An existing directory; the cluster is seen at ``<root>/<name>``.
        name: Its name, of letters; the nodes are ``<name>1``, ``<name>2``, …
        base_port: The controller's port; the nodes' are 11 and more above it. 0 looks
            for free ones.
        nodes: Number of nodes.
        cpus: CPUs that each node claims to have.
        gpus: GPUs that each node claims to have (files, no devices).
        requeue_s: How long a job that was requeued waits at least.
        min_job_age_s: How long the controller remembers a job that is over.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        base_port: int = 0,
        nodes: int = 2,
        cpus: int = 2,
        *,
        gpus: int = 0,
        requeue_s: int = 5,
        min_job_age_s: int = 3600,
    ) -> None:
        self.name, self.nodes, self.cpus, self.gpus = name, nodes, cpus, gpus
        self.path = root / name
        self.port = base_port or block(12 + nodes)
        self._settings = {"requeue_s": requeue_s, "min_job_age_s": min_job_age_s}
        # Slurm and munge make sockets there; their paths have 107 characters at most.
        self.dir = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.path.symlink_to(self.dir)

    # --- its life -----------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all daemons and wait until every node is idle."""
        atexit.register(self.stop)
        self._write()
        try:
            self._munged()
            self.start_controller()
            for node in self.node_names:
                self._daemon("slurmd", "-N", node)
            self.until(lambda: self._node_states() == {"idle"}, 100, "nodes idle")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every process of the cluster, jobs too; keep its files at `path`."""
        atexit.unregister(self.stop)
        if not self.dir.is_dir():
            return
        end = time.monotonic() + 100
        while alive := list(self._processes()):
            assert time.monotonic() < end, f"these do not end: {alive}"
            for pid in alive:
                _kill(pid)
            time.sleep(0.01)
        shutil.rmtree(self.dir / "run")
        shutil.rmtree(self.dir / "spool")
        if self.path.is_symlink():
            self.path.unlink()
            shutil.move(self.dir, self.path)

    def start_controller(self) -> None:
        """Start the controller and wait until it answers."""
        self._daemon("slurmctld")
        self.until(self.answers, 100, "the controller answers")

    def kill_controller(self, *, hard: bool = False) -> None:
        """End the controller; running jobs and the nodes live on.

        Args:
            hard: Give it no time to note what happened in its last seconds: jobs
                that started then may be put back into the queue when it returns.
        """
        pid = self._pid("slurmctld")
        _kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
        self.until(lambda: _state(pid) in "Z", 100, "the controller is dead")

    # --- using it -----------------------------------------------------------------

    @property
    def conf(self) -> Path:
        """The cluster's ``slurm.conf``, for the driver and for SLURM_CONF."""
        return self.dir / "etc" / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """An environment in which Slurm's commands talk to this cluster."""
        mine = {name: text for name, text in os.environ.items() if "SLURM" not in name}
        return {**mine, "PATH": _PATH, "SLURM_CONF": str(self.conf)}

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes."""
        return [f"{self.name}{number + 1}" for number in range(self.nodes)]

    def call(
        self, *command: str, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; it may fail."""
        return subprocess.run(
            command, env=self.env, input=text, capture_output=True, text=True,
            timeout=60, check=False, cwd=self.dir,
        )  # fmt: skip

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command against this cluster; return what it printed."""
        done = self.call(*command, text=text)
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout

    def submit(self, shell: str, *options: str) -> str:
        """Submit a job that Hansa knows nothing of; return its id."""
        log = self.dir / "log" / "jobs.txt"
        return self.run(
            "sbatch", "--parsable", f"--output={log}", "--open-mode=append",
            "--chdir=/", *options, text=f"#!/bin/sh\n{shell}\n",
        ).strip()  # fmt: skip

    def load(self, jobs: int, seconds: float = 2.0, seed: int = 1) -> list[str]:
        """Fill the queue with sleeping jobs on whole nodes; return their ids.

        Args:
            jobs: How many.
            seconds: How long each one runs, on average.
            seed: Another seed, other sizes and durations.
        """
        draw = random.Random(seed)  # noqa: S311 - not for secrets
        return [
            self.submit(
                f"exec sleep {draw.uniform(0.5, 1.5) * seconds:.2f}",
                f"--nodes={draw.randint(1, self.nodes)}", "--exclusive",
                "--time=1", "--job-name=load",
            )
            for _ in range(jobs)
        ]  # fmt: skip

    def set_down(self, node: str) -> None:
        """Set a node DOWN: its jobs fail or are requeued."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def set_up(self, node: str) -> None:
        """Bring a node back; it may still be busy ending what ran there."""

        def up() -> bool:
            self.call("scontrol", "update", f"nodename={node}", "state=resume")
            state = self.run("sinfo", "-h", "-n", node, "-o", "%T")
            return not {"down", "down*", "drained"} & set(state.split())

        self.until(up, 20, f"{node} is back")

    def states(self, job: str) -> str:
        """Return the state of a job in Slurm's own word (``RUNNING``)."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return text.partition("JobState=")[2].split()[0]

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until a job is in one of these states; return the state."""
        self.until(lambda: self.states(job) in states, seconds, f"{job} in {states}")
        return self.states(job)

    def answers(self) -> bool:
        """Tell whether the controller answers."""
        return "UP" in self.call("scontrol", "ping").stdout.split("is ")[-1]

    def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until a condition holds, asking it again and again."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{self.name}: not in time: {what}"
            time.sleep(0.05)

    # --- inside -------------------------------------------------------------------

    def _write(self) -> None:
        for folder in ("etc", "state", "spool", "log", "run", "gpu", "home"):
            (self.dir / folder).mkdir()
        for node in self.node_names:
            (self.dir / "tmp" / node).mkdir(parents=True)
        key = self.dir / "etc" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for number in range(self.gpus):
            (self.dir / "gpu" / str(number)).touch()
        gres = self.dir / "etc" / "gres.conf"
        files = f"{self.dir}/gpu/[0-{self.gpus - 1}]"
        gres.write_text(f"Name=gpu File={files}\n" if self.gpus else "")
        # The login shells of jobs must not read what a developer has at home.
        prolog = self.dir / "etc" / "prolog"
        prolog.write_text(f"#!/bin/sh\necho export HOME={self.dir}/home\n")
        prolog.chmod(0o755)
        self.conf.write_text(
            _CONF.format(
                name=self.name, dir=self.dir, user=getpass.getuser(),
                host=socket.gethostname().partition(".")[0], port=self.port,
                first=self.port + 11, last=self.port + 10 + self.nodes,
                nodes=self.nodes, cpus=self.cpus,
                gres="GresTypes=gpu" if self.gpus else "",
                node_extra=f"Gres=gpu:{self.gpus}" if self.gpus else "",
                **self._settings,
            )
        )  # fmt: skip

    def _munged(self) -> None:
        self._daemon(
            "munged", "--force", f"--key-file={self.dir}/etc/munge.key",
            f"--socket={self.dir}/run/munge.socket",
            f"--pid-file={self.dir}/run/munged.pid",
            f"--log-file={self.dir}/log/munged.log",
            f"--seed-file={self.dir}/state/munged.seed",
        )  # fmt: skip

    def _daemon(self, *command: str) -> None:
        # Into files: a daemon that keeps a pipe open would never let `run` return.
        with (self.dir / "log" / "start.txt").open("a") as notes:
            subprocess.run(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=notes,
                stderr=notes, check=True, timeout=30, start_new_session=True,
            )  # fmt: skip

    def _pid(self, daemon: str) -> int:
        return int((self.dir / "run" / f"{daemon}.pid").read_text())

    def _node_states(self) -> set[str]:
        return set(self.call("sinfo", "-h", "-N", "-o", "%T").stdout.split())

    def _processes(self) -> Iterator[int]:
        """Find the daemons, the jobs and whatever these started.

        All have the cluster's own directory in their environment, or are descendants
        of one that has.
        """
        parents: dict[int, int] = {}
        own: set[int] = set()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                said = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                words = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone, or not ours
            if words[0] != "Z":
                parents[int(path.name)] = int(words[1])
                if bytes(self.dir) in said:
                    own.add(int(path.name))
        for pid in parents.keys() - _ancestors(os.getpid(), parents):
            if own & _ancestors(pid, parents):
                yield pid


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    """Return a process and those above it."""
    found: set[int] = set()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _state(pid: int) -> str:
    """Return the letter of a process's state; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
