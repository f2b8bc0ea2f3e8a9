"""Options of the small built-in trainers and tasks; light, so that a server has them.

They are validated twice from the same class: when a federation is checked, and in
the job.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Options(BaseModel):
    """Base: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SoftmaxModelOptions(Options):
    """Shape of a softmax regression.

    Attributes:
        features: Numbers that go in.
        classes: Scores that come out.
    """

    features: Count = 64
    classes: Annotated[int, Field(ge=2)] = 10


class SoftmaxWorkOptions(Options):
    """Stochastic gradient descent.

    Attributes:
        batch: Samples per step.
        lr: Learning rate; a strategy may scale it.
        momentum: Share of the last step that is kept; 0 is plain SGD.
    """

    batch: Count = 32
    lr: Positive = 0.5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


def softmax_impure(work: SoftmaxWorkOptions) -> str | None:
    """Return what to set for plain SGD; None if that is what it does."""
    return "Set work.momentum: 0" if work.momentum else None


class TorchModuleModelOptions(Options):
    """What the user's function is called with.

    Attributes:
        arguments: Given to the function as it is.
    """

    arguments: dict[str, Any] = Field(default_factory=dict)


class TorchModuleWorkOptions(Options):
    """Optimizer of a user's model.

    Attributes:
        batch: Samples per step.
        lr: Learning rate; a strategy may scale it.
        optimizer: Which of torch's optimizers.
        weight_decay: As the optimizer has it.
        momentum: Of `sgd`.
        sharding: How the model is spread over the ranks; auto: none for one rank, ddp
            for several.
    """

    batch: Count = 32
    lr: Positive = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NotNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    sharding: Literal["auto", "none", "ddp", "zero1", "fsdp"] = "auto"


def torch_module_impure(work: TorchModuleWorkOptions) -> str | None:
    """Return what to set for plain SGD; None if that is what it does."""
    if work.optimizer == "sgd" and not work.momentum:
        return None
    return "Set work.optimizer: sgd and work.momentum: 0"


class ProgramModelOptions(Options):
    """Where version 0 comes from, and what the program is told.

    Attributes:
        initial: A safetensors file or a folder of them, seen from where `hansa run`
            runs; what else is in the folder (config, tokenizer) goes with the model.
        options: Given to the program as `Job.options`.
    """

    initial: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)


class ProgramWorkOptions(Options):
    """What one facility's program is told.

    Attributes:
        batch: Samples per step over all ranks.
        options: Given to the program over those of the model.
    """

    batch: Count = 32
    options: dict[str, Any] = Field(default_factory=dict)


def program_impure(work: ProgramWorkOptions) -> str:
    """Return why nobody knows how a program's steps are done."""
    del work
    return "Choose another strategy: Hansa does not see the steps of a program"


class OwnDataOptions(Options):
    """What the facility says of data that only its program reads.

    Attributes:
        examples: How many there are to train on, for strategies that ask.
        tests: Names of the test losses that the program submits.
    """

    examples: Count = 1
    tests: tuple[str, ...] = ("own",)


class DigitsOptions(Options):
    """How the digits are divided into groups ``part-0`` to ``part-<parts - 1>``.

    Attributes:
        parts: Number of groups, one a facility.
        alpha: Dirichlet concentration over labels: small is skewed, large is even.
        seed: Seed of the division.
    """

    parts: Count = 4
    alpha: Positive = 0.1
    seed: int = 0


class InstructOptions(Options):
    """How much of a user's own instructions is taken.

    Attributes:
        train_limit: Most training examples per group, evenly chosen; None: all.
        test_limit: Most test examples per group, evenly chosen; None: all.
    """

    train_limit: Count | None = None
    test_limit: Count | None = None
