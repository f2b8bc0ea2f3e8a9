"""Settings for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytest_randomly
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

# DeepSpeed offers a seeder of its own, which imports torch for every test and meets
# what tests put in torch's place. Tests that draw numbers by torch seed it themselves.
pytest_randomly.entrypoint_reseeds = []


# A script that starts the tests in its background lets them ignore Ctrl-C. What they
# start must not: some tests stop it that way.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests with real clusters go first, then what may take long, then the rest.

    So the clusters are started for one worker, and no long test is begun last.
    """
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[bool, float]:
    mark = item.get_closest_marker("timeout")
    clusters = "clusters" in getattr(item, "fixturenames", ())
    return not clusters, -mark.args[0] if mark else 0.0


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give jobs a home without a profile.

    Jobs start in login shells and many are killed: a profile could hold a lock then (as
    that of pyenv does), and every job after it would wait for that. Caches stay where
    they are: what was built once is not built again.
    """
    os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
