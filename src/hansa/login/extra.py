"""The packages of the extra `globus`, which are loaded only where they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hansa.core.errors import PluginError

_PACKAGES = ("globus_sdk", "globus_compute_sdk", "globus_compute_common")


@contextmanager
def extra() -> Iterator[None]:
    """Turn a failed import of a Globus package into words.

    Raises:
        PluginError: The extra `globus` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise PluginError(
            f"Globus needs the package {error.name}, which is not installed.",
            hint="Run `pip install 'hansa[globus]'`.",
        ) from error
