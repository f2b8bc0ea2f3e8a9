"""Options of the language-model trainer and of the chemistry task.

Kept apart from the code that uses them, so that the server can check a federation
file without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hansa.planner.fitting import Wants

Count = Annotated[int, Field(ge=1)]


class _Options(BaseModel):
    """Base of the option blocks: unknown keys are errors, values can't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraOptions(_Options):
    """Low-rank adapters: the model is frozen and only the adapters are federated."""

    rank: Count = Field(default=8, description="Rank of each adapter.")
    alpha: float = Field(
        default=16.0, gt=0, description="Adapters are scaled by alpha / rank."
    )
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"),
        min_length=1,
        description="Names of the linear layers that get an adapter.",
    )


class CausalLMModelOptions(_Options):
    """`model.options` of the trainer `causal-lm`.

    The sizes are those of `source: tiny-llama`; models read from a path or a package
    bring their own and ignore them.
    """

    hidden: Count = Field(default=160, description="Width of the residual stream.")
    layers: Count = Field(default=4, description="Number of decoder layers.")
    heads: Count = Field(default=5, description="Attention heads; divides `hidden`.")
    intermediate: Count | None = Field(
        default=None,
        description="Width of the feed-forward layers; null: 8/3 of `hidden`, "
        "rounded up to a multiple of 16.",
    )
    vocabulary: int = Field(
        default=1024, ge=260, description="Tokens of the byte-level BPE tokenizer."
    )
    positions: Count = Field(
        default=512, description="Longest sequence that the model is made for."
    )
    chat: bool = Field(
        default=False,
        description="Write examples by the chat template of the model's tokenizer; "
        "only the assistant's answers are learned.",
    )
    lora: LoraOptions | None = Field(
        default=None, description="Train and federate only LoRA adapters."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be an even multiple of "
                f"heads ({self.heads})"
            )
        return self


Sharding = Literal[
    "auto", "none", "ddp", "fsdp", "zero1", "deepspeed-1", "deepspeed-2", "deepspeed-3"
]
Precision = Literal["float32", "bfloat16", "mixed"]


class ScheduleOptions(_Options):
    """A learning rate that changes over all rounds of a facility."""

    shape: Literal["linear", "cosine"] = Field(
        default="cosine", description="How it falls."
    )
    steps: Count = Field(description="Steps of the whole schedule, over all rounds.")
    warmup: int = Field(default=0, ge=0, description="Steps over which it rises first.")
    least: float = Field(
        default=0.0, ge=0, le=1, description="Share of `lr` that is left at the end."
    )


class CausalLMWorkOptions(_Options):
    """`work` of a facility whose trainer is `causal-lm`."""

    sharding: Sharding = Field(
        default="auto",
        description="How the model is spread over the ranks: none (one rank), ddp "
        "(each has all of it), zero1 (the optimizer is spread), fsdp (all is spread), "
        "deepspeed-1 to -3. auto: the one that moves least and fits the memory.",
    )
    precision: Precision | None = Field(
        default=None,
        description="mixed: computes in bfloat16 and keeps the weights that the "
        "optimizer moves in float32. null: all in `model.dtype`.",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute the activations of each layer twice, to keep fewer.",
    )
    cpu_offload: bool = Field(
        default=False,
        description="With fsdp: keep weights and optimizer in the node's memory.",
    )
    schedule: ScheduleOptions | None = Field(
        default=None,
        description="A schedule that goes on from round to round; null: constant.",
    )
    keep_optimizer: bool = Field(
        default=False,
        description="Keep the optimizer's state at the facility for the next round; "
        "for adamw, as sgd has none.",
    )
    packing: bool = Field(
        default=False,
        description="Put several short examples into one row; none attends to another.",
    )
    too_long: Literal["truncate", "refuse"] = Field(
        default="truncate",
        description="What to do with an example longer than `sequence_length`: cut it, "
        "and report how many were cut, or end the job and say which it is.",
    )

    batch: Count = Field(default=8, description="Examples of one optimizer step.")
    lr: float = Field(
        default=2e-4, gt=0, description="Peak learning rate; that of AdamW by default."
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw",
        description="sgd: plain, without momentum; it needs a far larger `lr`.",
    )
    sequence_length: int = Field(
        default=256,
        ge=8,
        description="Longest example in tokens, prompt and answer together; longer "
        "prompts lose their beginning, then longer answers their end.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="The optimizer's weight decay."
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps over which the learning rate rises, in each round anew; "
        "beside `schedule`, which does it once.",
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="Largest norm of the gradient; null: no limit."
    )
    lora_rank: Count | None = Field(
        default=None,
        description="Rank of the adapters' part that this facility trains; the rest of "
        "them is frozen here. null: all of model.options.lora.rank.",
    )
    micro_batch: Count = Field(
        default=16,
        description="Examples per forward pass. A batch is sorted by length and done "
        "in passes of this size, which saves memory and padding and changes only "
        "rounding.",
    )

    @model_validator(mode="after")
    def _state_to_keep(self) -> Self:
        if self.keep_optimizer and self.optimizer == "sgd":
            raise ValueError("keep_optimizer is for adamw; plain sgd has no state")
        return self

    def wants(self, dtype: str) -> Wants:
        """Return what is asked of the planner, for a model of a dtype."""
        return Wants(
            sharding=self.sharding,
            precision=self.precision or dtype,
            optimizer=self.optimizer,
            batch=self.batch,
            micro_batch=self.micro_batch,
            sequence_length=self.sequence_length,
            activation_checkpointing=self.activation_checkpointing,
            cpu_offload=self.cpu_offload,
        )


