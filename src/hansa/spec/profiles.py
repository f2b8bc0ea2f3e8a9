"""Facts of known machines; one file each under `profiles/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.spec.fields import Section, Size, Texts
from hansa.spec.problems import fail, problems_of
from hansa.spec.yaml import read

_FOLDER = Path(__file__).parent / "profiles"


class NodeFacts(Section):
    """One node of a machine."""

    gpus: int = Field(ge=0, description="GPU cards")
    gpu: str | None = Field(None, description="what the GPU is called")
    gpu_memory: Size | None = Field(
        None, description="memory of the device (card, tile or die) that one rank uses"
    )
    ranks: int = Field(ge=1, description="ranks to start, one for each device")
    cores: int | None = Field(None, description="CPU cores; null: not known")


class Profile(Section):
    """A known machine."""

    title: str = Field(description="name and place")
    scheduler: str = Field(description="name of the scheduler plug-in")
    node: NodeFacts = Field(description="one node")
    job: dict[str, Any] = Field(
        default_factory=dict, description="defaults for a facility's `job`"
    )
    sources: Texts = Field((), description="where these facts come from")
    notes: Texts = Field((), description="what else to know")


def profile_names() -> list[str]:
    """Return the sorted names of all profiles, as ``alcf/polaris``."""
    return sorted(file.stem.replace("-", "/", 1) for file in _FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Return the profile `name`.

    Raises:
        SpecError: There is no such profile (the nearest one is named).
    """
    if name not in profile_names():
        guess = nearest(name, profile_names())
        raise SpecError(
            f"There is no profile {name!r}.",
            hint=(f"Did you mean {guess!r}? " if guess else "")
            + f"Known: {', '.join(profile_names())}.",
        )
    doc = read(_FOLDER / f"{name.replace('/', '-', 1)}.yaml", "profile")
    try:
        return Profile.model_validate(doc.data)
    except ValidationError as error:
        fail(problems_of(doc, error, Profile))
