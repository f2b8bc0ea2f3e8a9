"""What can be known before anything is spent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hansa.coordinator.setup import job_request, make_gateway, order_form
from hansa.core.commands import WorkOrder
from hansa.core.errors import HansaError
from hansa.core.ids import assignment_id
from hansa.gateway.base import Gateway
from hansa.site import rpc
from hansa.spec.federation import FederationSpec

TIMEOUT_S = 30.0


@dataclass(slots=True)
class FacilityCheck:
    """What a facility answered.

    Attributes:
        problems: What is wrong, each with its remedy.
        probe: The site agent's own account of its health.
        script: The job script that it would submit.
    """

    facility: str
    problems: list[tuple[str, str]] = field(default_factory=list)
    probe: dict[str, Any] = field(default_factory=dict)
    script: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain JSON data."""
        return {
            "ok": not self.problems,
            "problems": [{"what": w, "hint": h} for w, h in self.problems],
            "probe": self.probe,
            "script": self.script,
        }


async def check_all(spec: FederationSpec, run: str) -> list[FacilityCheck]:
    """Ask every facility, all at once, whether it could do its part.

    Nothing is written or submitted anywhere: the site agent is asked for its health
    and for the job script that it would submit.
    """
    names = list(spec.facilities)
    return await asyncio.gather(*(_check(spec, run, name) for name in names))


async def _check(spec: FederationSpec, run: str, name: str) -> FacilityCheck:
    check = FacilityCheck(name)
    try:
        gateway = make_gateway(spec.facilities[name])
    except HansaError as error:
        check.problems.append((error.message, error.hint or ""))
        return check
    try:
        await _ask(gateway, spec, run, check)
    except HansaError as error:
        check.problems.append((error.message, error.hint or ""))
    finally:
        await gateway.close()
    return check


async def _ask(
    gateway: Gateway, spec: FederationSpec, run: str, check: FacilityCheck
) -> None:
    name = check.facility
    check.probe = await gateway.call(rpc.probe(), TIMEOUT_S)
    for problem in check.probe.get("problems", ()):
        check.problems.append((str(problem["what"]), str(problem.get("hint") or "")))
    assignment = assignment_id("train", 1, name)
    order = WorkOrder(assignment=assignment, kind="train", round=1)
    request = rpc.submit(
        run,
        order_form(spec, run, name)(order),
        1,
        job_request(spec.facilities[name]),
        dry_run=True,
    )
    answer = await gateway.call(request, TIMEOUT_S)
    check.script = str(answer.get("script", ""))
