"""One tree of errors; each has a stable code, a hint and says if trying again helps.

::

    HansaError
    ├── UsageError            a command was called wrongly
    ├── SpecError             a YAML file says something that can't be meant
    ├── PluginError           no such strategy, trainer, task, ... or it can't be loaded
    ├── RunConflict           the run id is taken by another plan
    ├── PreflightError        a check before the run failed
    ├── FacilityError         something at or on the way to a facility
    │   ├── GatewayError      the facility can't be reached or answers nonsense
    │   ├── LoginError        a service between the two wants a (fresh) login or consent
    │   ├── PolicyError       the facility's own site.yaml refuses
    │   ├── SchedulerError    the batch scheduler refuses or can't be understood
    │   ├── TransferError     files did not arrive as they were sent
    │   └── WorkerError       the job itself failed
    ├── StoreError            model versions and updates on the server
    │   ├── IntegrityError    bytes differ from their manifest
    │   ├── UpdateRejected    an update that must not enter a model
    │   └── StorageFull       no space left on the device
    ├── JournalError          the log of events
    │   ├── JournalCorrupt    a line in the middle is damaged
    │   ├── JournalTooNew     written by a newer Hansa
    │   └── JournalLocked     another process is writing it
    ├── StrategyError         an event that the algorithm can't have
    └── SimulationError       a simulated facility that can't be as it is described

Every error crosses process and facility boundaries as JSON: `to_json`, `from_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self


class HansaError(Exception):
    """Base of all errors that Hansa raises on purpose.

    Args:
        message: What failed and where, as a whole sentence.
        hint: What to do next.
        transient: Whether the same call may succeed later.
    """

    code: ClassVar[str] = "HANSA"
    exit_code: ClassVar[int] = 1
    transient_by_default: ClassVar[bool] = False

    def __init__(
        self, message: str, *, hint: str | None = None, transient: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.transient = (
            self.transient_by_default if transient is None else bool(transient)
        )

    def __reduce__(self) -> tuple[object, tuple[dict[str, object]]]:
        return from_json, (self.to_json(),)

    def to_json(self) -> dict[str, object]:
        """Return the error as plain JSON data."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "transient": self.transient,
        }

    @classmethod
    def of(cls, other: HansaError) -> Self:
        """Return the same words under this class (for crossing a boundary)."""
        return cls(other.message, hint=other.hint, transient=other.transient)


class UsageError(HansaError):
    """A command was called wrongly."""

    code = "USAGE"
    exit_code = 2


class SpecError(HansaError):
    """A YAML file, or an override of it, can't be understood."""

    code = "SPEC_INVALID"
    exit_code = 2


class PluginError(HansaError):
    """A plug-in is unknown or can't be loaded."""

    code = "PLUGIN_UNKNOWN"
    exit_code = 2


class RunConflict(HansaError):
    """The run id belongs to a run with another plan."""

    code = "RUN_ID_CONFLICT"
    exit_code = 2


class PreflightError(HansaError):
    """A check before the run failed; nothing was spent."""

    code = "PREFLIGHT_FAILED"
    exit_code = 3


class FacilityError(HansaError):
    """Something at, or on the way to, a facility."""

    code = "FACILITY"
    exit_code = 5


class GatewayError(FacilityError):
    """The facility can't be reached, or its answer makes no sense."""

    code = "FACILITY_UNREACHABLE"
    transient_by_default = True


class LoginError(FacilityError):
    """A service on the way to a facility wants a login, a fresh one, or a consent.

    It is transient by default: a person mends it while the run goes on, in another
    terminal, with the command that the hint names.
    """

    code = "LOGIN"
    transient_by_default = True


class PolicyError(FacilityError):
    """The facility's own `site.yaml` refuses the request."""

    code = "FACILITY_REFUSES"


class SchedulerError(FacilityError):
    """The batch scheduler refuses a job or gives an unreadable answer."""

    code = "SCHEDULER"


class TransferError(FacilityError):
    """Files did not arrive as they were sent."""

    code = "TRANSFER"
    transient_by_default = True


class WorkerError(FacilityError):
    """The job at the facility failed by itself."""

    code = "WORKER"


class StoreError(HansaError):
    """Model versions or updates on the server."""

    code = "STORE"


class IntegrityError(StoreError):
    """Bytes differ from what their manifest promises."""

    code = "STORE_INTEGRITY"


class UpdateRejected(StoreError):
    """An update that must not enter a model: NaN, wrong shape, wrong base."""

    code = "UPDATE_REJECTED"


class StorageFull(StoreError):
    """No space is left on the device; nothing half-written stays visible."""

    code = "STORE_FULL"


class JournalError(HansaError):
    """The log of events can't be used."""

    code = "JOURNAL"


class JournalCorrupt(JournalError):
    """A line that is not the last one is damaged."""

    code = "JOURNAL_CORRUPT"


class JournalTooNew(JournalError):
    """The journal was written by a newer Hansa."""

    code = "JOURNAL_TOO_NEW"


class JournalLocked(JournalError):
    """Another process writes this journal."""

    code = "JOURNAL_LOCKED"
    exit_code = 75
    transient_by_default = True


class StrategyError(HansaError):
    """An event arrived that the algorithm can't have."""

    code = "STRATEGY"


class SimulationError(HansaError):
    """A simulated facility, queue or workload can't be as it is described."""

    code = "SIMULATION"
    exit_code = 2


def _tree(root: type[HansaError]) -> dict[str, type[HansaError]]:
    # A subclass without a code of its own is no class of the tree.
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_json(data: Mapping[str, object]) -> HansaError:
    """Rebuild an error from `HansaError.to_json`; unknown codes become the root."""
    kind = _tree(HansaError).get(str(data.get("code")), HansaError)
    hint = data.get("hint")
    return kind(
        str(data.get("message", "")),
        hint=None if hint is None else str(hint),
        transient=bool(data.get("transient", False)),
    )
