"""What people see of a facility while a run goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class FacilityView:
    """One live line: written by a lane, read by `run`, `watch` and `status`.

    Attributes:
        state: ``idle``, ``staging``, ``queued``, ``training``, ``collecting``, ...
        detail: A few words more, or the last problem.
        step: Optimizer steps done of `steps` in the job at hand.
        loss: Last training loss.
        samples_per_s: Training speed.
        bytes_sent: Bytes moved to the facility in this process's time.
        bytes_received: Bytes moved from it.
        queue_wait: Seconds that the last started job waited, by its scheduler.
        version: The version that the job at hand has bound.
        newest_at_submit: The newest version when that job was submitted.
    """

    name: str
    state: str = "idle"
    detail: str = ""
    job: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    samples_per_s: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_wait: float | None = None
    version: int | None = None
    newest_at_submit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the view as plain JSON data."""
        return asdict(self)
