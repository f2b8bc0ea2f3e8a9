"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: how fast a machine is must not decide a test. In CI the same examples
# every time, so that a failure there can be repeated.
settings.register_profile(
    "hansa",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("hansa")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests that wait for real clusters go first: the others fill the time."""
    items.sort(key=lambda item: "clusters" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give jobs a home without a profile.

    Jobs start in login shells and many are killed: a profile could hold a lock then (as
    that of pyenv does), and every job after it would wait for that. Caches stay where
    they are: what was built once is not built again.
    """
    os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
