"""Loads endpoints' folders as globus-compute-endpoint does, and runs tasks in them.

Runs with the Python of the endpoint's own environment, which has no Hansa; that takes
a second to start, so one process answers many questions:
``python endpoint_probe.py < [{"folder": ..., "settings": ..., "tasks": ...}, ...]``;
a JSON list comes out.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_endpoint.endpoint.config import utils
from globus_compute_endpoint.endpoint.config.config import UserEndpointConfig
from globus_compute_endpoint.endpoint.identity_mapper import (
    MappedPosixIdentity,
    PosixIdentityMapper,
)
from globus_compute_endpoint.engines.base import GCFuture
from globus_compute_sdk.serialize.utils import pack_buffers


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Return how one folder is understood, and what came of the tasks."""
    folder = Path(asked["folder"])
    core = utils.get_config(folder)
    told: dict[str, Any] = {
        "kind": type(core).__name__,
        "allowed_functions": core.allowed_functions,
        "public": core.public,
    }
    try:
        config = rendered(folder, core, asked.get("settings", {}))
    except Exception as error:
        return {**told, "refused": type(error).__name__}
    told["engine"] = type(config.engine).__name__
    told["idle"] = [config.idle_heartbeats_soft, config.idle_heartbeats_hard]
    if hasattr(config.engine, "executor") and hasattr(config.engine, "provider"):
        told["provider"] = provider(config)
    mapping = core.identity_mapping_config_path
    if mapping:
        told["mapped"] = mapped(mapping, asked.get("identities", []))
    told["results"] = results(config, folder, asked.get("tasks", []))
    config.engine.shutdown()
    return told


def rendered(folder: Path, core: Any, settings: dict[str, Any]) -> UserEndpointConfig:
    """Return the user endpoint's configuration."""
    template = folder / "user_config_template.yaml.j2"
    owner = MappedPosixIdentity(pwd.getpwuid(os.getuid()), [], None)
    text = utils.render_config_user_template(
        core,
        utils.load_user_config_template(template),
        template,
        owner,
        utils.load_user_config_schema(folder / "user_config_schema.json"),
        settings,
        {"python": {"version_tuple": [3, 11, 0]}},
    )
    return utils.load_config_yaml(text)


def provider(config: UserEndpointConfig) -> dict[str, Any]:
    """Return what the batch system is asked for, with the whole script."""
    made = config.engine.provider
    made.script_dir = str(Path.cwd())
    wanted = {
        "jobname": "block",
        "nodes": made.nodes_per_block,
        "nodes_per_block": made.nodes_per_block,
        "ncpus": getattr(made, "cpus_per_node", None),
        "select_options": f":{getattr(made, 'select_options', '')}",
        "tasks_per_node": 1,
        "walltime": made.walltime,
        "scheduler_options": made.scheduler_options,
        "worker_init": made.worker_init,
        "user_script": made.launcher("worker", 1, made.nodes_per_block, "."),
        "job_stdout_path": "out",
        "job_stderr_path": "err",
    }
    module = sys.modules[type(made).__module__]
    return {
        "type": type(made).__name__,
        "blocks": [made.init_blocks, made.min_blocks, made.max_blocks],
        "script": _Text(module.template_string).substitute(wanted),
    }


def mapped(path: Path, identities: list[str]) -> dict[str, str | None]:
    """Return the local user that each identity becomes."""
    mapper = PosixIdentityMapper(path, str(uuid.uuid4()))
    told = {}
    for name in identities:
        person = {"id": str(uuid.uuid4()), "username": name, "status": "used"}
        (found,) = mapper.map_identities([person])
        told[name] = next(iter(found[0].values()))[0] if found else None
    mapper.stop_watching()
    return told


def results(
    config: UserEndpointConfig, folder: Path, tasks: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run tasks in the engine, in the environment that a user endpoint has."""
    if not tasks:
        return []
    given = yaml.safe_load((folder / "user_environment.yaml").read_text())
    os.environ.update({name: str(value) for name, value in given.items()})
    engine, told = config.engine, []
    engine.start(endpoint_id=uuid.uuid4(), run_dir=str(Path.cwd()))
    for task in tasks:
        future = GCFuture(uuid.uuid4())
        buffer = pack_buffers([task["code"], task["args"], task["kwargs"]])
        packed = messagepack.pack(Task(task_id=future.gc_task_id, task_buffer=buffer))
        engine.submit(future, packed, {}, task.get("writers", []))
        answer = messagepack.unpack(future.result(timeout=60))
        failed = answer.error_details is not None
        told.append({"data": answer.data, "failed": failed})
    return told


class _Text:
    """The providers' templates, as Parsl fills them in."""

    def __init__(self, text: str) -> None:
        from string import Template

        self.substitute = Template(text).substitute


if __name__ == "__main__":
    sys.stdout.write(json.dumps([look(one) for one in json.loads(sys.stdin.read())]))
