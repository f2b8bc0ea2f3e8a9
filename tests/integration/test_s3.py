"""A federation whose files go over a bucket; processes die and the service stumbles."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runs import Bench, until
from s3_service import BUCKET, KEYS, Answer, Asked, Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NAMES = ("amsterdam", "bergen")


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    made.start()
    made.empty()
    yield made
    made.stop()


def write(bench: Bench, service: Service, *hosts: str) -> None:
    """Write the digits federation with files over the bucket."""
    path = bench.write(NAMES, rounds=3, steps=20)
    mover = f"{{type: s3, bucket: {BUCKET}, endpoint: 'http://{service.host}'}}"
    text = path.read_text()
    assert "mover: posix" in text
    path.write_text(text.replace("mover: posix", f"mover: {mover}"))
    for name in NAMES:
        with (bench.root / f"{name}.yaml").open("a") as file:
            listed = ", ".join(f"'{host}'" for host in hosts)
            file.write(f"exchange: {{hosts: [{listed}]}}\n")
    bench.environment.update(KEYS)


def kill_one_worker(root: Path) -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            ours = "hansa.site.exchange_worker" in words
            if ours and words[-1].startswith(str(root)):
                process.send_signal(signal.SIGKILL)
                return True
    return False


def test_a_run_over_a_bucket_outlives_its_troubles(
    bench: Bench, service: Service
) -> None:
    write(bench, service, service.host)
    seen: Counter[str] = Counter()

    def trick(asked: Asked) -> Answer | None:
        if not asked.signed:
            return None
        seen[asked.method] += 1
        if seen[asked.method] == 2 and kill_one_worker(bench.root):
            seen["killed"] += 1
        if seen[asked.method] in (4, 5):
            return "503 Slow Down", b""
        return ("403 Forbidden", b"") if seen[asked.method] == 7 else None

    service.trick = trick
    summary = bench.data("run", "federation.yaml", "--id", "r")
    assert summary["outcome"] == "done"
    assert len(summary["versions"]) == 4
    assert {f["updates_applied"] for f in summary["facilities"].values()} == {3}
    assert summary["bytes_received"] > 0
    assert seen["killed"] >= 1
    assert set(service.uploads().values()) == {1}
    assert not service.objects()
    journal = (bench.root / "runs/r/journal.jsonl").read_text()
    assert "X-Amz" not in journal + bench.stderr
    for secret in KEYS["AWS_SECRET_ACCESS_KEY"], KEYS["AWS_ACCESS_KEY_ID"]:
        assert secret not in journal + bench.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_leaves_nothing_in_the_bucket(
    bench: Bench, service: Service, how: signal.Signals
) -> None:
    write(bench, service, service.host)
    run = bench.start("run", "federation.yaml", "--id", "r")
    until(lambda: service.delivered() and service.objects())
    run.send_signal(how)
    run.communicate()
    assert service.objects()
    summary = bench.data("run", "--resume", "r")
    assert summary["outcome"] == "done"
    assert len(summary["versions"]) == 4
    assert set(service.uploads().values()) == {1}
    assert not service.objects()


def test_check_tells_whether_files_could_go(bench: Bench, service: Service) -> None:
    write(bench, service, "bucket.example.org")
    out = bench.hansa("check", "federation.yaml", code=3)
    assert "exchange.hosts" in out
    assert f"does not allow an exchange with '{service.host}'" in " ".join(out.split())
    assert not service.objects()
