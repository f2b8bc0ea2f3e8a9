"""From files to specs: read, override, merge, check, all mistakes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hansa.core import plugins
from hansa.core.words import nearest
from hansa.spec import yaml
from hansa.spec.federation import FederationSpec
from hansa.spec.merge import expand_all, with_defaults
from hansa.spec.overrides import apply
from hansa.spec.plugged import PluginPart, absolute, checked
from hansa.spec.problems import Document, KeyPath, Problem, fail, problems_of
from hansa.spec.simulation import SimulationSpec, SurrogateTraining


def load_federation(path: str | Path, overrides: Iterable[str] = ()) -> FederationSpec:
    """Read, complete and check a federation file.

    Args:
        path: The YAML file; relative paths in it are taken from its folder.
        overrides: ``a.b=value``, ``+a.b=value``, ``~a.b``, applied in this order.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    doc = yaml.read(Path(path), "federation")
    return federation_from_document(doc, overrides, Path(path).absolute().parent)


def federation_from_text(
    text: str, *, name: str = "federation.lock.yaml", base: Path | None = None
) -> FederationSpec:
    """Check a federation that is given as text, as `lock_text` writes it.

    Args:
        text: The YAML.
        name: What to call the text in messages.
        base: Folder for relative paths; None leaves them as they are.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    return federation_from_document(yaml.parse(text, name, "federation"), (), base)


def federation_from_document(
    doc: Document, overrides: Iterable[str], base: Path | None
) -> FederationSpec:
    """Complete and check a federation that was read before.

    Args:
        doc: The file's data, as written; it stays as it is.
        overrides: As for `load_federation`.
        base: Folder for relative paths; None leaves them as they are.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    doc = apply(replace(doc, data=expand_all(doc.data)), overrides)
    doc, problems = with_defaults(replace(doc, data=expand_all(doc.data)))
    for part in _plugin_parts(doc.data):
        raw = at(doc.data, part.at)
        data, found = checked(doc, part, {} if raw is None else raw, base)
        doc = replace(doc, data=put(doc.data, part.at, data))
        problems += found
    doc = replace(doc, data=_with_local_paths(doc.data, base))
    try:
        spec = FederationSpec.model_validate(doc.data)
    except ValidationError as error:
        fail(problems + problems_of(doc, error, FederationSpec))
    problems += _cross_checks(doc, spec)
    problems += [] if problems else _misfits(doc, spec)
    if problems:
        fail(problems)
    return spec


_LOCAL_PATHS: tuple[KeyPath, ...] = (
    ("site",),
    ("simulation", "queue", "workload"),
    ("simulation", "queue", "file"),
)
"""Keys of a facility that are paths of this machine."""


def _with_local_paths(data: dict[str, Any], base: Path | None) -> dict[str, Any]:
    """Make the facilities' paths absolute; None as `base` leaves them as they are."""
    facilities = data.get("facilities")
    if base is None or not isinstance(facilities, Mapping):
        return data
    for name in facilities:
        for keys in _LOCAL_PATHS:
            path: KeyPath = ("facilities", str(name), *keys)
            text = at(data, path)
            if isinstance(text, str) and text:
                data = put(data, path, str(absolute(text, base)))
    return data


def _plugin_parts(data: Mapping[str, Any]) -> Iterator[PluginPart]:
    yield from _part(data, plugins.STRATEGIES, ("strategy", "name"), ("strategy",))
    yield from _part(data, plugins.TASKS, ("task", "name"), ("task", "options"))
    trainer = ("model", "trainer")
    yield from _part(data, plugins.TRAINERS, trainer, ("model", "options"))
    facilities = data.get("facilities")
    for name in facilities if isinstance(facilities, Mapping) else ():
        here = ("facilities", name)
        for key, group in (("gateway", plugins.GATEWAYS), ("mover", plugins.MOVERS)):
            yield from _part(data, group, (*here, key, "type"), (*here, key))
        yield from _part(data, plugins.TRAINERS, trainer, (*here, "work"))


_ATTRIBUTES = {
    (plugins.TASKS, "options"): ("options", ()),
    (plugins.TRAINERS, "options"): ("model_options", ()),
    (plugins.TRAINERS, "work"): ("work_options", ("steps",)),
}


