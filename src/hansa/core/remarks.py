"""What a back end has to say of the way to a facility, before it is used."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "problem", "unknown"
"""States of a remark or a finding; only a problem keeps a run from beginning."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that was looked at, such as a login or an endpoint.

    Attributes:
        check: What was looked at, in one word: ``login``, ``endpoint``, ``line``.
        state: One of the four states.
        detail: What was seen, in a few words; for a problem a sentence.
        hint: What to do; only where it is not ok.
    """

    check: str
    state: str
    detail: str = ""
    hint: str = ""
