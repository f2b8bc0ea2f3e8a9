"""A worker like the one inside of a block: runs the jobs of a block queue in turn."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.scheduler.block_queue import Store
from hansa.scheduler.block_run import Limits, work


def serve(directory: Path, limits: Limits) -> None:
    """Take one job after the other, the oldest first, for ever."""
    store = Store(directory)
    while True:
        waiting = [one for one in store.records() if one["state"] == "QUEUED"]
        for record in waiting[:1]:
            entry = store.entry(record["id"])
            assert entry is not None
            work(entry, limits)
        time.sleep(0.02)


@contextmanager
def worker_in(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a worker in a process of its own."""
    worker = subprocess.Popen([sys.executable, __file__, str(directory)])
    try:
        yield worker
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Limits(look_s=0.05, grace_s=2.0))