def _part(
    data: Mapping[str, Any], group: str, chooser: KeyPath, where: KeyPath
) -> Iterator[PluginPart]:
    """Yield the part unless its surroundings are so wrong that pydantic must tell."""
    name, parent = at(data, chooser), at(data, where[:-1])
    if not isinstance(name, str) or not isinstance(parent, Mapping):
        return
    if not isinstance(at(data, where), Mapping | None):
        return
    plain = ("Options", (str(chooser[-1]),))
    attribute, own = _ATTRIBUTES.get((group, str(where[-1])), plain)
    yield PluginPart(group, chooser, name, where, own, attribute)


def at(data: Any, path: KeyPath) -> Any:
    """Return what lies at `path` in plain data, or None."""
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(str(key))
    return data


def put(data: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """Return a copy of plain data with `value` at `path`."""
    key = str(path[0])
    if len(path) == 1:
        return {**data, key: value}
    return {**data, key: put(data[key], path[1:], value)}


def _cross_checks(doc: Document, spec: FederationSpec) -> list[Problem]:
    on: KeyPath = ("evaluation", "on")
    problems = _unknown(doc, on, "facility", spec.evaluation.on, spec.facilities)
    for name, facility in spec.facilities.items():
        kinds = facility.gateway.type, facility.mover.type
        if kinds.count("simulated") == 1:
            text = (
                f"of facilities.{name} either gateway and mover are simulated, or none"
            )
            problems.append(doc.problem(("facilities", name, "mover"), text))
    problems += _class_checks(doc, spec)
    return problems + (_compare_checks(doc, spec.simulation) if spec.simulation else [])


def _class_checks(doc: Document, spec: FederationSpec) -> list[Problem]:
    """Look for classes of data that a simulation does not have."""
    how = spec.simulation or SimulationSpec.model_validate({})
    problems: list[Problem] = []
    if not isinstance(how.training, SurrogateTraining):
        return problems
    most = how.training.classes - 1
    for name, facility in spec.facilities.items():
        told = facility.simulation.classes if facility.simulation else None
        for one in told or ():
            if one > most:
                path: KeyPath = ("facilities", name, "simulation", "classes")
                text = f"{doc.called(path)} has {one}; the classes are 0 to {most}"
                problems.append(doc.problem(path, text))
    return problems


def _compare_checks(doc: Document, simulation: SimulationSpec) -> list[Problem]:
    """Look for names that `hansa compare` would not find."""
    compare, here = simulation.compare, ("simulation", "compare")
    known = plugins.names(plugins.STRATEGIES)
    scenarios = ("base", *simulation.scenarios)
    return [
        *_unknown(doc, (*here, "strategies"), "strategy", compare.strategies, known),
        *_unknown(doc, (*here, "own_grid"), "strategy", compare.own_grid, known),
        *_unknown(doc, (*here, "scenarios"), "scenario", compare.scenarios, scenarios),
    ]


def _unknown(
    doc: Document, path: KeyPath, what: str, names: Iterable[str], known: Iterable[str]
) -> list[Problem]:
    """Return the problems of names at `path` that are not among the known ones."""
    known, problems = list(known), []
    for name in names:
        if name not in known:
            guess = nearest(name, known)
            advice = f"did you mean {guess!r}?" if guess else f"there are {known}"
            text = f"{doc.called(path)} names no {what}: {name!r}; {advice}"
            problems.append(doc.problem(path, text))
    return problems


def _misfits(doc: Document, spec: FederationSpec) -> list[Problem]:
    """Let the trainer tell whose work does not go with its model."""
    plugin = plugins.find(plugins.TRAINERS, spec.model.trainer)
    misfit = getattr(plugin, "misfit", None)
    if misfit is None:
        return []
    model = plugin.model_options.model_validate(spec.model.options)
    problems = []
    for name, facility in spec.facilities.items():
        work = plugin.work_options.model_validate(facility.work.options)
        if (why := misfit(model, work)) is not None:
            problems.append(doc.problem(("facilities", name, "work"), why))
    return problems
