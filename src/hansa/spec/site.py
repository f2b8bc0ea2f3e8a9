"""The facility's own file: what may run here, over which data, with what limits."""

from __future__ import annotations

import os
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from hansa.core import plugins
from hansa.core.errors import PluginError
from hansa.core.shortform import ShortForm
from hansa.core.words import nearest
from hansa.spec import yaml
from hansa.spec.fields import (
    Count,
    Duration,
    LocalPath,
    Name,
    Names,
    PluginSection,
    Section,
    Size,
    Texts,
    Variable,
    listed,
)
from hansa.spec.load import at, put
from hansa.spec.plugged import (
    PluginPart,
    absolute,
    checked,
    options_model,
    path_options,
)
from hansa.spec.problems import (
    Document,
    KeyPath,
    Problem,
    fail,
    problems_of,
    unknown_key,
)

LAUNCH_WORDS = ("ranks", "ranks_per_node", "nodes")


def _module(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return text
    raise ValueError(f"{text!r} is not of the form module:function")


def _launch(text: str) -> str:
    try:
        words = [
            word for _, word, _, _ in string.Formatter().parse(text) if word is not None
        ]
    except ValueError as error:
        raise ValueError(f"{text!r} can't be filled in: {error}") from None
    wrong = [word for word in words if word not in LAUNCH_WORDS]
    if wrong:
        raise ValueError(
            f"{{{wrong[0]}}} means nothing here; use "
            + ", ".join(f"{{{word}}}" for word in LAUNCH_WORDS)
        )
    return text


def _directive(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is not one line of text")
    if text.lstrip().startswith("#"):
        raise ValueError(
            f"{text!r}: write what follows the prefix, as '-C gpu', without the prefix"
        )
    return text


def _variable_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII):
        return text
    raise ValueError(f"{text!r} can't be the name of an environment variable")


class SchedulerChoice(PluginSection):
    """The batch scheduler; the driver's options stand beside its type."""

    type: str = Field(description="name of the scheduler plug-in")


class TaskAccess(Section):
    """What one task may use here."""

    data: LocalPath | None = Field(
        None, description="folder or file with the data; null: built into the task"
    )
    splits: Names | None = Field(
        None, description="groups that may be trained on; null: all"
    )
    test_splits: Names | None = Field(
        None, description="groups of the shared test set; null: all"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the task that hold here, whatever the federation says",
    )


class LimitsSpec(Section):
    """The most that a federation may ask for; null is no limit."""

    nodes: Count | None = Field(None, description="nodes of one job")
    time: Duration | None = Field(None, gt=0, description="walltime of one job")
    jobs_in_queue: Count | None = Field(
        None,
        description="jobs of one run, waiting and running together; a job queued "
        "ahead leaves one place free",
    )
    linger: Duration | None = Field(
        None,
        description="how long a job may wait in its allocation for its next order; "
        "0: not at all",
    )
    queue_ahead: Duration | None = Field(
        None,
        description="how long a job that was queued ahead may wait in its allocation "
        "for its first order; 0: no job is queued ahead",
    )


class NodeSpec(Section):
    """What one node has; a test job finds out whether that is so."""

    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs of a node")
    gpu_memory: Size | None = Field(
        None, description="memory of one GPU; null: not looked at"
    )
    ranks: Count = Field(
        1, description="processes on a node, unless the federation asks for others"
    )


class PollSpec(Section):
    """How often the batch system may be asked, by all runs together."""

    first: Duration = Field(
        gt=0,
        description="shortest time between two questions",
        json_schema_extra={"x-default": "`2s`; `0.05s` for the local queue"},
    )
    longest: Duration = Field(
        gt=0,
        description="longest time between two questions while little happens",
        json_schema_extra={"x-default": "`1m`; `10s` for the local queue"},
    )

    @model_validator(mode="after")
    def _in_order(self) -> PollSpec:
        if self.first > self.longest:
            raise ValueError("`first` must not be longer than `longest`")
        return self


_PACES = {"local": (0.05, 10.0)}
_PACE = (2.0, 60.0)
"""Shortest and longest time between two questions, in seconds, by scheduler."""


class EnvironmentSpec(Section):
    """How a job prepares and starts Python."""

    setup: Texts = Field((), description="shell lines at the head of the job")
    launch: Annotated[str, AfterValidator(_launch)] = Field(
        "",
        description="what starts the ranks, with {ranks}, {ranks_per_node}, {nodes} "
        "({{ and }} are braces); empty: one process",
    )
    directives: Annotated[
        tuple[Annotated[str, AfterValidator(_directive)], ...], BeforeValidator(listed)
    ] = Field(
        (),
        description="lines for the batch system at the head of the script, without "
        "its prefix: `-C gpu`",
    )
    variables: dict[Annotated[str, AfterValidator(_variable_name)], Variable] = Field(
        default_factory=dict, description="environment variables of the job"
    )
    python: str = Field("python", min_length=1, description="the Python interpreter")


def _host(text: str) -> str:
    if re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", text):
        return text
    raise ValueError(
        f"{text!r} is no host; write it as 'bucket.s3.us-east-1.amazonaws.com', or "
        "with a port"
    )


class ExchangeSpec(Section):
    """With which buckets files may be exchanged."""

    hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(listed)
    ] = Field(
        (),
        description="hosts that the site agent may contact, over https, with signed "
        "URLs that the server hands it; none: no mover `s3`",
    )


