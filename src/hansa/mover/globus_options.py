"""The keys of the mover over Globus Transfer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hansa.core.units import Seconds


def _path(text: str) -> str:
    path = PurePosixPath(text)
    if text.startswith("/") and ".." not in path.parts and text.isprintable():
        return str(path)
    raise ValueError(
        f"{text!r} can't be a path of a collection; begin with '/' (or '/~/' for the "
        "home directory there), as the collection's page shows it, and leave '..' out"
    )


def _uuid(text: str) -> str:
    parts = text.lower().split("-")
    hexed = all(set(part) <= set("0123456789abcdef") for part in parts)
    if hexed and [len(part) for part in parts] == [8, 4, 4, 4, 12]:
        return "-".join(parts)
    raise ValueError(
        f"{text!r} is no collection's UUID; copy it from the collection's page at "
        "app.globus.org"
    )


Uuid = Annotated[str, AfterValidator(_uuid)]
CollectionPath = Annotated[str, AfterValidator(_path)]


class HereOptions(BaseModel):
    """The server's own collection.

    Attributes:
        collection: Its UUID: a collection, or Globus Connect Personal, that sees the
            runs folder.
        root: A directory of this machine that holds the runs folder.
        path: The same directory as the collection shows it.
        data_access: Whether it is a mapped collection that wants a consent of its own
            (those of high assurance don't).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    collection: Uuid
    root: Path
    path: CollectionPath
    data_access: bool = False


class GlobusOptions(BaseModel):
    """Options of the mover over Globus Transfer.

    Attributes:
        collection: UUID of the facility's collection.
        path: The mailbox as that collection shows it.
        here: The server's own collection; the same for all facilities, so
            `defaults.mover` is its place.
        data_access: Whether the facility's is a mapped collection that wants a
            consent of its own (those of high assurance don't).
        deadline: Seconds after which the service gives a task up. The site agent
            removes what is half-arrived when it is a day old.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    collection: Uuid
    path: CollectionPath
    here: HereOptions
    data_access: bool = False
    deadline: Annotated[Seconds, Field(ge=60)] = 86400.0
