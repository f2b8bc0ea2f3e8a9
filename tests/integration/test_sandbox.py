"""The imitated services keep to what the real ones are known to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import globus_sdk
import psutil
import pytest
from globus import Sandbox, need_globus, sandbox
from globus_sdk.gare import to_gare
from runs import PATIENCE_S, until

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("globus"), compute=False) as made:
        yield made


@pytest.fixture
def globus(running: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    return running


class Client:
    """Somebody who moves files from one collection to another."""

    def __init__(self, globus: Sandbox, root: Path, name: str = "") -> None:
        who = globus.add_client(name) if name else globus.client
        self.app = globus_sdk.ClientApp(
            "test", client_id=who["sub"], client_secret=who["secret"],
            config=globus_sdk.GlobusAppConfig(token_storage="memory"),  # noqa: S106
        )  # fmt: skip
        self.transfer = globus_sdk.TransferClient(app=self.app)
        self.source = globus.add_collection(root / "source")
        self.target = globus.add_collection(root / "target")
        (root / "source" / "file").write_bytes(os.urandom(2_000_000))

    def order(self, target: str = "/file") -> globus_sdk.TransferData:
        ticket = self.transfer.get_submission_id()["value"]
        order = globus_sdk.TransferData(
            source_endpoint=self.source, destination_endpoint=self.target,
            submission_id=ticket, verify_checksum=True,
        )  # fmt: skip
        order.add_item("/file", target)
        return order

    def submit(self, order: globus_sdk.TransferData) -> str:
        return str(self.transfer.submit_transfer(order)["task_id"])

    def status(self, task: str) -> str:
        return str(self.transfer.get_task(task)["status"])


@pytest.fixture
def client(globus: Sandbox, tmp_path: Path) -> Client:
    return Client(globus, tmp_path)


def same(root: Path) -> bool:
    return (root / "source/file").read_bytes() == (root / "target/file").read_bytes()


def test_what_the_service_knew_outlives_a_kill_9(
    globus: Sandbox, client: Client, tmp_path: Path
) -> None:
    globus.faults.slow(client.source, 1_000_000)
    order = client.order()
    task = client.submit(order)
    until(lambda: globus.active()[-1]["bytes_transferred"])
    globus.kill_service()
    globus.faults.slow(client.source, 0)
    globus.start_service()
    assert client.submit(order) == task
    until(lambda: client.status(task) == "SUCCEEDED")
    assert same(tmp_path)
    assert [entry["code"] for entry in globus.submissions()][-2:] == [
        "Accepted",
        "Duplicate",
    ]


def test_a_changed_byte_is_noticed_and_the_file_sent_again(
    globus: Sandbox, client: Client, tmp_path: Path
) -> None:
    globus.faults.corrupt(client.target)
    task = client.submit(client.order())
    until(lambda: client.status(task) == "SUCCEEDED")
    assert client.transfer.get_task(task)["faults"] == 1
    assert same(tmp_path)


def test_three_tasks_of_a_user_are_worked_on_at_a_time(
    globus: Sandbox, client: Client, tmp_path: Path
) -> None:
    globus.faults.slow(client.source, 100_000)
    tasks = [client.submit(client.order(f"/{n}")) for n in range(4)]

    def moved() -> list[bool]:
        known = (client.transfer.get_task(task) for task in tasks)
        return [one["bytes_transferred"] > 0 for one in known]

    until(lambda: moved() == [True, True, True, False])
    other = Client(globus, tmp_path / "other", "another@sandbox.example")
    task = other.submit(other.order())
    until(lambda: other.status(task) == "SUCCEEDED")
    assert moved() == [True, True, True, False]
    client.transfer.cancel_task(tasks[0])
    until(lambda: moved()[3])
    for task in tasks[1:]:
        client.transfer.cancel_task(task)
    with pytest.raises(globus_sdk.TransferAPIError, match="not found"):
        other.transfer.get_task(tasks[0])


def test_consents_and_sessions_are_asked_for_in_words_that_the_client_reads(
    globus: Sandbox, client: Client
) -> None:
    globus.faults.need_consent(client.target)
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        client.transfer.operation_ls(client.target)
    asked = to_gare(caught.value)
    assert asked is not None
    (scope,) = asked.authorization_parameters.required_scopes or ()
    assert f"{client.target}/data_access" in scope
    globus.faults.need_consent(client.target, needed=False)
    globus.faults.need_session(
        client.target, session_required_single_domain=["site.example"]
    )
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        client.transfer.operation_ls(client.target)
    asked = to_gare(caught.value)
    assert asked is not None
    wanted = asked.authorization_parameters.session_required_single_domain
    assert wanted == ["site.example"]


def test_compute_takes_ten_megabytes_and_twenty_requests_in_ten_seconds(
    globus: Sandbox, client: Client
) -> None:
    compute = globus_sdk.ComputeClientV3(app=client.app)
    compute.retry_config.max_retries = 0
    tasks = {"tasks": {"none": ["x" * 10_500_000]}}
    with pytest.raises(globus_sdk.GlobusAPIError) as caught:
        compute.submit("none", tasks)
    assert caught.value.http_status == 413
    listing = globus_sdk.ComputeClientV2(app=client.app)
    listing.retry_config.max_retries = 0
    for _ in range(19):
        assert listing.get_endpoints().data == []
    with pytest.raises(globus_sdk.GlobusAPIError) as caught:
        listing.get_endpoints()
    assert caught.value.http_status == 429


@pytest.mark.timeout(900)
def test_four_facilities_to_rehearse_on(tmp_path: Path) -> None:
    need_globus()
    folder = tmp_path / "rehearsal"
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", str(folder)],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    started = psutil.Process(process.pid)
    try:
        assert process.stdout is not None
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert process.poll() is None, line
        done = subprocess.run(
            ["sh", "-c", ". ./program.sh && hansa check federation.yaml"],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "all ready" in done.stdout, done.stdout + done.stderr
        theirs = started.children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len(theirs) > 8
    until(lambda: not any(one.is_running() for one in theirs))
