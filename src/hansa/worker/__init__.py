"""Inside the batch job: bind a version, train, write the update.

`load`, `step` and `submit` are for training programs of one's own; see
`hansa.worker.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hansa.worker.api import load as load
    from hansa.worker.api import step as step
    from hansa.worker.api import submit as submit

_CALLS = ("load", "step", "submit")


def __getattr__(name: str) -> Any:
    """Import the calls when they are used: the worker itself never does."""
    if name not in _CALLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hansa.worker import api  # noqa: PLC0415

    return getattr(api, name)
