"""A queue that is never empty: other people's jobs, as many as it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import TimeoutExpired

from slurm import Cluster


@contextmanager
def busy(
    cluster: Cluster, *, waiting: int, seconds: float, nodes: int
) -> Iterator[None]:
    """Keep so many jobs waiting before anyone who comes now.

    Args:
        cluster: Where.
        waiting: Jobs that wait in the queue at any time.
        seconds: How long each of them runs.
        nodes: Whole nodes that each of them takes.
    """
    over = threading.Event()

    def queued() -> int:
        text = cluster.run("squeue", "-h", "-t", "PENDING", "-n", "load", "-o", "%i")
        return len(text.split())

    def top_up() -> None:
        for _ in range(waiting - queued()):
            cluster.submit(
                f"exec sleep {seconds}", f"--nodes={nodes}", "--exclusive",
                "--time=1", "--job-name=load",
            )  # fmt: skip

    def keep() -> None:
        while not over.wait(0.2):
            with suppress(AssertionError, TimeoutExpired):  # not answered: again
                top_up()

    top_up()
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
