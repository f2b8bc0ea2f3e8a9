"""Plug-ins that exist only here, and a folder with a whole, small federation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from hansa.core import plugins
from hansa.core.errors import PluginError
from hansa.core.units import Seconds
from hansa.core.words import nearest


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AverageOptions(Options):
    weights: Literal["samples", "equal"] = "samples"
    quorum: int = Field(1, ge=1)
    deadline: Seconds | None = None


class BufferOptions(Options):
    size: int = 2


class SiteOptions(Options):
    site: Path


class RemoteOptions(Options):
    endpoint: str
    tries: int = 3


class LinearModel(Options):
    features: int = 64


class LinearWork(Options):
    batch: int = Field(32, ge=1)
    lr: float = Field(0.5, gt=0)


class PartsOptions(Options):
    parts: int
    seed: int = 0


class QueueOptions(Options):
    slots: int = 1
    directory: Path | None = None


class CarelessOptions(BaseModel):
    depth: int = 1


PLUGINS: dict[str, dict[str, Any]] = {
    plugins.STRATEGIES: {
        "average": SimpleNamespace(Options=AverageOptions),
        "buffer": SimpleNamespace(Options=BufferOptions),
        "careless": SimpleNamespace(Options=CarelessOptions),
        "mute": SimpleNamespace(),
    },
    plugins.GATEWAYS: {
        "here": SimpleNamespace(Options=SiteOptions),
        "remote": SimpleNamespace(Options=RemoteOptions),
    },
    plugins.MOVERS: {"copy": SimpleNamespace(Options=Options)},
    plugins.SCHEDULERS: {"queue": SimpleNamespace(Options=QueueOptions)},
    plugins.TRAINERS: {
        "linear": SimpleNamespace(model_options=LinearModel, work_options=LinearWork)
    },
    plugins.TASKS: {"parts": SimpleNamespace(options=PartsOptions)},
}


def find(group: str, name: str) -> Any:
    if name in PLUGINS[group]:
        return PLUGINS[group][name]
    guess = nearest(name, PLUGINS[group])
    raise PluginError(
        f"There is no {plugins.singular(group)} {name!r}.",
        hint=f"Did you mean {guess!r}?" if guess else None,
    )


FEDERATION = """\
name: towns
model: {trainer: linear, source: zeros}
task: {name: parts, options: {parts: 2}}
strategy: average
stop: {rounds: 3}
defaults:
  mover: copy
  job: {time: 30m, queue: slow}
  work: {steps: 20, lr: 1e-4}
facilities:
  bergen:
    gateway: {type: here, site: sites/bergen.yaml}
    data: part-0
  riga:
    gateway: {type: remote, endpoint: e-1}
    job: {queue: fast}
    data: [part-1, part-0]
    work: {steps: 5}
"""

SITE = """\
name: bergen
scheduler: queue
mailbox: mail
tasks:
  parts:
    data: ../numbers
    splits: part-0
"""


@pytest.fixture(autouse=True)
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find", find)
    monkeypatch.setattr(plugins, "names", lambda group: sorted(PLUGINS[group]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `fed.yaml` and `site.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fed.yaml").write_text(FEDERATION)
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Any:
    """Replace text in one of the two files; the text must be there."""

    def change(old: str, new: str, file: str = "fed.yaml") -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change
