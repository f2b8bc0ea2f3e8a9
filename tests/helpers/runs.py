"""Real runs of the command line in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FEDERATION = """\
name: digits
seed: 7
model: {{trainer: softmax, source: zeros, dtype: float32}}
task: digits
strategy: {{name: fedavg{strategy}}}
stop: {{rounds: {rounds}}}
patience: {patience}
retries: 3
defaults:
  mover: posix
  job: {{time: "{time}"}}
  work: {{steps: {steps}, batch: 32, lr: 0.5}}
facilities:
"""
FACILITY = """\
  {name}:
    gateway: {{type: local, site: {name}.yaml}}
    data: part-{part}
"""
SITE = """\
name: {name}
scheduler: {{type: local, slots: 2}}
mailbox: mailboxes/{name}
cache: cache
heartbeat: 0.1
checkpoint: 0.2
tasks: {{digits: {{}}}}
"""


PATIENCE_S = 800.0
"""What runs for so long hangs, however slow the machine is."""


@dataclass
class Bench:
    """A folder with a federation in it, and the processes started there."""

    root: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def write(
        self,
        names: tuple[str, ...] = ("amsterdam", "bergen"),
        rounds: int = 3,
        steps: int = 20,
        patience: str = "60s",
        strategy: str = "",
        time: str = "0:10:00",
    ) -> Path:
        text = FEDERATION.format(
            rounds=rounds, steps=steps, patience=patience, strategy=strategy, time=time
        )
        for part, name in enumerate(names):
            text += FACILITY.format(name=name, part=part)
            (self.root / f"{name}.yaml").write_text(SITE.format(name=name))
        path = self.root / "federation.yaml"
        path.write_text(text)
        return path

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hansa.cli", *args],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
        )
        self.processes.append(process)
        return process

    def hansa(self, *args: str, code: int = 0, timeout: float = PATIENCE_S) -> str:
        """Run a command to its end and return its stdout."""
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        self.stderr = err
        return out

    def without_pictures(self) -> None:
        """Do without matplotlib, as a server may: drawing takes longer than a run."""
        (self.root / "lean").mkdir()
        text = "raise ModuleNotFoundError('left out', name='matplotlib')\n"
        (self.root / "lean/matplotlib.py").write_text(text)
        path = [str(self.root / "lean"), os.environ.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))

    def data(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.hansa(*args, "--json", code=code))["data"]

    def end(self) -> None:
        """End what was started here and still runs."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        end_queues(self.root)

    def journal(self, run: str = "r") -> list[dict[str, Any]]:
        path = self.root / "runs" / run / "journal.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line)["event"] for line in lines if line.endswith("\n")]

    def events(self, kind: str, run: str = "r") -> list[dict[str, Any]]:
        return [event for event in self.journal(run) if event["type"] == kind]


def until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Poll until a condition holds and return what it gave."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.005)
    raise AssertionError(f"not within {seconds} s")


def fill_disk(pid: int, size: int) -> None:
    """Let no file of a process grow beyond `size` bytes: its "disk" is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def local_queues(root: Path) -> list[Path]:
    """Return the state files of this test's own local queues."""
    return sorted(root.glob("**/.hansa/*/queue/state.json"))


def end_queues(root: Path) -> None:
    """Cancel, by their ids, the jobs of this test's own queues."""
    for state in local_queues(root):
        jobs = json.loads(state.read_text())["jobs"]
        ids = [job["id"] for job in jobs if job["ended"] is None]
        command = [sys.executable, "-m", "hansa.scheduler.local_queue", "cancel"]
        if ids:
            subprocess.run([*command, "--dir", str(state.parent), *ids], check=True)
