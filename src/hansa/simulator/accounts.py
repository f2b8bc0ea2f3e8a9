"""What the jobs of a simulated facility cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from hansa.core.events import JobEnded
from hansa.simulator.allocation import Allocation


@dataclass(slots=True)
class Accounts:
    """The node-seconds of jobs that have ended, and who still runs."""

    ended: float = 0.0
    running: dict[str, Allocation] = field(default_factory=dict)

    def node_hours(self) -> float:
        """Return the node-hours used up to now, jobs that run included."""
        live = sum(job.ask.nodes * job.run_s for job in self.running.values())
        return (self.ended + live) / 3600.0

    def close(self, job: Allocation, facility: str, at: float) -> JobEnded:
        """Charge a job that is over and return what the server hears of it, and when.

        One that never ran costs nothing.
        """
        ran = job.run_s if self.running.pop(job.key, None) is not None else 0.0
        self.ended += job.ask.nodes * ran
        return JobEnded(
            at=at,
            facility=facility,
            assignment=job.assignment,
            number=job.number,
            job=job.id,
            state=job.state.value,
            reason="",
            queue_wait=job.queue_wait,
            run_s=ran,
            node_hours=job.ask.nodes * ran / 3600.0,
        )
