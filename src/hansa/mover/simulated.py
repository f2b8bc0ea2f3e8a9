"""The way of the files to a facility that exists in simulations only."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict

from hansa.core.errors import UsageError
from hansa.core.files import FileRecords
from hansa.core.remarks import Remark
from hansa.mover.base import Moved, Place


class SimulatedMoverOptions(BaseModel):
    """Options of the simulated mover: there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedMover:
    """Stands where a federation file needs a mover but is only ever simulated.

    Args:
        options: Its options.
        place: Not used.

    Raises:
        UsageError: Always: there is no place to move anything to.
    """

    Options: ClassVar[type[BaseModel]] = SimulatedMoverOptions

    def __init__(self, options: SimulatedMoverOptions, place: Place) -> None:
        self._options, self._place = options, place
        _refuse()

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """See `Mover.put`.

        Raises:
            UsageError: Always.
        """
        _refuse()

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """See `Mover.get`.

        Raises:
            UsageError: Always.
        """
        _refuse()

    async def check(self) -> list[Remark]:
        """See `Mover.check`.

        Raises:
            UsageError: Always.
        """
        _refuse()

    async def close(self) -> None:
        """See `Mover.close`; nothing was opened."""


def _refuse() -> NoReturn:
    raise UsageError(
        "This facility exists in simulations only; no file can be moved there.",
        hint="`hansa simulate FILE` and `hansa compare FILE` carry such a federation "
        "out. For a real run, give each facility a gateway and a mover.",
    )
