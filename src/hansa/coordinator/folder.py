"""The directory of a run on the server: what lies where, and who has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.core.errors import RunConflict, UsageError
from hansa.core.ids import check_run
from hansa.journal import Record, read
from hansa.mailbox.files import write_text
from hansa.spec.federation import FederationSpec, lock_text, plan_hash
from hansa.spec.load import federation_from_text
from hansa.store.atomic import write_json


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/<run>/`` and the files in it."""

    path: Path

    @classmethod
    def of(cls, run: str, runs: Path) -> RunFolder:
        """Return the folder of a run that is named by id or by directory."""
        if "/" in run or run in {".", ".."}:
            return cls(Path(run).resolve())
        return cls((runs / check_run(run)).resolve())

    @classmethod
    def existing(cls, run: str, runs: Path) -> RunFolder:
        """Return the folder of a run that exists.

        Raises:
            UsageError: There is no such run.
        """
        folder = cls.of(run, runs)
        if folder.lock.is_file():
            return folder
        known = sorted(path.parent.name for path in runs.glob("*/federation.lock.yaml"))
        raise UsageError(
            f"There is no run {run!r} in {runs}.",
            hint=f"There are: {', '.join(known)}." if known else "Use --runs DIR.",
        )

    @property
    def run(self) -> str:
        """Id of the run."""
        return self.path.name

    @property
    def lock(self) -> Path:
        """The complete plan."""
        return self.path / "federation.lock.yaml"

    @property
    def journal(self) -> Path:
        """The log of events."""
        return self.path / "journal.jsonl"

    @property
    def lease(self) -> Path:
        """Who writes the journal."""
        return self.path / "journal.lease"

    @property
    def live(self) -> Path:
        """What the facilities do just now; for people, may be old."""
        return self.path / "live.json"

    @property
    def request(self) -> Path:
        """What an operator asks of the running coordinator."""
        return self.path / "request.json"

    @property
    def report(self) -> Path:
        """Pictures and tables."""
        return self.path / "report"

    def spec(self) -> FederationSpec:
        """Return the plan of the run."""
        return federation_from_text(
            self.lock.read_text(encoding="utf-8"), name=str(self.lock)
        )

    def records(self) -> Iterable[Record]:
        """Return the journal's records; none if the run has not begun."""
        return read(self.journal) if self.journal.is_file() else ()

    def claim(self, spec: FederationSpec) -> bool:
        """Make the run's directory, or see that it belongs to the same plan.

        Returns:
            Whether the run existed before.

        Raises:
            RunConflict: The id is taken by another plan.
        """
        if not self.journal.is_file():
            # Nothing has begun: a plan that could not even start may be corrected.
            self._make()
            write_text(self.lock, lock_text(spec))
            return False
        if plan_hash(self.spec()) != plan_hash(spec):
            raise RunConflict(
                f"The run {self.run} exists in {self.path} with another plan.",
                hint="Choose another --id, or continue that one with "
                f"`hansa run --resume {self.run}`.",
            )
        return True

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"The run's folder {self.path} can't be made: {error.strerror}.",
                hint="Choose another place with --runs DIR.",
            ) from error

    def ask(self, request: str) -> None:
        """Leave a request (`stop` or `cancel`) for the running coordinator."""
        write_json(self.request, {"request": request})

    def asked(self) -> str | None:
        """Take an operator's request, if there is one."""
        try:
            data = json.loads(self.request.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        self.request.unlink(missing_ok=True)
        return str(data.get("request"))

    def live_view(self) -> dict[str, Any]:
        """Return the last live view; empty if there is none."""
        try:
            data = json.loads(self.live.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return dict(data)
