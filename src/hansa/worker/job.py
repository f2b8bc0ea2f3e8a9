"""What a worker is told: `job.json`, written by the facility's site agent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.core import plugins
from hansa.core.errors import PluginError, SpecError, WorkerError
from hansa.worker.base import TaskPlugin, TrainerPlugin
from hansa.worker.meter import Measure

SCHEMA = 1
"""Number of the JSON forms; a reader refuses a larger one."""

LOOK_S, SHORTEST_LOOK_S = 0.5, 0.02
"""Files that a waiting job looks for are looked at about this often."""

Steps = Annotated[int, Field(ge=1)]
Model = TypeVar("Model", bound=BaseModel)


class JobPart(BaseModel):
    """Base: keys that a newer agent of the same schema adds are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ModelPart(JobPart):
    """The federation's `model`."""

    trainer: str
    source: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    options: dict[str, Any] = Field(default_factory=dict)


class TaskPart(JobPart):
    """The task as `site.yaml` resolved it; None for all groups of a split."""

    name: str
    source: Path | None = None
    splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] | None = None
    cache: Path
    options: dict[str, Any] = Field(default_factory=dict)


class UpdatePart(JobPart):
    """How the update is written."""

    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    compress: Literal["none", "zstd"] = "none"


class GeneratePart(JobPart):
    """How many answers of each task to generate, and how many tokens each may have."""

    tokens: Annotated[int, Field(ge=1)]
    limit: Annotated[int, Field(ge=1)]


class Order(JobPart):
    """What the server asked for."""

    run: str
    assignment: str
    kind: Literal["train", "evaluate"]
    facility: str
    round: Annotated[int, Field(ge=0)]
    steps: Steps | None = None
    version: Annotated[int, Field(ge=0)] | None = None
    seed: int
    model: ModelPart
    work: dict[str, Any] = Field(default_factory=dict)
    update: UpdatePart = UpdatePart()
    evaluate: bool = False
    first: Annotated[int, Field(ge=0)] | None = None
    seen: Annotated[int, Field(ge=0)] | None = None
    lr_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    control: str = ""
    measure: Measure | None = None
    generate: GeneratePart | None = None


class SchedulerPart(JobPart):
    """How to ask the facility's scheduler: plug-in, its options, its state folder."""

    type: str
    options: dict[str, Any] = Field(default_factory=dict)
    state: Path


class NodePart(JobPart):
    """What the facility says of a node: GPUs, and bytes of memory of each."""

    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory: Annotated[int, Field(ge=0)] | None = None


class AnyJob(JobPart):
    """One job, with an order or without.

    Attributes:
        order: What to do first; None for a job that was queued ahead of its order,
            and for a trial.
        key: Assignment and number, as ``train-0001-polaris-1.1``.
        number: Number of the batch job of this assignment, 1 for the first.
        mailbox: The run's directory, ``<root>/<run>``.
        job_dir: The job's own directory in it.
        state_dir: The job's directory that only the facility writes.
        nodes: Nodes of the batch job.
        ranks_per_node: Processes that the launcher starts on each.
        launched: Whether the script has a launcher at all; None: not told.
        scheduler: How to ask for this job's record; None: it can't be asked for.
        node: What a trial must find.
        walltime_s: Seconds after which the scheduler ends the job.
        heartbeat_s: Status is written at most this often.
        checkpoint_s: A local checkpoint is written about this often.
        linger_s: So long the job waits for the next order after the last one.
        ahead_s: So long a job without an order waits for its first.
        hold_s: So long a training order waits for the word to begin.
    """

    order: Order | None = None
    key: str
    number: Annotated[int, Field(ge=1)]
    mailbox: Path
    job_dir: Path
    state_dir: Path
    nodes: Annotated[int, Field(ge=1)] = 1
    ranks_per_node: Annotated[int, Field(ge=1)] = 1
    launched: bool | None = None
    scheduler: SchedulerPart | None = None
    node: NodePart | None = None
    walltime_s: Annotated[float, Field(gt=0)] | None = None
    heartbeat_s: Annotated[float, Field(ge=0)] = 1.0
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0
    linger_s: Annotated[float, Field(ge=0)] = 0.0
    ahead_s: Annotated[float, Field(ge=0)] = 0.0
    hold_s: Annotated[float, Field(ge=0)] = 0.0

    @property
    def pause_s(self) -> float:
        """How long to pause between two looks at the words of the facility."""
        return min(LOOK_S, max(self.heartbeat_s, SHORTEST_LOOK_S))

    @property
    def ranks(self) -> int:
        """How many processes the launcher has to start."""
        return self.nodes * self.ranks_per_node


class Job(AnyJob):
    """A job that has an order.

    Attributes:
        task: The data to work on.
        modules: ``module:function`` names that the facility allows.
        program: Command line of the program that the trainer `program` starts.
    """

    order: Order
    task: TaskPart
    modules: tuple[str, ...] = ()
    program: tuple[str, ...] = ()


def read_job(path: Path, sha256: str | None = None) -> AnyJob:
    """Read ``job.json``: a `Job` if there is an order in it.

    Raises:
        SpecError: As `read_file`.
        WorkerError: As `read_file`.
    """
    job = read_file(path, AnyJob, sha256)
    return job if job.order is None else read_file(path, Job, sha256)


def read_file(path: Path, model: type[Model], sha256: str | None = None) -> Model:
    """Read a JSON file with a `schema` number as `model`.

    Args:
        path: The file.
        model: What it holds.
        sha256: Hash that the file must have, in hex; None takes any.

    Raises:
        SpecError: The file is missing, no JSON, of a newer schema, or a field of it
            can't be meant.
        WorkerError: It has another hash.
    """
    try:
        content = path.read_bytes()
        if sha256 is not None:
            _check_hash(path, content, sha256)
        data = json.loads(content)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} can't be read: {error}.") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise SpecError(
            f"{path} has schema {schema!r}; this Hansa reads up to {SCHEMA}.",
            hint="Use the same Hansa for the site agent and the worker.",
        )
    return validated(model, data, str(path))


def _check_hash(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected.lower():
        raise WorkerError(
            f"{path} was changed after it was submitted: it has sha256 "
            f"{found[:12]}…; {expected[:12]}… was promised.",
            hint="Nothing was run. Find out who can write there, then submit anew.",
        )


def validated(model: type[Model], data: object, what: str) -> Model:
    """Return `data` as `model`.

    Raises:
        SpecError: A field is missing, unknown or wrong; the first one is named.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{what}: {place}: {first['msg']}.") from error


def trainer_plugin(name: str) -> TrainerPlugin:
    """Return the trainer's entry point object; raises PluginError."""
    return _plugin(plugins.TRAINERS, name, TrainerPlugin)


def task_plugin(name: str) -> TaskPlugin:
    """Return the task's entry point object; raises PluginError."""
    return _plugin(plugins.TASKS, name, TaskPlugin)


Plugin = TypeVar("Plugin", TrainerPlugin, TaskPlugin)


def _plugin(group: str, name: str, kind: type[Plugin]) -> Plugin:
    found = plugins.find(group, name)
    if not isinstance(found, kind):
        raise PluginError(
            f"The entry point {name!r} of {group} is no {kind.__name__}.",
            hint=f"Let it name a hansa.worker.base.{kind.__name__}.",
        )
    return found
