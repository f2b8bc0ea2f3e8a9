"""What a lane needs to know of its facility."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hansa.coordinator.ahead import AheadSettings
from hansa.coordinator.poller import Pace
from hansa.coordinator.trouble import When
from hansa.core.commands import WorkOrder
from hansa.core.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneSettings:
    """A facility, as the plan has it.

    Attributes:
        run: Id of the run.
        facility: Name of the facility.
        order: Turns a strategy's order into what the site agent is sent.
        job: What every batch job asks for, as `hansa.site.order.JobRequest` has it.
        size: What the job of an order asks for in place of that.
        ahead: How the next job is queued while one runs.
        when: What to do about jobs that end without a result.
        retries: Batch jobs that one assignment may use.
        patience: Seconds of silence after which the facility counts as lost.
        retry: Waits between tries of a submission, a transfer or a job.
        pace: How often to poll, until the facility says it itself.
    """

    run: str
    facility: str
    order: Callable[[WorkOrder], dict[str, Any]]
    job: dict[str, Any]
    size: Callable[[WorkOrder], Mapping[str, Any]] = lambda order: {}
    ahead: AheadSettings = field(default_factory=AheadSettings)
    when: When = field(default_factory=When)
    retries: int = 3
    patience: float = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    pace: Pace = field(default_factory=Pace)
