"""One rank alone: nothing is spread and nothing travels."""

from __future__ import annotations

from collections.abc import Mapping

from hansa.worker.engine.whole import Whole


class Alone(Whole):
    """The `Engine` of one rank."""

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        return {"sharding": "none", **super().words()}
