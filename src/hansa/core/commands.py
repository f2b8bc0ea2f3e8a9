"""Commands: all that the core and a strategy can ask the runtime to do.

Ids are deterministic, so issuing a command twice does it once.
"""

from __future__ import annotations

from hansa.core.recipes import LINEAR, PLAIN, Optimizer, Reducer
from hansa.core.records import record


@record
class Term:
    """One summand of an aggregation: `coefficient` times what `ref` points at.

    `ref` is ``version/N``, ``update/ASSIGNMENT`` or ``state/NAME/N`` (see
    `hansa.core.ids`).
    """

    ref: str
    coefficient: float


@record
class WorkOrder:
    """What one facility is asked to do.

    Attributes:
        assignment: Deterministic id (see `hansa.core.ids.assignment_id`).
        kind: ``train`` or ``evaluate``.
        round: Number of the strategy's round; seeds the order's own randomness.
        steps: Optimizer steps to do; None takes the facility's ``work.steps``.
        version: The version to evaluate; None (training) binds the newest at start.
        first: Steps that earlier orders took of the facility's data stream, where this
            one goes on; None: ``(round - 1) * steps``.
        lr_scale: Factor on the facility's own learning rate.
        proximal: mu of ``mu / 2 * |w - w_base|^2``, added to the local loss.
        control: Reference of a stored state whose tensors are added to every
            gradient, as ``state/correction-polaris/3``; empty: none.
    """

    assignment: str
    kind: str
    round: int
    steps: int | None = None
    version: int | None = None
    first: int | None = None
    lr_scale: float = 1.0
    proximal: float = 0.0
    control: str = ""


@record
class Assign:
    """Give a facility an order."""

    facility: str
    order: WorkOrder


@record
class Withdraw:
    """Take an order back; its job is cancelled, its update no longer wanted."""

    facility: str
    assignment: str
    reason: str


@record
class Begin:
    """Tell a job that waits for the others (`JobWaiting`) to begin."""

    facility: str
    assignment: str


@record
class StateSum:
    """A stored state to make together with a version: a weighted sum of terms.

    A state has the shape of the model, in fp32; ``state/NAME/N`` is the one that was
    made with version N. Terms may be updates and states of earlier versions.
    """

    name: str
    terms: tuple[Term, ...]


@record
class Aggregate:
    """Make `version` from the weighted sum of `terms`, added up in this order.

    Attributes:
        version: Number of the new version.
        terms: The first version among them is the base, which gives names, shapes
            and all that is not summed.
        reducer: What takes the place of the sum over the updates.
        optimizer: Makes a step from the base of what the updates sum up to.
        states: Made before the version appears, so a version always has them.
    """

    version: int
    terms: tuple[Term, ...]
    reducer: Reducer = LINEAR
    optimizer: Optimizer = PLAIN
    states: tuple[StateSum, ...] = ()


@record
class Evaluate:
    """Measure a version on the shared test split, at a facility."""

    facility: str
    order: WorkOrder


@record
class SetTimer:
    """Ask for `TimerFired(timer)` after some seconds; replaces one of that name."""

    timer: str
    after: float


@record
class ClearTimer:
    """Forget a timer; harmless when there is none."""

    timer: str


@record
class Finish:
    """End the run: `done`, `partial` or `failed`."""

    outcome: str
    reason: str


Command = (
    Assign | Withdraw | Begin | Aggregate | Evaluate | SetTimer | ClearTimer | Finish
)
