"""What a check of a facility came to: one finding for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hansa.core.remarks import OK, PROBLEM, UNKNOWN, WARNING

CHECKS = (
    "login",
    "endpoint",
    "reachable",
    "hansa",
    "scheduler",
    "job accepted",
    "line",
    "mailbox",
    "state",
    "data",
    "free space",
    "environment",
    "gpus",
    "memory",
    "clock",
    "trial job",
)
"""All that may be looked at, in the order in which it is shown."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: One of `CHECKS`.
        state: One of the four states.
        detail: What was seen, in a few words; for a problem a sentence.
        hint: What to do; only where it is not ok.
    """

    check: str
    state: str
    detail: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as plain JSON data."""
        return {
            "check": self.check,
            "state": self.state,
            "detail": self.detail,
            "hint": self.hint,
        }


@dataclass(slots=True)
class FacilityCheck:
    """What was found at one facility.

    Attributes:
        facility: Its name.
        findings: All findings, as they came.
        probe: The site agent's own account of its health.
        script: The job script that it would submit.
        trial: What a trial job found; None: there was none, or it did not end.
    """

    facility: str
    findings: list[Finding] = field(default_factory=list)
    probe: dict[str, Any] = field(default_factory=dict)
    script: str = ""
    trial: dict[str, Any] | None = None

    def add(self, check: str, state: str, detail: str = "", hint: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(check, state, detail, hint))

    def add_once(self, check: str, state: str, detail: str, hint: str) -> None:
        """Add a finding, unless it is there: gateway and mover may share a login."""
        if Finding(check, state, detail, hint) not in self.findings:
            self.add(check, state, detail, hint)

    def of(self, check: str) -> list[Finding]:
        """Return the findings of one check, the worst first."""
        order = (PROBLEM, WARNING, UNKNOWN, OK)
        found = [one for one in self.findings if one.check == check]
        return sorted(found, key=lambda one: order.index(one.state))

    @property
    def problems(self) -> list[tuple[str, str]]:
        """What is wrong, each with its remedy."""
        found = [one for one in self.findings if one.state == PROBLEM]
        return [(one.detail, one.hint) for one in found]

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain JSON data."""
        return {
            "ok": not self.problems,
            "findings": [one.to_json() for one in self.findings],
            "problems": [{"what": what, "hint": hint} for what, hint in self.problems],
            "probe": self.probe,
            "script": self.script,
            "trial": self.trial,
        }


_TOPICS = (
    ("The mailbox", "mailbox"),
    ("The folder `state`", "state"),
    ("The data of", "data"),
    ("The model ", "data"),
    ("The environment", "environment"),
    ("The interpreter", "environment"),
    ("Jobs would run", "environment"),
)
"""How the sentences of a site agent begin; all others are the scheduler's."""


def topic(what: str) -> str:
    """Return the check that a problem of a site agent belongs to."""
    found = (check for start, check in _TOPICS if what.startswith(start))
    return next(found, "scheduler")


def took_in(check: FacilityCheck, probe: Mapping[str, Any]) -> None:
    """Turn a site agent's account of its health into findings."""
    check.probe = dict(probe)
    for problem in probe.get("problems", ()):
        what = str(problem["what"])
        check.add(topic(what), PROBLEM, what, str(problem.get("hint") or ""))
    wrong = {one.check for one in check.findings if one.state == PROBLEM}
    notes = [str(note) for note in probe.get("notes", ())]
    details = {
        "scheduler": str(probe.get("scheduler", "")),
        "mailbox": "writable",
        "state": "writable",
        "data": ", ".join(map(str, probe.get("tasks", ()))),
        "environment": " ".join(notes),
    }
    for name, detail in details.items():
        if name not in wrong:
            check.add(name, OK, detail)