class SiteSpec(Section):
    """What a facility offers, complete, with absolute paths."""

    name: Name = Field(description="name of the facility")
    scheduler: Annotated[SchedulerChoice, ShortForm("type")] = Field(
        description="the batch scheduler"
    )
    mailbox: LocalPath = Field(
        description="folder that login and compute nodes share, for models and updates"
    )
    state: LocalPath = Field(
        description="folder for the facility's own notes, outside of the mailbox; "
        "login and compute nodes share it, and only this user can write there",
        json_schema_extra={"x-default": "`.hansa/<name>` beside this file"},
    )
    cache: LocalPath = Field(
        description="folder for data that is prepared once",
        json_schema_extra={"x-default": "`.cache` in the mailbox"},
    )
    tasks: dict[str, TaskAccess] = Field(
        min_length=1, description="the tasks that may run here, by name"
    )
    modules: tuple[Annotated[str, AfterValidator(_module)], ...] = Field(
        (), strict=False, description="`module:function` names that trainers may import"
    )
    models: dict[str, LocalPath] = Field(
        default_factory=dict,
        description="local folder of a model source, by the federation's name for it",
    )
    programs: dict[
        str, Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    ] = Field(
        default_factory=dict,
        description="command lines that the trainer `program` may start, by the name "
        "that `model.source` has; `python` is the interpreter of `environment`",
    )
    limits: LimitsSpec = Field(
        default_factory=LimitsSpec, description="the most a federation may ask for"
    )
    exchange: ExchangeSpec = Field(
        default_factory=ExchangeSpec,
        description="with which buckets files may be exchanged",
    )
    environment: EnvironmentSpec = Field(
        default_factory=EnvironmentSpec, description="how a job starts Python"
    )
    node: NodeSpec = Field(default_factory=NodeSpec, description="what one node has")
    poll: PollSpec = Field(
        description="how often the batch system may be asked",
        json_schema_extra={"x-default": ""},
    )
    heartbeat: Duration = Field(
        1.0, gt=0, description="how often a job writes its status"
    )
    checkpoint: Duration = Field(
        30.0, gt=0, description="how often a job saves its state"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        cache = f"{data.get('mailbox')}/.cache"
        whole = {**data, "cache": data.get("cache") or cache}
        poll = data.get("poll") or {}
        if isinstance(poll, Mapping):
            whole["poll"] = {**_pace(data.get("scheduler")), **poll}
        return whole


def _pace(scheduler: object) -> dict[str, float]:
    kind = scheduler.get("type") if isinstance(scheduler, Mapping) else scheduler
    first, longest = _PACES.get(str(kind), _PACE)
    return {"first": first, "longest": longest}


def load_site(path: str | Path) -> SiteSpec:
    """Read and check a site file.

    Relative paths are taken from the file's folder; ``~`` and ``$NAME`` are expanded.

    Raises:
        SpecError: All that is wrong, a line each.
    """
    doc = yaml.read(Path(path), "site")
    base = Path(path).absolute().parent
    state = doc.data.get("state") or f".hansa/{doc.data.get('name')}"
    doc = replace(doc, data={**doc.data, "state": state})
    doc, problems = _with_paths(_with_programs(doc, base), base)
    doc, found = _with_scheduler(doc, base)
    problems += found + _check_tasks(doc) + _check_state(doc)
    try:
        spec = SiteSpec.model_validate(doc.data)
    except ValidationError as error:
        fail(problems + problems_of(doc, error, SiteSpec))
    if problems:
        fail(problems)
    return spec


def _with_paths(doc: Document, base: Path) -> tuple[Document, list[Problem]]:
    problems, data = [], doc.data
    for path in _path_keys(doc.data):
        text = at(doc.data, path)
        if not isinstance(text, str) or not text:
            continue
        expanded = os.path.expandvars(text)
        if "$" in expanded:
            what = f"{text!r} names an environment variable that is not set"
            problems.append(doc.problem(path, f"{doc.called(path)}: {what}"))
        data = put(data, path, str(absolute(expanded, base)))
    return replace(doc, data=data), problems


def _path_keys(data: Mapping[str, Any]) -> list[KeyPath]:
    keys: list[KeyPath] = [("mailbox",), ("cache",), ("state",)]
    keys += [("models", name) for name in _keys(data.get("models"))]
    keys += [("tasks", name, "data") for name in _keys(data.get("tasks"))]
    driver = at(data, ("scheduler", "type"))
    if isinstance(driver, str):
        known = path_options(plugins.SCHEDULERS, driver)
        keys += [("scheduler", key) for key in known]
    python = at(data, ("environment", "python"))
    if isinstance(python, str) and "/" in python:
        keys.append(("environment", "python"))
    return keys


def _with_programs(doc: Document, base: Path) -> Document:
    """Divide command lines into words, and take Python files from the file's folder."""
    programs = doc.data.get("programs")
    if not isinstance(programs, Mapping):
        return doc
    found = dict(programs)
    for name, line in programs.items():
        words = _words(line)
        if isinstance(words, list):
            found[name] = [_script(word, base) for word in words]
    return replace(doc, data={**doc.data, "programs": found})


def _words(line: object) -> object:
    try:
        return shlex.split(line) if isinstance(line, str) else line
    except ValueError:  # a quotation mark is missing; pydantic tells where
        return line


def _script(word: object, base: Path) -> object:
    is_file = isinstance(word, str) and word.endswith(".py")
    return str(absolute(str(word), base)) if is_file else word


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _with_scheduler(doc: Document, base: Path) -> tuple[Document, list[Problem]]:
    raw = doc.data.get("scheduler")
    if isinstance(raw, str):
        raw = {"type": raw}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("type"), str):
        return doc, []
    chooser = ("scheduler", "type")
    part = PluginPart(
        plugins.SCHEDULERS, chooser, raw["type"], ("scheduler",), ("type",)
    )
    data, problems = checked(doc, part, raw, base)
    return replace(doc, data={**doc.data, "scheduler": data}), problems


