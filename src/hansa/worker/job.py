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

SCHEMA = 1
"""Number of the JSON forms; a reader refuses a larger one."""

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

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


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


class Job(JobPart):
    """One batch job.

    Attributes:
        number: Number of the batch job of this assignment, 1 for the first.
        mailbox: The run's directory, ``<root>/<run>``.
        job_dir: The job's own directory in it.
        modules: ``module:function`` names that the facility allows.
        walltime_s: Seconds after which the scheduler ends the job.
        heartbeat_s: Status is written at most this often.
        checkpoint_s: A local checkpoint is written about this often.
    """

    order: Order
    number: Annotated[int, Field(ge=1)]
    mailbox: Path
    job_dir: Path
    task: TaskPart
    modules: tuple[str, ...] = ()
    walltime_s: Annotated[float, Field(gt=0)] | None = None
    heartbeat_s: Annotated[float, Field(ge=0)] = 1.0
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0


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
