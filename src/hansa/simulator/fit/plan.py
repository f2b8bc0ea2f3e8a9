"""The plan of a run, made into a federation that can be simulated and changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hansa.spec.federation import FederationSpec
from hansa.spec.load import federation_from_document
from hansa.spec.overrides import apply, parse
from hansa.spec.problems import Document, Place
from hansa.spec.simulation import FacilitySimulation
from hansa.spec.yaml import dump


def planned(
    plan: FederationSpec,
    simulation: Mapping[str, Any],
    facilities: Mapping[str, FacilitySimulation],
    *,
    name: str,
) -> Document:
    """Return a run's plan with what was fitted, as a federation file has it.

    What the plan says of the simulation itself, and the fit does not, is kept.

    Args:
        plan: The plan of the run.
        simulation: The federation's `simulation`, as plain data.
        facilities: The facilities'.
        name: What to call it in messages.
    """
    data = plan.model_dump(mode="json")
    data["simulation"] = {**(data["simulation"] or {}), **simulation}
    for facility, fitted in facilities.items():
        own = data["facilities"][facility]
        known = {**(own["simulation"] or {}), "preset": None}
        new = fitted.model_dump(mode="json", exclude_unset=True)
        own["simulation"] = {**known, **new}
    return Document("federation", name, data, {(): Place(name, 1, ())})


def changed(doc: Document, overrides: Iterable[str]) -> Document:
    """Apply overrides as if the plan were the file that it was made of.

    A plan has no `defaults` left: what is said of them holds for every facility. And
    the options of its strategy mean nothing to another one.

    Raises:
        SpecError: An override can't be read or applied.
    """
    overrides = list(overrides)
    own = doc.data["strategy"]["name"]
    for override in map(parse, overrides):
        if override.keys == ("strategy", "name") and override.value != own:
            doc = replace(doc, data={**doc.data, "strategy": {"name": override.value}})
    return apply(doc, for_each(overrides, doc.data["facilities"]))


def for_each(overrides: Iterable[str], facilities: Iterable[str]) -> Iterator[str]:
    """Yield the overrides, those of `defaults` once for each facility."""
    names = list(facilities)
    for text in overrides:
        sign = text[:1] if text[:1] in {"+", "~"} else ""
        rest = text.removeprefix(sign)
        if rest.startswith("defaults."):
            key = rest.removeprefix("defaults.")
            yield from (f"{sign}facilities.{name}.{key}" for name in names)
        else:
            yield text


def limited(doc: Document, made: int) -> tuple[Document, bool]:
    """Let a run end after so many versions if its target can't be reached.

    Nothing has a loss where nothing is trained; then the target is taken away.

    Args:
        doc: The federation, complete.
        made: Versions that the measured run made.

    Returns:
        The federation, and whether there was such a target.
    """
    training = (doc.data.get("simulation") or {}).get("training") or {}
    stop = doc.data.get("stop") or {}
    kind = training.get("type") if isinstance(training, Mapping) else training
    if kind != "none" or not stop.get("target"):
        return doc, False
    rounds = min(stop.get("rounds") or made, max(1, made))
    stop = {**stop, "target": None, "rounds": rounds}
    return replace(doc, data={**doc.data, "stop": stop}), True


def checked(doc: Document) -> FederationSpec:
    """Return the federation of a document.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    return federation_from_document(doc, (), None)


def study_text(spec: FederationSpec, words: Iterable[str] = ()) -> str:
    """Return a federation as a file for people to edit.

    Keys that have their default are left out, and what all facilities share stands
    under `defaults`.

    Args:
        spec: The federation.
        words: Lines of comment for its head.
    """
    data = spec.model_dump(mode="json", exclude_defaults=True)
    shared, own = _parted(data.pop("facilities"))
    head = "".join(f"# {line}\n" for text in words for line in text.splitlines())
    return head + dump({**data, "defaults": shared, "facilities": own})


def _parted(
    sections: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what sections share, and what is left of each; mapping by mapping.

    A mapping with a `type` is shared as a whole or not at all: an override of the
    type must not mix one kind's options with another's.
    """
    first = next(iter(sections.values()))
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: dict(one) for name, one in sections.items()}
    for key, value in first.items():
        values = {name: one.get(key) for name, one in sections.items()}
        if all(one == value for one in values.values()):
            shared[key] = value
            for one in own.values():
                del one[key]
        elif all(
            isinstance(one, dict) and "type" not in one for one in values.values()
        ):
            common, left = _parted({n: v for n, v in values.items() if v is not None})
            if common:
                shared[key] = common
                for name, rest in left.items():
                    own[name][key] = rest
    return shared, own
