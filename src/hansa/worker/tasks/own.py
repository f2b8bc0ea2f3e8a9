"""The task `own-data`: what a training program of one's own reads by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hansa.worker.base import Example
from hansa.worker.options import OwnDataOptions


class OwnData:
    """Data that only the program knows; see `hansa.worker.base.Task`.

    Each example stands for one that is not read here.
    """

    def __init__(self, source: Path | None, cache: Path, options: OwnDataOptions):
        del source, cache
        self._options = options

    def groups(self) -> Sequence[str]:
        """Return nothing: the program divides its data itself."""
        return ()

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return an example for each that there is to train, or for each test task."""
        del groups
        if split == "train":
            return [Example("own", None, None)] * self._options.examples
        return [Example(task, None, None) for task in self._options.tests]
