"""Keys that many strategies share, and what can't be meant by them.

What pydantic can't see (a quorum larger than the federation, a reducer that no version
can satisfy) is refused when the strategy is built, before anything is spent.
"""

from __future__ import annotations

from dataclasses import fields
from math import ceil, floor
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from hansa.core.errors import SpecError
from hansa.core.recipes import Krum, Reducer, TrimmedMean
from hansa.core.shortform import ShortForm
from hansa.core.units import Seconds
from hansa.strategy.base import StrategyContext

Weights = Literal["samples", "equal"]


class StrategyOptions(BaseModel):
    """Keys of a strategy: unknown ones are errors, and all numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ReducerOptions(StrategyOptions):
    """How the updates of a version become one; a bare name takes the defaults."""

    name: Literal["linear", "median", "trimmed_mean", "clipped_mean", "krum"] = Field(
        description="`linear`: the weighted mean; `median` or `trimmed_mean` of each "
        "coordinate; `clipped_mean`: no update longer than `norm`; `krum`: the updates "
        "that lie closest to others. `median`, `trimmed_mean` and `krum` count every "
        "update the same"
    )
    trim: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="`trimmed_mean`: share of the updates left out at each end",
        json_schema_extra={"x-default": "`0.1`"},
    )
    norm: float | None = Field(
        None,
        gt=0,
        description="`clipped_mean`: largest L2 norm of an update",
        json_schema_extra={"x-default": "`1.0`"},
    )
    byzantine: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="`krum`: f, the updates that may be arbitrary; it needs 2 f + 3",
        json_schema_extra={"x-default": "`0`"},
    )
    keep: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="`krum`: how many updates are averaged; with f of them arbitrary, "
        "at most all but f",
        json_schema_extra={"x-default": "`1`"},
    )

    @model_validator(mode="after")
    def _has_own_keys_only(self) -> Self:
        foreign = set(self._given()) - {field.name for field in fields(self.recipe())}
        if foreign:
            raise ValueError(f"{self.name!r} has no key {min(foreign)!r}")
        return self

    def recipe(self) -> Reducer:
        """Return what an `Aggregate` says."""
        return _RECIPE.validate_python(self._given())

    def _given(self) -> dict[str, object]:
        return self.model_dump(exclude_none=True)


_RECIPE: TypeAdapter[Reducer] = TypeAdapter(
    Annotated[Reducer, Field(discriminator="name")]
)


class RoundOptions(StrategyOptions):
    """When a round ends."""

    quorum: int | None = Field(
        1,
        ge=1,
        strict=True,
        description="smallest number of updates that a version is made of; "
        "null: more than half of the facilities",
    )
    deadline: Seconds | None = Field(
        None,
        gt=0,
        description="end a round after this time if the quorum has come; "
        "without it a round waits for every facility that is able",
    )
    patience: Seconds = Field(
        3600.0,
        description="how long to wait for lost facilities when too few are left "
        "for the quorum, before the run fails",
    )


class AveragingOptions(RoundOptions):
    """How the updates of a round are averaged."""

    weights: Weights = Field(
        "samples", description="weigh updates by samples seen, or all the same"
    )
    reducer: Annotated[ReducerOptions, ShortForm("name")] = Field(
        ReducerOptions(name="linear"),
        description="what takes the place of the weighted mean",
        json_schema_extra={"x-default": "`linear`"},
    )


def least_updates(quorum: int | None, context: StrategyContext) -> int:
    """Return how many updates a version needs.

    Args:
        quorum: What the options say; None: more than half of the facilities.
        context: The federation.

    Raises:
        SpecError: The quorum can never be reached.
    """
    count = len(context.facilities)
    if quorum is None:
        return count // 2 + 1
    if quorum > count:
        raise SpecError(
            f"A quorum of {quorum} can never be reached with {count} facilities.",
            hint="Lower strategy.quorum or add facilities.",
        )
    return quorum


def check_reducer(reducer: Reducer, least: int, most: int, key: str = "quorum") -> None:
    """Refuse a reducer that can't do its work.

    Args:
        reducer: The reducer.
        least: Smallest number of updates that a version is made of.
        most: Largest number.
        key: The strategy's key that says how many.

    Raises:
        SpecError: Krum has too few updates at `least`, or keeps so many that arbitrary
            ones are surely among them; or a trimmed mean leaves nothing out even at
            `most`.
    """
    match reducer:
        case TrimmedMean(trim=trim) if floor(trim * most) == 0:
            raise SpecError(
                f"A trimmed mean with trim {trim:g} leaves out none of {most} updates.",
                hint=_trim_hint(most),
            )
        case Krum(byzantine=byzantine) if least < 2 * byzantine + 3:
            raise SpecError(
                f"Krum with byzantine {byzantine} needs {2 * byzantine + 3} updates, "
                f"but a version may be made of {least}.",
                hint=_krum_hint(2 * byzantine + 3, byzantine, key),
            )
        case Krum(byzantine=byzantine, keep=keep) if keep > least - byzantine:
            raise SpecError(
                f"Krum can't keep {keep} updates of a version that may be made of "
                f"{least}, of which {byzantine} may be arbitrary.",
                hint=f"Raise strategy.{key} or lower strategy.reducer.keep.",
            )
        case _:
            pass


def _trim_hint(updates: int) -> str:
    if updates < 3:
        return "Choose another reducer: an update at each end must have one between."
    share = ceil(100 / updates) / 100  # hundredths that are at least one of so many
    return f"Set strategy.reducer.trim to {share} or more."


def _krum_hint(needed: int, byzantine: int, key: str) -> str:
    lower = ", or lower strategy.reducer.byzantine" if byzantine else ""
    return f"Set strategy.{key} to {needed} or more{lower}; or choose another reducer."
