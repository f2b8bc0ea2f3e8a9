"""The first version of a model, made on the server before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from hansa.store.atomic import full_disk
from hansa.store.dtypes import stored
from hansa.worker.arrays import write_arrays
from hansa.worker.base import Example, Trainer, TrainerContext, resolve
from hansa.worker.job import (
    JobPart,
    ModelPart,
    task_plugin,
    trainer_plugin,
    validated,
)

log = logging.getLogger(__name__)

MODEL = "model.safetensors"


class InitialTask(JobPart):
    """Where trainers that need a corpus (for a tokenizer) may read one."""

    name: str
    source: Path | None = None
    cache: Path | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class Request(JobPart):
    """Content of the request file.

    Attributes:
        work: One facility's `work`; its values do not matter, but must be valid.
        seed: The run's seed; the version is a pure function of the request.
    """

    model: ModelPart
    task: InitialTask
    work: dict[str, Any] = Field(default_factory=dict)
    seed: int


def write_initial(request: Request, directory: Path) -> list[str]:
    """Write `model.safetensors` and the trainer's assets.

    The trainer's own `module:function` is allowed here: the server belongs to the
    one who wrote the federation.

    Args:
        request: Model, task, work and seed.
        directory: Made if missing; must hold no model yet.

    Returns:
        The sorted names of the files.

    Raises:
        HansaError: Unknown plug-in, wrong options, or no space.
    """
    plugin = trainer_plugin(request.model.trainer)
    context = TrainerContext(
        source=request.model.source,
        dtype=request.model.dtype,
        model_options=validated(
            plugin.model_options, request.model.options, "model.options"
        ),
        work=validated(plugin.work_options, request.work, "work"),
        seed=request.seed,
        modules=(request.model.source,),
        corpus=lambda: _corpus(request.task, directory),
    )
    trainer: Trainer = resolve(plugin.first or plugin.target)(context)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL
    with full_disk(path):
        write_arrays(path, trainer.tensors, stored(request.model.dtype))
        if plugin.assets is not None:
            resolve(plugin.assets)(trainer, directory)
    return sorted(file.name for file in directory.iterdir() if file.is_file())


def _corpus(task: InitialTask, directory: Path) -> Sequence[Example]:
    """Return the task's training examples, for trainers that build a tokenizer."""
    plugin = task_plugin(task.name)
    options = validated(plugin.options, task.options, "task.options")
    cache = task.cache or directory.parent
    examples: Sequence[Example] = resolve(plugin.target)(
        task.source, cache, options
    ).load("train", None)
    return examples
