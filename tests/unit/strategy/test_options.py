"""The keys that strategies share: short forms, lock files, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hansa.core.errors import SpecError
from hansa.core.recipes import (
    ClippedMean,
    Krum,
    Linear,
    Median,
    Reducer,
    TrimmedMean,
)
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedavg import FedAvg, FedAvgOptions
from hansa.strategy.fedbuff import FedBuffOptions
from hansa.strategy.fedcompass import FedCompassOptions
from hansa.strategy.fedqueue import FedQueueOptions
from hansa.strategy.options import AveragingOptions, StrategyOptions
from hansa.strategy.semisync import SemiSyncOptions


def reducer(value: Any) -> Reducer:
    return AveragingOptions.model_validate({"reducer": value}).reducer.recipe()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("linear", Linear()),
        ("median", Median()),
        ("trimmed_mean", TrimmedMean(trim=0.1)),
        ({"name": "trimmed_mean", "trim": 0.2}, TrimmedMean(trim=0.2)),
        ("clipped_mean", ClippedMean(norm=1.0)),
        ({"name": "clipped_mean", "norm": 3}, ClippedMean(norm=3)),
        ("krum", Krum(byzantine=0, keep=1)),
        ({"name": "krum", "byzantine": 1, "keep": 2}, Krum(byzantine=1, keep=2)),
    ],
)
def test_a_reducer_is_a_name_or_a_section(written: Any, meant: Reducer) -> None:
    assert reducer(written) == meant
    options = AveragingOptions.model_validate({"reducer": written})
    locked = AveragingOptions.model_validate(options.model_dump(mode="json"))
    assert locked.reducer.recipe() == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("mean", "'linear', 'median', 'trimmed_mean', 'clipped_mean' or 'krum'"),
        ({"name": "median", "trim": 0.2}, "'median' has no key 'trim'"),
        ({"name": "krum", "norm": 1}, "'krum' has no key 'norm'"),
        ({"name": "krum", "f": 1}, "Extra inputs are not permitted"),
        ({"name": "trimmed_mean", "trim": 0.5}, "less than 0.5"),
        ({"name": "trimmed_mean", "trim": 0}, "greater than 0"),
        ({"name": "clipped_mean", "norm": -1}, "greater than 0"),
        ({"name": "krum", "byzantine": -1}, "greater than or equal to 0"),
        ({"name": "krum", "keep": 0}, "greater than or equal to 1"),
        ({}, "Field required"),
        (3, "valid dictionary"),
    ],
)
def test_a_reducer_that_can_not_be_meant_is_refused(written: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        reducer(written)


def build(facilities: int, **options: Any) -> FedAvg:
    context = StrategyContext(facilities=tuple(f"f{n}" for n in range(facilities)))
    return FedAvg(FedAvgOptions.model_validate(options), context)


@pytest.mark.parametrize(
    ("facilities", "options", "words", "hint"),
    [
        (
            4,
            {"reducer": {"name": "trimmed_mean", "trim": 0.2}},
            "trim 0.2 leaves out none of 4 updates",
            "trim to 0.25 or more",
        ),
        (
            3,
            {"reducer": {"name": "trimmed_mean", "trim": 0.3}},
            "trim 0.3 leaves out none of 3 updates",
            "trim to 0.34 or more",
        ),
        (
            4,
            {"reducer": "krum"},
            "Krum with byzantine 0 needs 3 updates, but a version may be made of 1",
            "quorum to 3 or more",
        ),
        (
            5,
            {"quorum": 4, "reducer": {"name": "krum", "byzantine": 1}},
            "byzantine 1 needs 5 updates, but a version may be made of 4",
            "lower strategy.reducer.byzantine",
        ),
        (
            5,
            {"quorum": 4, "reducer": {"name": "krum", "keep": 5}},
            "can't keep 5 updates of a version that may be made of 4",
            "lower strategy.reducer.keep",
        ),
        (
            5,
            {"quorum": 5, "reducer": {"name": "krum", "byzantine": 1, "keep": 5}},
            "can't keep 5 .* made of 5, of which 1 may be arbitrary",
            "lower strategy.reducer.keep",
        ),
        (2, {"reducer": "trimmed_mean"}, "none of 2 updates", "another reducer"),
        (2, {"quorum": 2, "reducer": "krum"}, "needs 3", "or choose another reducer"),
    ],
)
def test_a_reducer_that_no_version_satisfies_is_refused_before_the_run(
    facilities: int, options: dict[str, Any], words: str, hint: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        build(facilities, **options)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("facilities", "options"),
    [
        (4, {"reducer": {"name": "trimmed_mean", "trim": 0.25}}),
        (3, {"reducer": {"name": "trimmed_mean", "trim": 0.34}}),
        (4, {"quorum": 3, "reducer": "krum"}),
        (5, {"quorum": 5, "reducer": {"name": "krum", "byzantine": 1, "keep": 4}}),
        (1, {"reducer": "median"}),
    ],
)
def test_the_next_one_over_is_taken(facilities: int, options: dict[str, Any]) -> None:
    build(facilities, **options)


def test_appfl_weighs_equally_unless_told() -> None:
    assert FedAvgOptions().weights == "samples"
    options = FedAvgOptions.model_validate({"compat": "appfl"})
    assert options.weights == "equal"
    locked = FedAvgOptions.model_validate(options.model_dump(mode="json"))
    assert locked == options
    told = {"compat": "appfl", "weights": "samples"}
    assert FedAvgOptions.model_validate(told).weights == "samples"


def test_a_round_that_ends_at_once_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        FedAvgOptions.model_validate({"deadline": "0s"})


def test_a_duration_may_not_be_endless() -> None:
    with pytest.raises(ValidationError, match="finite"):
        FedAvgOptions.model_validate({"deadline": float("inf")})


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (FedAvgOptions, "quorum"),
        (FedBuffOptions, "k"),
        (FedBuffOptions, "max_staleness"),
        (FedCompassOptions, "min_steps"),
        (FedCompassOptions, "max_steps"),
        (FedQueueOptions, "min_steps"),
        (SemiSyncOptions, "quorum"),
        (SemiSyncOptions, "max_staleness"),
    ],
)
def test_true_is_no_number(options: type[StrategyOptions], key: str) -> None:
    assert options.model_validate({key: 20})
    with pytest.raises(ValidationError, match=rf"{key}\n +Input should be a valid int"):
        options.model_validate({key: True})


@pytest.mark.parametrize("key", ["byzantine", "keep"])
def test_true_is_no_number_of_updates(key: str) -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        reducer({"name": "krum", key: True})
