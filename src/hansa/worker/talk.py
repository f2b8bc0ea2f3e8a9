"""What the worker and a user's own program say to each other: JSON, a line each.

Over a socket in a folder that only this user can enter. The worker speaks first::

    worker   {"schema": 1, "kind": "train", "steps": 30, ...}   what is ordered
    program  {"step": {"loss": 1.2, "samples": 8}}              after each step; waits
    worker   {"save": "/a/folder"}                              perhaps
    program  {"saved": true}
    worker   {"go": true}, or {"stop": true}
    program  {"submitted": {"losses": {"own": 1.1}}}            once, at the end
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Mapping
from typing import Any, Final

SCHEMA: Final = 1
VARIABLE: Final = "HANSA_WORKER"
"""Environment variable with the path of the socket."""


class Talk:
    """One end of the conversation.

    Args:
        connection: The connected socket; is closed with this.

    Attributes:
        closed: Whether this end is.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self.closed = False

    @classmethod
    def to(cls, path: str) -> Talk:
        """Connect to the socket at `path`; raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        return cls(connection)

    def say(self, words: Mapping[str, Any]) -> None:
        """Send something; if nobody is there any more, `hear` tells."""
        try:
            self._connection.sendall((json.dumps(words) + "\n").encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def hear(self) -> dict[str, Any] | None:
        """Wait for what the other says; None: it has gone."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            return None
        if not line.endswith("\n"):
            return None
        words = json.loads(line)
        return words if isinstance(words, dict) else {}

    def wait_for_end(self) -> None:
        """Wait until the other has gone; reads nothing of what it says."""
        poll = select.poll()
        poll.register(self._connection, 0)
        poll.poll()

    def close(self) -> None:
        """End the conversation."""
        self.closed = True
        self._lines.close()
        self._connection.close()
