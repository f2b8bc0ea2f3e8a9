"""Which runs a comparison needs: strategies x modes x scenarios x grid points.

Each is the federation's document with some more overrides, so that any of them can be
repeated by ``hansa simulate``.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from hansa.core import plugins
from hansa.core.errors import SpecError, UsageError
from hansa.core.rng import derive_seed
from hansa.core.words import nearest
from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_document
from hansa.spec.merge import expand_all
from hansa.spec.overrides import apply
from hansa.spec.problems import Document
from hansa.spec.simulation import CompareSpec, SimulationSpec
from hansa.spec.yaml import read

PUBLISHED, LATE = "published", "late"
MODES = (PUBLISHED, LATE)
BASE = "base"
"""The scenario that is the file as it is."""

_WAITING = ("linger", "queue_ahead")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the command line asks for; None or empty: what the file says."""

    strategies: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    seeds: int | None = None
    target: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One strategy with one grid point, in one mode and scenario.

    Attributes:
        scenario: Name of the scenario.
        strategy: Name of the strategy.
        mode: ``late`` or ``published``.
        point: The grid's keys with their values.
        overrides: What makes it of the document, in this order.
    """

    scenario: str
    strategy: str
    mode: str
    point: tuple[tuple[str, Any], ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One strategy in one mode and scenario, with all that it may choose from."""

    scenario: str
    strategy: str
    mode: str
    configurations: tuple[Configuration, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """All runs of a comparison.

    Attributes:
        path: The federation file.
        document: Its data, as written.
        spec: The federation as the file has it.
        target: Loss whose time is measured; None: none.
        seeds: Seeds of the runs that are reported, the same for all.
        tuning_seeds: Seeds of the runs that choose grid points; none of `seeds`.
        contestants: By scenario, then by strategy, then by mode.
    """

    path: Path
    document: Document = field(repr=False)
    spec: FederationSpec = field(repr=False)
    target: float | None
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    contestants: tuple[Contestant, ...]

    def command(self, configuration: Configuration, seed: int) -> str:
        """Return the command that repeats one run."""
        words = ["hansa", "simulate", str(self.path), *configuration.overrides]
        return shlex.join([*words, "--seed", str(seed)])


def load(
    document: Document, path: Path, overrides: Iterable[str] = ()
) -> FederationSpec:
    """Return the federation that overrides make of a document.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    return federation_from_document(document, overrides, path.absolute().parent)


def plan_study(path: Path, overrides: Sequence[str], wishes: Wishes) -> Study:
    """Return which runs a comparison needs.

    Args:
        path: The federation file.
        overrides: From the command line; they hold for all runs.
        wishes: The rest of the command line.

    Raises:
        SpecError: The file, or a scenario, can't be understood.
        PluginError: There is no such strategy.
        UsageError: There is no such scenario or mode, the target makes no sense, or
            an override makes one strategy of another.
    """
    document = read(path, "federation")
    spec = load(document, path, overrides)
    simulation = spec.simulation or SimulationSpec.model_validate({})
    told = simulation.compare
    count = wishes.seeds or told.seeds
    target = told.target if wishes.target is None else wishes.target
    return Study(
        path=path,
        document=document,
        spec=spec,
        target=checked_target(spec, target),
        seeds=tuple(range(spec.seed, spec.seed + count)),
        tuning_seeds=tuple(derive_seed("tuning", spec.seed, k) for k in range(count)),
        contestants=tuple(
            Contestant(
                scenario=scenario,
                strategy=strategy,
                mode=mode,
                configurations=_configurations(
                    document, spec, (*overrides, *changes), (scenario, strategy, mode)
                ),
            )
            for scenario, changes in _scenarios(simulation, wishes).items()
            for strategy in _strategies(spec, told, wishes)
            for mode in _modes(told, wishes)
        ),
    )


def checked_target(spec: FederationSpec, wished: float | None) -> float | None:
    """Return the loss whose time is measured; None: none.

    Args:
        spec: The federation; its `stop.target` counts if nothing is wished.
        wished: What somebody asked for instead.

    Raises:
        UsageError: That is no number, or one that no run lives to see.
    """
    stop = spec.stop.target
    if wished is None:
        return None if stop is None else stop.below
    if not math.isfinite(wished):
        raise UsageError(
            f"The target {wished} is no number.", hint="Give a loss, as 0.1."
        )
    if stop is not None and wished < stop.below:
        raise UsageError(
            f"Runs end at a loss of {stop.below:g} (stop.target), before the target "
            f"{wished:g}.",
            hint=f"Add stop.target.below={wished:g}.",
        )
    return wished


def training_of(spec: FederationSpec) -> str:
    """Return what stands for the training: ``surrogate``, ``real`` or ``none``."""
    return (spec.simulation or SimulationSpec.model_validate({})).training.type


def _strategies(
    spec: FederationSpec, told: CompareSpec, wishes: Wishes
) -> tuple[str, ...]:
    chosen = wishes.strategies or told.strategies or (spec.strategy.name,)
    for name in chosen:
        plugins.find(plugins.STRATEGIES, name)
    return tuple(dict.fromkeys(chosen))


def _modes(told: CompareSpec, wishes: Wishes) -> tuple[str, ...]:
    for mode in wishes.modes:
        if mode not in MODES:
            raise UsageError(
                f"There is no mode {mode!r}.", hint=f"There are: {', '.join(MODES)}."
            )
    return tuple(dict.fromkeys(wishes.modes or told.modes or (LATE,)))


def _scenarios(
    simulation: SimulationSpec, wishes: Wishes
) -> dict[str, tuple[str, ...]]:
    chosen = wishes.scenarios or simulation.compare.scenarios
    chosen = chosen or tuple(simulation.scenarios) or (BASE,)
    return {name: scenario_changes(simulation, name) for name in chosen}


def scenario_changes(simulation: SimulationSpec | None, name: str) -> tuple[str, ...]:
    """Return the overrides of a scenario; `BASE` has none unless it is described.

    Raises:
        UsageError: There is no such scenario (the nearest one is named).
    """
    described = simulation.scenarios if simulation else {}
    known = {BASE: (), **described}
    if name in known:
        return known[name]
    guess = nearest(name, known)
    raise UsageError(
        f"There is no scenario {name!r}.",
        hint=(f"Did you mean {guess!r}? " if guess else "")
        + f"simulation.scenarios has: {', '.join(described) or 'none'}.",
    )


def _configurations(
    document: Document,
    spec: FederationSpec,
    overrides: tuple[str, ...],
    names: tuple[str, str, str],
) -> tuple[Configuration, ...]:
    """Return a strategy's grid points; `overrides` are command line and scenario."""
    place, strategy, mode = names
    own = () if strategy == spec.strategy.name else (f"strategy={{name: {strategy}}}",)
    whole = replace(document, data=expand_all(document.data))
    try:
        changed = apply(whole, (*own, *overrides))
    except SpecError as error:
        raise SpecError(
            f"The scenario {place!r} can't be: {error.message}", hint=error.hint
        ) from error
    _refuse_another(changed.data, place, strategy)
    binding = _published(changed.data) if mode == PUBLISHED else ()
    told = spec.simulation.compare if spec.simulation else None
    grid = {**told.grid, **told.own_grid.get(strategy, {})} if told else {}
    return tuple(
        Configuration(
            scenario=place,
            strategy=strategy,
            mode=mode,
            point=point,
            overrides=(*own, *overrides, *map(_setting, point), *binding),
        )
        for point in _points(grid)
    )


def _refuse_another(data: Mapping[str, Any], place: str, strategy: str) -> None:
    """Refuse overrides that make another strategy of one, under its name."""
    found = expand_all(data).get("strategy")
    name = found.get("name") if isinstance(found, Mapping) else found
    if name != strategy:
        raise UsageError(
            f"An override makes {name} of {strategy} (scenario {place!r}).",
            hint="Say which strategies to compare with --strategies.",
        )


def _points(grid: Mapping[str, Sequence[Any]]) -> list[tuple[tuple[str, Any], ...]]:
    rows = [[(key, value) for value in values] for key, values in grid.items()]
    return [tuple(point) for point in product(*rows)]


def _setting(pair: tuple[str, Any]) -> str:
    key, value = pair
    return f"{key}={json.dumps(value)}"  # JSON is YAML


def _published(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what takes late binding away, where a facility sets its own keys too."""
    changes = [f"defaults.{key}=0" for key in _WAITING]
    facilities = data.get("facilities")
    for name, facility in facilities.items() if isinstance(facilities, dict) else ():
        own = facility if isinstance(facility, Mapping) else {}
        changes += [f"facilities.{name}.{key}=0" for key in _WAITING if key in own]
    return (*changes, "simulation.binding=submission")