def language_impure(work: CausalLMWorkOptions) -> str | None:
    """Return what to set for plain SGD; None if that is what it does."""
    if work.optimizer == "sgd" and work.clip is None:
        return None
    return "Set work.optimizer: sgd and work.clip: null"


def rank_misfit(model: CausalLMModelOptions, work: CausalLMWorkOptions) -> str | None:
    """Say why a facility's `lora_rank` does not fit the model; None if it does."""
    if work.lora_rank is None:
        return None
    if model.lora is None:
        return "lora_rank is for a model with adapters; set model.options.lora"
    if work.lora_rank <= model.lora.rank:
        return None
    return (
        f"lora_rank is {work.lora_rank}, more than model.options.lora.rank "
        f"({model.lora.rank}), which must be the largest of all facilities"
    )


def sharding_misfit(
    sharding: str, ranks: int, *, cpu_offload: bool
) -> tuple[str, str] | None:
    """Say why a job can't spread its model as asked, and what to set; None if it can.

    Args:
        sharding: `work.sharding`.
        ranks: Processes of the job.
        cpu_offload: `work.cpu_offload`.
    """
    if sharding == "none" and ranks > 1:
        return (
            f"work.sharding is none, but the job has {ranks} ranks, which would "
            "train apart.",
            "Set work.sharding: auto, ddp, zero1 or fsdp, or ask for one rank.",
        )
    if sharding not in {"none", "auto"} and ranks == 1:
        return (
            f"work.sharding is {sharding}, but the job has one rank.",
            "Set work.sharding: none or auto, or ask for more ranks.",
        )
    if cpu_offload and ranks == 1:
        return (
            "work.cpu_offload is for fsdp, but the job has one rank.",
            "Leave cpu_offload out, or ask for more ranks.",
        )
    if cpu_offload and sharding not in {"fsdp", "auto"}:
        return (
            f"work.cpu_offload is for fsdp; work.sharding is {sharding}.",
            "Set work.sharding: fsdp or auto, or leave cpu_offload out.",
        )
    return None


def length_misfit(sequence: int, positions: int) -> tuple[str, str] | None:
    """Say that sequences are longer than a model is made for, and what would do.

    Args:
        sequence: `work.sequence_length`, in tokens.
        positions: The model's longest; 0: not known.

    Returns:
        A sentence and a hint; None if they are not longer.
    """
    if not 0 < positions < sequence:
        return None
    return (
        f"work.sequence_length is {sequence}, and the model is made for at most "
        f"{positions} tokens.",
        "Lower work.sequence_length.",
    )


class ChemOptions(_Options):
    """`task.options` of the task `chem-instruct`."""

    train_limit: Count | None = Field(
        default=None, description="Most training examples per task; null: all."
    )
    test_limit: Count | None = Field(
        default=None, description="Most test examples per task; null: all."
    )
