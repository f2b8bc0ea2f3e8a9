"""What an algorithm is to the coordinator.

A strategy sees events and answers with commands. It knows no clock (time arrives
in `event.at`, waiting is `SetTimer`), no I/O and no tensor (arithmetic is
`Aggregate` over references), so the same object runs a real and a simulated
federation, and replaying a journal rebuilds it exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from hansa.core.commands import Command
from hansa.core.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyContext:
    """What a strategy is told of the federation.

    Attributes:
        facilities: Their names, in the order of the file.
        steps: ``work.steps`` of each facility: what an order without steps does.
        walltimes: Seconds that a facility's jobs may run.
        seconds_per_step: Of the facilities whose speed was measured before the run.
    """

    facilities: tuple[str, ...]
    steps: Mapping[str, int] = field(default_factory=dict)
    walltimes: Mapping[str, float] = field(default_factory=dict)
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    """A federated learning algorithm; built as ``Strategy(options, context)``."""

    Options: ClassVar[type[BaseModel]]
    """The keys that `strategy:` takes in federation.yaml, beside `name`."""

    def handle(self, event: Event) -> list[Command]:
        """Take one event into the state and return what is to be done now.

        Every event of the run arrives here in journal order, once, except duplicates
        and the results of evaluations. `VersionPublished(version=0)` opens the run.
        After `BudgetReached` no new work may be assigned; an `Aggregate` of what has
        already arrived is still welcome.

        Raises:
            StrategyError: The event can't happen in this state.
        """
        ...

    def holds(self) -> Collection[str]:
        """Return the references that a later command may still name.

        Those are updates that have arrived and are in no `Aggregate` yet, and the
        versions and states that belong to them. The store keeps these, those that
        pending commands name and those of the newest versions; nothing else for long.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return the state as JSON data, for `status`, `replay` and tests."""
        ...
