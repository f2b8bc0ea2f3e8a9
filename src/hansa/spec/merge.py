"""What lies beneath what: profile and preset, then `defaults`, then the facility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hansa.core.errors import SpecError
from hansa.spec.layers import lay_over
from hansa.spec.presets import load_preset, preset_of
from hansa.spec.problems import Document, KeyPath, Place, Problem
from hansa.spec.profiles import load_profile

SHORT_FORMS = {"strategy": "name", "task": "name", "gateway": "type", "mover": "type"}


def expand(section: Mapping[str, Any]) -> dict[str, Any]:
    """Write short forms out: ``strategy: fedavg`` becomes ``{name: fedavg}``."""
    return {
        key: {SHORT_FORMS[key]: value}
        if key in SHORT_FORMS and isinstance(value, str)
        else value
        for key, value in section.items()
    }


def expand_all(data: Mapping[str, Any]) -> dict[str, Any]:
    """Write the short forms of a whole federation out."""
    whole = expand(data)
    if isinstance(whole.get("defaults"), Mapping):
        whole["defaults"] = expand(whole["defaults"])
    if isinstance(whole.get("facilities"), Mapping):
        whole["facilities"] = {
            name: expand(facility) if isinstance(facility, Mapping) else facility
            for name, facility in whole["facilities"].items()
        }
    return whole


def with_defaults(doc: Document) -> tuple[Document, list[Problem]]:
    """Merge `defaults`, profiles' job defaults and presets under each facility.

    Returns:
        The document without `defaults`, where inherited keys keep the place where
        they were written, and the problems of unknown profiles and presets.
    """
    data = dict(doc.data)
    defaults = data.pop("defaults", None)
    facilities = data.get("facilities")
    if defaults is None:
        defaults = {}
    if not isinstance(defaults, Mapping):
        return doc, [doc.problem(("defaults",), "defaults must be keys with values")]
    if not isinstance(facilities, Mapping):
        return replace(doc, data=data), []
    places = dict(doc.places)
    for name in facilities:
        _inherit(places, ("facilities", name))
    whole = replace(doc, places=places)
    merged, problems = {}, []
    for name, facility in facilities.items():
        merged[name] = facility
        if facility is None or isinstance(facility, Mapping):
            merged[name] = lay_over(defaults, facility or {})
            problems += _add_profile(whole, ("facilities", name), merged[name])
            problems += _add_preset(whole, ("facilities", name), merged[name])
    return replace(whole, data={**data, "facilities": merged}), problems


def _inherit(places: dict[KeyPath, Place], at: KeyPath) -> None:
    for path, place in list(places.items()):
        if len(path) > 1 and path[0] == "defaults":
            places.setdefault((*at, *path[1:]), place)


def _add_profile(doc: Document, at: KeyPath, facility: dict[str, Any]) -> list[Problem]:
    name = facility.get("profile")
    if not isinstance(name, str):
        return []
    try:
        defaults = load_profile(name).job
    except SpecError as error:
        return [doc.problem((*at, "profile"), f"{error.message} {error.hint}")]
    job = facility.get("job")
    if job is None or isinstance(job, Mapping):
        facility["job"] = lay_over(defaults, job or {})
    return []


def _add_preset(doc: Document, at: KeyPath, facility: dict[str, Any]) -> list[Problem]:
    """Lay a preset, by default that of the profile, beneath what is simulated.

    Where nothing is said of a simulation nothing is added, so the plan of a real run
    does not depend on presets.
    """
    own = facility.get("simulation")
    if not isinstance(own, Mapping):
        return []
    name = own.get("preset", preset_of(facility.get("profile")))
    if not isinstance(name, str):
        return []
    try:
        keys = load_preset(name).keys()
    except SpecError as error:
        text = f"{error.message} {error.hint}"
        return [doc.problem((*at, "simulation", "preset"), text)]
    facility["simulation"] = lay_over(keys, {**own, "preset": name})
    return []
