"""A folder for a real run; what was started there is ended afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ports import block
from runs import Bench
from slurm import Cluster, require_slurm
from towns import Clusters


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.end()


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Clusters]:
    """Start Slurm clusters by name: ``clusters("amsterdam", "bergen", nodes=4)``."""
    require_slurm()
    root = tmp_path / "clusters"
    root.mkdir()
    with ExitStack() as stack:

        def start(*names: str, nodes: int = 4, cpus: int = 2) -> dict[str, Cluster]:
            return {
                name: stack.enter_context(
                    Cluster(root, name, block(12 + nodes), nodes, cpus)
                )
                for name in names
            }

        yield start
