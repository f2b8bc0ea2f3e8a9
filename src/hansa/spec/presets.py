"""Simulated machines that come with Hansa; one file each under `presets/`.

A preset is what `facilities.<name>.simulation` may hold, fact by fact. Each fact says
why, and either which public page has its numbers or that they are synthetic: chosen
by us, to be replaced by your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.spec.fields import Section
from hansa.spec.layers import lay_over
from hansa.spec.problems import fail, problems_of
from hansa.spec.profiles import Fact
from hansa.spec.simulation import FacilitySimulation
from hansa.spec.yaml import read

_FOLDER = Path(__file__).parent / "presets"

_OF_PROFILE = {
    "alcf/aurora": "aurora",
    "alcf/polaris": "polaris",
    "nersc/perlmutter": "perlmutter",
    "nersc/perlmutter-80": "perlmutter-80",
    "olcf/frontier": "frontier",
}


class PresetFact(Fact):
    """Some keys of a simulated facility, why they are so, and who says it."""

    keys: dict[str, Any] = Field(description="a part of `simulation`")
    synthetic: bool = Field(
        False, description="whether the numbers are not measured but chosen by us"
    )

    @model_validator(mode="after")
    def _measured_or_synthetic(self) -> Self:
        if not self.synthetic and not self.source:
            raise ValueError("a fact needs a source, or `synthetic: true`")
        return self


class Preset(Section):
    """A machine as it is simulated."""

    title: str = Field(description="what it stands for")
    documents: dict[str, str] = Field(
        default_factory=dict, description="addresses of the pages that facts cite"
    )
    facts: tuple[PresetFact, ...] = Field(
        strict=False, min_length=1, description="its keys; later ones lie over earlier"
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for fact in self.facts:
            for name in fact.source:
                if name not in self.documents:
                    raise ValueError(f"source {name!r} is not among the documents")
        FacilitySimulation.model_validate(self.keys())
        return self

    def keys(self) -> dict[str, Any]:
        """Return all facts as one section."""
        whole: Mapping[str, Any] = {}
        for fact in self.facts:
            whole = lay_over(whole, fact.keys)
        return dict(whole)


def preset_names() -> list[str]:
    """Return the sorted names of all presets."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def preset_of(profile: object) -> str | None:
    """Return the name of the preset that simulates a profile's machine, or None."""
    return _OF_PROFILE.get(profile) if isinstance(profile, str) else None


@cache
def load_preset(name: str) -> Preset:
    """Return the preset `name`; each is read once.

    Raises:
        SpecError: There is no such preset (the nearest one is named).
    """
    if name not in preset_names():
        guess = nearest(name, preset_names())
        raise SpecError(
            f"There is no preset {name!r}.",
            hint=(f"Did you mean {guess!r}? " if guess else "")
            + f"Known: {', '.join(preset_names())}.",
        )
    doc = read(_FOLDER / f"{name}.yaml", "preset")
    try:
        return Preset.model_validate(doc.data)
    except ValidationError as error:
        fail(problems_of(doc, error, Preset))


def simulation_of(
    simulation: FacilitySimulation | None, profile: str | None
) -> FacilitySimulation:
    """Return how a facility is simulated.

    Args:
        simulation: What the plan says.
        profile: The facility's profile; where the plan says nothing, its machine's
            preset takes that place.
    """
    if simulation is not None:
        return simulation
    name = preset_of(profile)
    keys = {"preset": name, **load_preset(name).keys()} if name else {}
    return FacilitySimulation.model_validate(keys)
