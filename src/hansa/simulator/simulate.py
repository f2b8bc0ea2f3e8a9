"""Carry one federation out in virtual time."""

from __future__ import annotations

from pathlib import Path

from hansa.simulator.outcome import Outcome
from hansa.spec.federation import FederationSpec


def simulate(
    spec: FederationSpec,
    *,
    seed: int | None = None,
    target: float | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Simulate a federation from its start to its end.

    Args:
        spec: The federation; `spec.simulation` says how (None: its defaults).
        seed: Seed of everything that is drawn; None: that of the federation.
        target: Loss whose time is measured; None: `stop.target`'s.
        folder: Where to leave plan and journal, as a real run does; None: nowhere.

    Returns:
        What it came to. The same federation and seed give the same bytes.

    Raises:
        SpecError: A job can't ever run in the queue that it is meant for.
    """
    raise NotImplementedError
