"""Blocks of ports on the loopback interface that no other test process takes."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

FIRST, LAST, BLOCK = 12_000, 31_000, 50
"""Below the range from which systems give ports to clients."""

_held: list[int] = []


def block(count: int = BLOCK) -> int:
    """Return the first of `count` free ports in a row, this process's until it ends.

    Raises:
        RuntimeError: All blocks are taken.
    """
    if count > BLOCK:
        raise ValueError(f"A block has {BLOCK} ports.")
    for first in range(FIRST, LAST, BLOCK):
        if _take(first) and all(_free(first + n) for n in range(count)):
            return first
    raise RuntimeError(f"No {count} ports in a row are free from {FIRST} to {LAST}.")


def _take(first: int) -> bool:
    """Lock a block; the system unlocks it when this process ends, however it ends."""
    folder = Path(tempfile.gettempdir()) / f"hansa-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / str(first), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _held.append(handle)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
