"""The way between the web service and endpoints: queues in a RabbitMQ.

An endpoint has a queue of commands, a user endpoint one of tasks; all send results and
heartbeats. Queues and messages outlive the broker's process, and the service connects
again as often as needed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, Task
from pika.adapters.blocking_connection import BlockingChannel

from sandbox.state import Document, State

DURABLE = 2
AGAIN = 0.3
"""Seconds until the service looks for a broker that is away."""


class Broker:
    """The web service's side of the queues.

    Args:
        url: AMQP address of the broker.
        state: What the service knows.
    """

    def __init__(self, url: str, state: State) -> None:
        self.url, self._state = url, state

    def listen(self) -> None:
        """Take in results and heartbeats, on a thread, for ever."""
        threading.Thread(target=self._listen, daemon=True).start()

    # --- going out ----------------------------------------------------------------

    def command_queues(self, endpoint: str) -> Document:
        """Make the queues of an endpoint; return how it finds them."""
        with self._channel() as channel:
            self._declare(channel)
            channel.queue_declare(f"{endpoint}.commands", durable=True)
        commands = {"connection_url": self.url, "queue": f"{endpoint}.commands"}
        return {
            "endpoint_id": endpoint,
            "heartbeat_queue_info": self._publishing(endpoint, "heartbeats"),
            "command_queue_info": commands,
        }

    def send_work(
        self,
        endpoint: str,
        worker: str,
        command: Document,
        messages: list[tuple[Document, str]],
        asked: Document,
        queue: str | None,
    ) -> None:
        """Order a user endpoint to be there, and put its tasks into its queue."""
        tasks = f"{worker}.tasks"
        creds = {
            "endpoint_id": worker,
            "task_queue_info": {
                "connection_url": self.url, "exchange": "tasks", "queue": tasks,
            },
            "result_queue_info": self._publishing(worker, "results"),
            "heartbeat_queue_info": self._publishing(worker, "heartbeats"),
        }  # fmt: skip
        order = {**command, "kwargs": {**command["kwargs"], "amqp_creds": creds}}
        with self._channel() as channel:
            self._declare(channel)
            channel.queue_declare(tasks, durable=True)
            channel.queue_bind(tasks, "tasks", routing_key=tasks)
            if queue is not None:
                channel.queue_declare(queue, durable=True)
            for task, code in messages:
                self._publish(
                    channel, "tasks", tasks,
                    pack(Task(task_id=task["task_id"], task_buffer=code)),
                    headers=_headers(task, asked),
                )  # fmt: skip
            self._publish(
                channel, "", f"{endpoint}.commands", json.dumps(order).encode(),
                content_type="application/json", timestamp=int(time.time()),
                app_id="sandbox",
            )  # fmt: skip

    def _publishing(self, endpoint: str, exchange: str) -> Document:
        key = f"{endpoint}.{exchange}"
        return {
            "connection_url": self.url,
            "exchange": exchange,
            "queue": exchange,
            "queue_publish_kwargs": {
                "exchange": exchange,
                "routing_key": key,
                "mandatory": True,
                "properties": {"delivery_mode": DURABLE},
            },
        }

    def _publish(
        self, channel: BlockingChannel, exchange: str, key: str, body: bytes,
        **properties: Any,
    ) -> None:  # fmt: skip
        facts = pika.BasicProperties(delivery_mode=DURABLE, **properties)
        channel.basic_publish(exchange, key, body, facts)

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        line = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            channel = line.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            if line.is_open:
                line.close()

    def _declare(self, channel: BlockingChannel) -> None:
        for name in ("results", "heartbeats"):
            channel.exchange_declare(name, "topic", durable=True)
            channel.queue_declare(name, durable=True)
            channel.queue_bind(name, name, routing_key=f"*.{name}")
        channel.exchange_declare("tasks", "direct", durable=True)

    # --- coming in ----------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                with self._channel() as channel:
                    self._declare(channel)
                    self._consume(channel)
            except (pika.exceptions.AMQPError, OSError) as error:
                print(f"no broker: {type(error).__name__}", flush=True)  # noqa: T201
                time.sleep(AGAIN)

    def _consume(self, channel: BlockingChannel) -> None:
        for name in ("results", "heartbeats"):
            channel.basic_consume(name, self._on_message)
        channel.start_consuming()

    def _on_message(
        self, channel: BlockingChannel, method: Any, _properties: Any, body: bytes
    ) -> None:
        sender = method.routing_key.rpartition(".")[0]
        message = unpack(body)
        if isinstance(message, Result):
            self._on_result(channel, sender, message, body)
        elif isinstance(message, EPStatusReport):
            self._on_heartbeat(channel, sender, message)
        channel.basic_ack(method.delivery_tag)

    def _on_result(
        self, channel: BlockingChannel, worker: str, result: Result, body: bytes
    ) -> None:
        """Keep the first result of a task, if it is from the one that had it."""
        task = self._state.get("tasks", str(result.task_id))
        if task is None or task["worker"] != worker or task.get("completion_t"):
            return
        if result.is_error:
            end = {"status": "failed", "exception": result.data}
        else:
            end = {"status": "success", "result": result.data}
        if result.details is not None:
            end["details"] = json.loads(json.dumps(result.details, default=str))
        self._end(channel, task, end, body)

    def _on_heartbeat(
        self, channel: BlockingChannel, sender: str, beat: EPStatusReport
    ) -> None:
        said = beat.global_state
        self._state.put("heartbeats", sender, {
            "at": time.time(), "period": said.get("heartbeat_period", 30),
            "report": json.loads(json.dumps(said, default=str)),
        })  # fmt: skip
        if not said.get("error"):
            return
        for task in self._state.all("tasks").values():  # it could not be started
            if task["worker"] == sender and not task.get("completion_t"):
                words = str(said["error"])
                failed = Result(
                    task_id=task["task_id"], data=words,
                    error_details={
                        "code": "ENDPOINT_STARTUP_FAILURE", "user_message": words,
                    },
                )  # fmt: skip
                end = {"status": "failed", "exception": words}
                self._end(channel, task, end, pack(failed))

    def _end(
        self, channel: BlockingChannel, task: Document, end: Document, body: bytes
    ) -> None:
        end = {**end, "completion_t": str(time.time())}
        self._state.change("tasks", task["task_id"], lambda it: it.update(end))
        if task["queue"]:
            self._publish(channel, "", task["queue"], body, timestamp=int(time.time()))


def _headers(task: Document, asked: Document) -> Document:
    """Return the headers of a task's message."""
    headers = {
        "function_uuid": task["function"],
        "task_uuid": task["task_id"],
        "resource_specification": json.dumps(asked.get("resource_specification")),
    }
    if asked.get("result_serializers"):
        headers["result_serializers"] = asked["result_serializers"]
    return headers
