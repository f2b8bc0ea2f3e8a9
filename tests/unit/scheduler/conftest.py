"""A real local queue, for tests that need its processes."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hansa.scheduler.base import Answer, JobSpec, converse
from hansa.scheduler.local import LocalOptions, LocalScheduler


class LiveQueue:
    """Runs the driver's commands against a queue of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dir = root / "queue"
        self.driver = LocalScheduler(LocalOptions(), root)

    def use(self, **options) -> None:
        self.driver = LocalScheduler(LocalOptions(**options), self.root)

    def spec(self, name, shell, **fields) -> JobSpec:
        return JobSpec(
            name=name,
            nodes=fields.pop("nodes", 1),
            time_s=fields.pop("time_s", 60),
            command=["/bin/sh", "-c", shell],
            directory=self.root,
            log=self.root / f"{name}.log",
            warning_s=fields.pop("warning_s", 0),
            **fields,
        )

    def run(self, command) -> Answer:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def submit(self, name, shell, *, idle=None, **fields) -> str:
        script = self.root / f"{name}.sh"
        script.write_text(self.driver.render(self.spec(name, shell, **fields)))
        more = [] if idle is None else ["--idle", str(idle)]
        return self.enqueue(script, *more)

    def enqueue(self, script, *more) -> str:
        steps = self.driver.submit(script)
        return converse(steps, lambda command: self.run([*command, *more]))

    def status(self):
        return converse(self.driver.jobs(), self.run)

    def job(self, job):
        return self.status()[job]

    def cancel(self, *ids) -> None:
        converse(self.driver.cancel(ids), self.run)

    def until(self, condition, seconds=100.0):
        """Return the first true value of a condition, asked again and again."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not in time: {self.status()}"
            time.sleep(0.02)
        return value

    def ended(self, job):
        self.until(lambda: self.job(job).state.final)
        return self.job(job)

    def daemon(self) -> int | None:
        with suppress(FileNotFoundError, ValueError):
            return int((self.dir / "daemon.pid").read_text())
        return None

    def log(self, name) -> str:
        path = self.root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        jobs = self.status() if self.dir.exists() else {}
        alive = [job.id for job in jobs.values() if not job.state.final]
        for job in alive:
            with suppress(OSError, ValueError, IndexError):
                noted = (self.dir / f"{job}.run").read_text()
                os.killpg(int(noted.split()[0]), signal.SIGKILL)
        self.cancel(*alive)
        for job in alive:
            self.ended(job)
        daemon = self.daemon()
        if daemon is not None:
            with suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGTERM)
        shutil.rmtree(self.dir, ignore_errors=True)


@pytest.fixture
def queue(tmp_path):
    live = LiveQueue(tmp_path)
    yield live
    live.close()
