"""The worker's heartbeat, `status.json`, for the site agent's polls."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from hansa.core.errors import HansaError, StoreError
from hansa.mailbox.files import read_json, show_json, write_json
from hansa.mailbox.links import link_to
from hansa.worker.base import Report
from hansa.worker.job import SCHEMA

log = logging.getLogger(__name__)

_LAST = frozenset({"done", "failed", "refused", "cancelled"})
"""Phases that nothing follows: they have to survive a power cut."""


class Status:
    """Writes the status file, replaced atomically.

    A status that can't be written is logged and does not stop the training.

    Args:
        path: The file.
        steps: Steps ordered; None for an evaluation.
        every: Shortest time between two heartbeats, in seconds.
    """

    def __init__(self, path: Path, steps: int | None, every: float) -> None:
        self._path = path
        self._every = every
        self._written = float("-inf")
        self._fields: dict[str, object] = {
            "schema": SCHEMA,
            "phase": "starting",
            "base": None,
            "step": 0,
            "steps": steps,
            "loss": None,
            "samples_per_s": None,
            "training": {},
            "at": 0.0,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "error": None,
        }

    def enter(self, phase: str, *, base: int | None = None) -> None:
        """Write a new phase.

        With an order: starting, waiting (for the word to begin), training,
        evaluating, saving, done, cancelled; failed and refused come with an error. An
        allocation: lingering (it waits for an order), hosting (it works on one of
        those it was handed), done.
        """
        self._fields["phase"] = phase
        if base is not None:
            self._fields["base"] = base
        self._write()

    def finish(self, found: Mapping[str, object]) -> None:
        """Write the phase "done" with what a trial has found."""
        self._fields.update(phase="done", found=dict(found))
        self._write()

    def beat(
        self,
        step: int | None = None,
        loss: float | None = None,
        samples_per_s: float | None = None,
    ) -> None:
        """Take new numbers and write them if the last heartbeat is old enough."""
        if step is not None:
            self._fields.update(step=step, loss=loss, samples_per_s=samples_per_s)
        if time.monotonic() - self._written >= self._every:
            self._write()

    def tell(self, report: Report) -> None:
        """Take what a trainer tells of its work; the next heartbeat has it.

        Numbers that are not finite are left out.
        """
        numbers = {
            name: number
            for name, number in report.numbers.items()
            if math.isfinite(number)
        }
        self._fields["training"] = {**report.words, **numbers}

    def fail_unless_told(self, error: HansaError) -> None:
        """Write the error, unless the file says of this process how its work ended."""
        try:
            told = read_json(self._path) or {}
        except StoreError:
            told = {}
        same = (told.get("pid"), told.get("host")) == (
            os.getpid(),
            self._fields["host"],
        )
        if not same or told.get("phase") not in ("failed", "done"):
            self.fail(error)

    def fail(self, error: HansaError) -> None:
        """Write the phase "failed" with the error."""
        self._fields.update(phase="failed", error=error.to_json())
        self._write()

    def refuse(self, error: HansaError) -> None:
        """Write the phase "refused": the order was not begun, and the error says why.

        It is no try of the order, and another job may do it.
        """
        self._fields.update(phase="refused", error=error.to_json())
        self._write()

    def _write(self) -> None:
        self._fields["at"] = time.time()
        self._written = time.monotonic()
        if link := link_to(self._path.parent):
            log.warning("The status is not written through the link %s.", link)
            return
        try:
            # At once: a launcher that saw another rank end may kill this one, too.
            show_json(self._path, self._fields)
            if self._fields["phase"] in _LAST:
                write_json(self._path, self._fields)
        except (OSError, StoreError) as error:
            log.warning("The status could not be written: %s", error)
