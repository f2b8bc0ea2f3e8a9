"""Processes of the sandbox: started in a session of their own, ended by their ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil


def start(
    command: Sequence[str], log: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process whose words go to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes with -9, and wait until they are dead."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    until(lambda: not any(map(_lives, processes)), 20, f"these end: {processes}")


def _lives(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that nobody has reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(
    holds: Callable[[], object],
    seconds: float,
    what: str,
    log: Path | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until something holds, asking again and again.

    Raises:
        AssertionError: It does not in time, or the process has ended; with the last
            words of a log.
    """
    end = time.monotonic() + seconds
    while not holds():
        gone = process is not None and process.poll() is not None
        if gone or time.monotonic() > end:
            words = log.read_text()[-2000:] if log and log.exists() else ""
            raise AssertionError(f"not within {seconds} s: {what}\n{words}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Tell whether something listens on a port of this machine."""
    with socket.socket() as line:
        line.settimeout(1)
        return line.connect_ex(("127.0.0.1", port)) == 0


def plain_environment() -> dict[str, str]:
    """Return this process's environment without any Globus of the developer's own."""
    return {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("GLOBUS_", "HANSA_GLOBUS_", "RABBITMQ_"))
        and name.lower() not in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    }
