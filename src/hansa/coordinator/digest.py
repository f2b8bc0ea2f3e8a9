"""One word for all commands that a core has given, to compare a replay with its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256

from hansa.core.codec import to_json
from hansa.core.commands import Command


class Digest:
    """A rolling hash of lists of commands.

    It is brought up to date when it is asked for: a simulation that keeps no journal
    never asks, and does not pay for it.
    """

    __slots__ = ("_since", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._since: list[tuple[Command, ...]] = []

    def extend(self, commands: Sequence[Command]) -> None:
        """Take in the commands that an event led to; none at all change nothing."""
        if commands:
            self._since.append(tuple(commands))

    @property
    def text(self) -> str:
        """Sixteen hexadecimal digits; empty before the first command."""
        for commands in self._since:
            told = json.dumps([to_json(command) for command in commands])
            self._text = sha256((self._text + told).encode()).hexdigest()[:16]
        self._since.clear()
        return self._text