def _check_state(doc: Document) -> list[Problem]:
    """Keep apart what the server writes and what only the facility may write."""
    state, mailbox = doc.data.get("state"), doc.data.get("mailbox")
    if not isinstance(state, str) or not isinstance(mailbox, str):
        return []
    own, shared = Path(state).resolve(), Path(mailbox).resolve()
    if own.is_relative_to(shared) or shared.is_relative_to(own):
        what = (
            f"the folder `state` ({state}) and the mailbox ({mailbox}) must not lie in "
            "each other: servers write the mailbox, only the facility writes `state`"
        )
        return [doc.problem(("state",), what)]
    return []


def _check_tasks(doc: Document) -> list[Problem]:
    problems = []
    for name in _keys(doc.data.get("tasks")):
        path = ("tasks", name)
        known = plugins.names(plugins.TASKS)
        if name not in known:
            guess = nearest(name, known)
            advice = f"did you mean {guess!r}?" if guess else f"known: {known}"
            problems.append(doc.problem(path, f"there is no task {name!r}; {advice}"))
        elif _keys(at(doc.data, (*path, "options"))):
            problems += _check_task_options(doc, name)
    return problems


def _check_task_options(doc: Document, name: str) -> list[Problem]:
    """Check the options that are given; the federation gives the others."""
    path = ("tasks", name, "options")
    try:
        model = options_model(plugins.TASKS, name, "options")
    except PluginError as error:
        text = f"{error.message} {error.hint or ''}".rstrip()
        return [doc.problem(path, text)]
    given = at(doc.data, path)
    unknown = [key for key in given if key not in model.model_fields]
    problems = [unknown_key(doc, (*path, key), model.model_fields) for key in unknown]
    try:
        model.model_validate({k: v for k, v in given.items() if k not in unknown})
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["type"] != "missing"]
        problems += problems_of(doc, wrong, model, path)
    return problems
