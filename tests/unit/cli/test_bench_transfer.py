from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.cli.bench_transfer import sizes_of
from hansa.coordinator import transfer_bench as bench
from hansa.core.errors import HansaError, TransferError, UsageError
from hansa.report.figures import transfer as figures
from hansa.report.figures.drawing import Picture
from hansa.report.transfers import TransferSpeed

FEDERATION = """\
name: lines
model: {trainer: softmax, source: zeros, dtype: float32}
task: digits
strategy: {name: fedavg}
stop: {rounds: 1}
defaults: {mover: posix, work: {steps: 1}}
facilities:
  alpha: {gateway: {type: local, site: alpha.yaml}}
  beta: {gateway: {type: local, site: beta.yaml}}
"""


def speed(facility: str) -> TransferSpeed:
    return TransferSpeed(
        facility=facility,
        mover="posix",
        direction="put",
        bytes=1_000_000,
        seconds=(0.5, 0.25, 1.0),
        extra_memory_bytes=4_000_000,
        programs_memory_bytes=0,
    )


BROKEN = TransferError("The line broke.", hint="Mend it.")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Drawing takes longer than all the rest; the figure has tests of its own.
    drawn = Picture(name="transfer", title="", caption="", png=b"png", svg=b"svg")
    monkeypatch.setattr(figures, "transfer_picture", lambda found: drawn)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text(FEDERATION)
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    found: Sequence[str] = ("alpha",),
    failed: dict[str, HansaError] | None = None,
    left: dict[str, tuple[str, ...]] | None = None,
) -> tuple[Any, dict[str, Any]]:
    asked: dict[str, Any] = {}

    async def measured(
        lines: Sequence[bench.Line],
        sizes: Sequence[int],
        repeats: int,
        folder: Path,
        tell: bench.Tell,
    ) -> bench.TransferBench:
        tell("alpha: 1.0 MB there", 1, 2)
        asked.update(lines=[one.facility for one in lines], sizes=sizes)
        asked.update(repeats=repeats, folder=folder)
        speeds = tuple(speed(name) for name in found)
        return bench.TransferBench(found=speeds, failed=failed or {}, left=left or {})

    monkeypatch.setattr(bench, "bench_transfers", measured)
    return CliRunner().invoke(app, ["bench", "transfer", *words]), asked


def test_json_has_the_promised_keys(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("f.yaml", "--json", "--sizes", "10MB,1MB", "--repeats", "4")
    done, asked = run(monkeypatch, *words)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)["data"]
    (one,) = data["transfers"]
    assert (one["mover"], one["direction"], one["bytes"]) == ("posix", "put", 1_000_000)
    assert (one["seconds_median"], one["bytes_per_second_median"]) == (0.5, 2e6)
    assert data["extra_memory_bytes"] == 4_000_000
    assert (asked["sizes"], asked["repeats"]) == ([1_000_000, 10_000_000], 4)
    assert asked["lines"] == ["alpha", "beta"]
    assert asked["folder"].parent == Path("runs")  # a server's collection shows it


def test_pictures_and_figures_are_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = run(monkeypatch, "f.yaml", "--out", "here")
    assert done.exit_code == 0, done.output
    assert "0.500s" in done.stdout
    names = sorted(path.name for path in (place / "here").iterdir())
    assert names == ["transfer.json", "transfer.png", "transfer.svg"]
    assert (place / "here/transfer.svg").read_bytes() == b"svg"
    kept = json.loads((place / "here/transfer.json").read_text())
    assert kept["transfers"][0]["facility"] == "alpha"
    assert all(f"here/{name}" in done.stdout for name in names)


def test_only_the_facilities_that_were_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, asked = run(monkeypatch, "f.yaml", "--facility", "beta")
    assert done.exit_code == 0, done.output
    assert asked["lines"] == ["beta"]
    assert (place / "bench/lines/transfer.png").is_file()


def test_without_a_file_this_machine_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, asked = run(monkeypatch, "--directory", str(place))
    assert done.exit_code == 0, done.output
    assert asked["lines"] == ["this machine", "this machine"]
    assert asked["folder"].parent == place
    assert not asked["folder"].exists()
    assert (place / "bench/movers/transfer.png").is_file()


def test_what_failed_and_what_is_left_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = run(
        monkeypatch,
        "f.yaml",
        failed={"beta, posix": BROKEN},
        left={"alpha, posix": ("/mail/bench/updates/x",)},
    )
    assert done.exit_code == 6
    assert "beta, posix: The line broke.\n  help: Mend it." in done.stderr
    assert "could not be removed: /mail/bench/updates/x" in done.stderr


def test_if_nothing_could_be_measured_the_reason_is_the_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = run(monkeypatch, "f.yaml", found=(), failed={"beta, posix": BROKEN})
    assert done.exception is BROKEN
    assert not (place / "bench").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("f.yaml", "--facility", "gamma"), "there is no 'gamma'"),
        (("--facility", "alpha"), "there is no 'alpha'"),
        (("--sizes", "1MB,large"), "'large' is no size"),
        (("--sizes", "10"), "10 bytes are too few"),
    ],
)
def test_what_can_not_be_meant(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    done, asked = run(monkeypatch, *words)
    assert isinstance(done.exception, UsageError)
    assert message in done.exception.message
    assert asked == {}


def test_sizes_are_sorted_and_each_once() -> None:
    assert sizes_of("1GB, 1MB,1MB") == [1_000_000, 1_000_000_000]


def test_a_folder_that_can_not_be_written_does_not_lose_the_figures(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "taken").write_text("")
    done, _ = run(monkeypatch, "f.yaml", "--json", "--out", "taken")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["data"]["files"] == []
    assert re.search(r"taken can't be written: File exists", done.stderr)
