"""`hansa simulate --from RUN`: a federation that behaves as a run's facilities did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hansa.cli.output import say, show_json, show_table
from hansa.core.errors import UsageError

if TYPE_CHECKING:
    from hansa.coordinator.folder import RunFolder
    from hansa.simulator.fit import Fit
    from hansa.spec.federation import FederationSpec


class Imitated:
    """A run whose facilities are imitated; call it with overrides for the federation.

    Args:
        folder: The run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._fit: Fit | None = None

    @classmethod
    def of(cls, run: str, runs: Path) -> Self:
        """Return the run of an id or a directory.

        Raises:
            UsageError: There is no such run.
        """
        from hansa.coordinator.folder import RunFolder

        return cls(RunFolder.existing(run, runs))

    def __call__(self, changes: Sequence[str]) -> FederationSpec:
        """Return the federation with overrides.

        Raises:
            HansaError: Nothing can be fitted, or an override makes no sense.
        """
        from hansa.simulator.fit import fitted

        spec, self._fit = fitted(self.folder, changes)
        return spec

    def show(self) -> None:
        """Print what the facilities were like, and what not to believe too firmly."""
        from hansa.core.units import short_duration
        from hansa.report.tables import hours
        from hansa.simulator.fit.describe import fit_table, made

        if self._fit is None:
            return
        measured = self._fit.measured
        spent = sum(one.node_hours for one in measured.facilities.values())
        show_table(fit_table(self._fit))
        for note in self._fit.notes:
            say(f"note: {note}")
        print(
            f"{measured.run} itself made {made(measured)} versions in "
            f"{short_duration(measured.end)} for {hours(spent)} node-hours."
        )

    def told(self) -> dict[str, Any] | None:
        """Return the same as plain data; None: it was not called yet."""
        return None if self._fit is None else self._fit.to_json()

    def write(self, changes: Sequence[str], path: Path) -> None:
        """Write the federation as a file for people to edit.

        Raises:
            UsageError: The file exists, or can't be written.
        """
        from hansa.simulator.fit.plan import study_text

        spec = self(changes)
        head = [f"Fitted by `hansa simulate --from {self.folder.run}`."]
        head += self._fit.notes if self._fit else ()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(study_text(spec, head))
        except FileExistsError:
            raise UsageError(
                f"{path} exists and is left as it is.", hint="Name another file."
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path} can't be written: {error.strerror}.", hint="Name another file."
            ) from None
        print(path)

    def check(self, *, as_json: bool) -> int:
        """Simulate the run as it was, print both, and return the exit code."""
        from hansa.simulator.fit.check import check, check_table

        made = check(self.folder)
        code = 0 if made.passed else 1
        if as_json:
            show_json(made.to_json(), code)
            return code
        show_table(check_table(made))
        print(made.verdict())
        return code


def beside(
    imitated: Imitated | None,
    changes: Sequence[str],
    *,
    write: Path | None,
    as_json: bool,
) -> int:
    """Carry ``--write`` or ``--check`` out and return the exit code.

    Args:
        imitated: The run; None: none was given.
        changes: Overrides.
        write: Where to write the federation; None: check the run instead.
        as_json: Print the check as JSON.

    Raises:
        UsageError: There is no run, or a check that something would change.
    """
    if imitated is None:
        raise UsageError(
            "--check and --write need a run.", hint="hansa simulate --from RUN --check"
        )
    if write is not None:
        imitated.write(changes, write)
        return 0
    if changes:
        raise UsageError(
            f"--check simulates {imitated.folder.run} as it was; {changes[0]!r} would "
            "change it.",
            hint="Leave one of them out.",
        )
    return imitated.check(as_json=as_json)
