"""What the server may ask for: an order, and the batch job that carries it.

Both are JSON with a closed set of keys; the facility's `policy` decides on them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hansa.core.errors import SpecError
from hansa.core.ids import (
    ASSIGNMENT,
    WORD,
    check_name,
    check_run,
    is_assignment,
    state_of,
)

RANKS_LIMIT = 1024
"""Most ranks on one node; none has more cores or devices."""


def _run(run: str) -> str:
    try:
        return check_run(run)
    except SpecError as error:
        raise ValueError(error.message) from error


def _state(ref: str) -> str:
    if state_of(ref) is None:
        raise ValueError(f"{ref!r} is no reference of a stored state")
    return ref


def _name(name: str) -> str:
    try:
        return check_name(name, "facility or task")
    except SpecError as error:
        raise ValueError(error.message) from error


def _assignment(text: str) -> str:
    if not is_assignment(text):
        raise ValueError(f"{text!r} is no assignment id")
    return text


def split_job(key: str) -> tuple[str, int]:
    """Return assignment and number of a job id such as ``train-0003-polaris-1.2``.

    Raises:
        ValueError: The text is no job id.
    """
    assignment, _, number = key.rpartition(".")
    if not is_assignment(assignment) or not number.isascii() or not number.isdecimal():
        raise ValueError(
            f"{key!r} is no job id; they look like 'train-0003-polaris-1.2'"
        )
    if number.startswith("0") or len(number) > 6:
        raise ValueError(f"{number!r} can't be the number of a job")
    return assignment, int(number)


def _job(key: str) -> str:
    split_job(key)
    return key


RunId = Annotated[str, AfterValidator(_run)]
Name = Annotated[str, AfterValidator(_name)]
AssignmentId = Annotated[str, AfterValidator(_assignment)]
StateRef = Annotated[str, AfterValidator(_state)]
JobKey = Annotated[str, AfterValidator(_job)]
Word = Annotated[str, Field(pattern=WORD)]
"""Such as a queue or an account: one word, so that no other option is smuggled in."""

Group = Annotated[str, Field(min_length=1, max_length=128)]


class Message(BaseModel):
    """What crosses to a facility: no key of it is unknown, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRequest(Message):
    """Which model to train, in words that the facility's worker resolves."""

    trainer: str
    source: str
    dtype: Literal["float32", "bfloat16", "float16"]
    options: dict[str, Any] = Field(default_factory=dict)


class TaskRequest(Message):
    """Which task of the facility to work on; `data` None means all its groups."""

    name: str
    data: tuple[Group, ...] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class UpdateRequest(Message):
    """How to write the update."""

    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    compress: Literal["none", "zstd"] = "none"


class Measure(Message):
    """What the job of an order is to measure; see `hansa.worker.meter.Measure`."""

    warm_up: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    profiled: Annotated[int, Field(ge=0)] = 0


class Generate(Message):
    """What an evaluation is to generate, beside the loss.

    Attributes:
        tokens: Most tokens of an answer.
        limit: Most answers of each task.
    """

    tokens: Annotated[int, Field(ge=1)]
    limit: Annotated[int, Field(ge=1)]


class Order(Message):
    """What the server asks for. Immutable once written.

    Attributes:
        steps: Optimizer steps; None for an evaluation.
        version: The version to evaluate; None binds the newest when the job starts.
        work: The trainer's own options (batch size, learning rate, ...).
        evaluate: Measure the local model after training.
        nonce: Drawn by the server for each run, so that a new run under an old id
            can't take the old run's orders for its own.
        first: Steps that the facility did before; None: ``(round - 1) * steps``.
        seen: Samples of the facility's stream of data that its updates up to now were
            made of: the order's first batch follows them. None, in orders of older
            servers: those of `first` steps.
        lr_scale: Factor on the learning rate in `work`.
        proximal: mu of FedProx; 0: none.
        control: State in the mailbox that is added to every gradient.
        measure: What of its steps is timed; None: nothing in particular.
        generate: Answers that an evaluation generates; None: it measures the loss.
    """

    schema_: Literal[1] = Field(alias="schema")
    run: RunId
    assignment: AssignmentId
    kind: Literal["train", "evaluate"]
    facility: Name
    round: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)] | None = None
    version: Annotated[int, Field(ge=0)] | None = None
    seed: int
    model: ModelRequest
    task: TaskRequest
    work: dict[str, Any] = Field(default_factory=dict)
    update: UpdateRequest = UpdateRequest()
    evaluate: bool = False
    nonce: Word | Literal[""] = ""
    first: Annotated[int, Field(ge=0)] | None = None
    seen: Annotated[int, Field(ge=0)] | None = None
    lr_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    control: StateRef | Literal[""] = ""
    measure: Measure | None = None
    generate: Generate | None = None

    def problem(self) -> str | None:
        """Return what contradicts itself in the order, or None."""
        match = ASSIGNMENT.fullmatch(self.assignment)
        if match is None or (match[1], match[3]) != (self.kind, self.facility):
            return (
                f"assignment {self.assignment} is not of kind {self.kind} at "
                f"{self.facility}"
            )
        if self.kind == "evaluate" and self.version is None:
            return "an evaluation names no version"
        if self.kind == "train" and self.steps is None and "steps" not in self.work:
            return "a training order has no steps"
        if self.kind == "train" and self.generate is not None:
            return "a training order generates no answers"
        if self.kind == "evaluate" and self.measure is not None:
            return "an evaluation has no steps to measure"
        corrected = self.lr_scale != 1 or self.proximal or self.control
        if self.kind == "evaluate" and corrected:
            return "an evaluation corrects no steps"
        return None


class JobRequest(Message):
    """The batch job that the server asks for; times in seconds.

    There are no free directives in it: shell text never crosses. What a facility's
    batch system needs beyond this stands in its own site.yaml.

    Attributes:
        ranks_per_node: None takes what site.yaml says of a node.
        linger: After an order the job may wait this long in its allocation for the
            next one; 0: it leaves.
        hold: A training order may wait this long for the word to begin; then it
            begins anyway. 0: it begins at once.
    """

    nodes: Annotated[int, Field(ge=1)] = 1
    ranks_per_node: Annotated[int, Field(ge=1, le=RANKS_LIMIT)] | None = None
    time: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    queue: Word | None = None
    account: Word | None = None
    reservation: Word | None = None
    linger: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    hold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
