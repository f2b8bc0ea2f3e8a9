"""The trainer `program`: a training program of the user's own, on each rank.

The worker binds, saves, evaluates and delivers as for every trainer; the program does
the steps (`hansa.worker.api`). What is started is a command of site.yaml; nothing of it
comes from the server.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import finalize

from hansa.core.errors import PolicyError, SpecError, WorkerError
from hansa.store.folder import TensorFolder, reader
from hansa.worker.api import UPDATE
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    OwnProgram,
    TensorReader,
    TrainerContext,
)
from hansa.worker.options import ProgramModelOptions, ProgramWorkOptions
from hansa.worker.signals import SIGNALS
from hansa.worker.talk import SCHEMA, VARIABLE, Talk
from hansa.worker.team import Team

log = logging.getLogger(__name__)

RECORD = "program.json"
_LOOK_S, _END_S = 0.2, 10.0
_TAIL, _LONGEST = 8, 2000  # lines and characters of its output that an error shows


class Program:
    """A child process as a `Trainer`; it is ended with it.

    Raises:
        PolicyError: site.yaml lists no such program.
        WorkerError: It can't be started.
    """

    def __init__(self, context: TrainerContext) -> None:
        if context.own is None or not context.own.command:
            raise PolicyError(
                f"The site.yaml of this facility lists no program {context.source!r}.",
                hint="Its owner can list it under `programs`.",
            )
        self._context, self._own, self._team = context, context.own, context.team
        self._model = cast(ProgramModelOptions, context.model_options)
        self._work = cast(ProgramWorkOptions, context.work)
        self._child = _Child(self._own, self._team, self._place())
        self._folder = Path(tempfile.mkdtemp(prefix=".program-", dir=self._own.job_dir))
        self._close = finalize(self, _close, self._child, self._folder)
        self._lr_scale = 1.0
        self._checkpoint: Path | None = None
        self._done = 0
        self._begun = False
        self._losses: dict[str, float] | None = None

    def load(self, read: TensorReader) -> None:
        """Do nothing: the program reads the version itself."""

    def correct(self, correction: Correction) -> None:
        """Pass on the factor on the learning rate.

        Raises:
            SpecError: The strategy asks for more.
        """
        if correction.proximal or correction.control is not None:
            raise SpecError(
                "The strategy corrects the gradient of each step, which it can't do in "
                "a program of one's own.",
                hint="Choose another strategy than fedprox or scaffold.",
            )
        self._lr_scale = correction.lr_scale

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Wait until the program has done a step; return its mean loss."""
        told = self._next({"go": True})
        if "step" not in told:
            raise WorkerError(
                f"The program {self._context.source!r} has submitted after "
                f"{self._done} of {self._own.steps} steps.",
                hint="Let it train `while job.going`.",
            )
        self._done += 1
        loss, samples = float(told["step"]["loss"]), int(told["step"]["samples"])
        if self._team.world == 1:
            return loss
        from hansa.worker.engine.together import summed  # noqa: PLC0415 - torch

        total, count = summed([loss * samples, samples], self._team)
        return total / max(count, 1.0)

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return the test losses that the program submits.

        Raises:
            WorkerError: One is missing.
        """
        tasks = sorted({example.task for example in examples})
        losses = self._finish()
        missing = [task for task in tasks if task not in losses]
        if missing:
            raise WorkerError(
                f"The program {self._context.source!r} has submitted no test loss "
                f"{missing[0]!r}.",
                hint="Call submit(model, losses={...}), with the names that "
                "task.options.tests has.",
            )
        return {task: losses[task] for task in tasks}

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield what the program of rank 0 has submitted, by name, sorted."""
        self._finish()
        if self._team.rank == 0:
            with reader(self._folder) as folder:
                for name in folder.names:
                    yield name, folder.read(name)

    def save(self, directory: Path) -> None:
        """Let the program write its state, if it can."""
        if self._losses is not None:
            return  # it has ended, and has no state any more
        self._child.say({"save": str(directory)})
        if self._heard().get("saved") and self._team.rank == 0:
            (directory / RECORD).write_text(json.dumps({"done": self._done}), "utf-8")

    def restore(self, directory: Path) -> None:
        """Have the program go on from what `save` wrote.

        Raises:
            WorkerError: It could not save.
        """
        try:
            done = json.loads((directory / RECORD).read_text("utf-8"))["done"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkerError(f"{directory} has no state of the program.") from error
        self._checkpoint, self._done = directory, int(done)

    def _finish(self) -> dict[str, float]:
        """Tell the program that it is enough; return the first rank's losses."""
        if self._losses is None:
            told = self._next({"stop": True})
            if "submitted" not in told:
                raise WorkerError(
                    f"The program {self._context.source!r} went on after it was told "
                    "to stop.",
                    hint="Let it train `while job.going`.",
                )
            found = _first_ranks(told["submitted"]["losses"], self._team)
            self._losses = {str(task): float(loss) for task, loss in found.items()}
        return self._losses

    def _next(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the program's last word, and wait for its next one."""
        self._child.say(answer if self._begun else self._order())
        self._begun = True
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        told = self._child.hear()
        if told is None:
            raise self._child.ended(self._context.source)
        return told

    def _order(self) -> dict[str, Any]:
        own = self._own
        return {
            "schema": SCHEMA,
            "kind": own.kind,
            "steps": own.steps,
            "done": self._done,
            "evaluates": own.evaluates,
            "first": self._context.first,
            "batch": self._work.batch,
            "seed": self._context.seed,
            "lr_scale": self._lr_scale,
            "options": {**self._model.options, **self._work.options},
            "data": None if own.data is None else str(own.data),
            "groups": own.groups,
            "version": str(self._context.assets),
            "checkpoint": None if self._checkpoint is None else str(self._checkpoint),
            "folder": str(self._folder),
            "rank": self._team.rank,
            "world": self._team.world,
            "local": self._team.local,
        }

    def _place(self) -> Mapping[str, Any]:
        """Return where the programs of all ranks can meet each other."""
        with socket.create_server(("", 0)) as server:
            mine = {"host": os.uname().nodename, "port": server.getsockname()[1]}
        one_node = self._team.world == self._team.ranks_per_node
        return _first_ranks(
            mine | ({"host": "127.0.0.1"} if one_node else {}), self._team
        )


class _Child:
    """The process, and the conversation with it.

    Args:
        own: What to start.
        team: Who this is.
        place: Where the programs meet, for ``torch.distributed``.
    """

    def __init__(self, own: OwnProgram, team: Team, place: Mapping[str, Any]) -> None:
        self._log = own.state_dir / f"program-{team.rank:04d}.log"
        self._hidden = Path(tempfile.mkdtemp(prefix="hansa-"))  # short, and only ours
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._hidden / "worker"))
        self._listener.listen(1)
        self._listener.settimeout(_LOOK_S)
        self._talk: Talk | None = None
        environ = {
            **os.environ,
            VARIABLE: str(self._hidden / "worker"),
            "HANSA_JOB": str(own.state_dir / "job.json"),
            "RANK": str(team.rank),
            "WORLD_SIZE": str(team.world),
            "LOCAL_RANK": str(team.local),
            "LOCAL_WORLD_SIZE": str(team.ranks_per_node),
            "MASTER_ADDR": str(place["host"]),
            "MASTER_PORT": str(place["port"]),
        }
        # The programs meet in a store of their own, not in torchrun's.
        environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        environ.pop("PYTHONSAFEPATH", None)  # it may import what lies beside it
        try:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    own.command,
                    env=environ,
                    cwd=own.state_dir,  # which nobody else can write
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            self._listener.close()
            shutil.rmtree(self._hidden)
            raise WorkerError(
                f"The program can't be started: {error}.",
                hint="Correct `programs` in the facility's site.yaml.",
            ) from error
        log.info("Started %s; it writes to %s.", own.command[0], self._log)

    def say(self, words: Mapping[str, Any]) -> None:
        """Say something, once the program listens."""
        if (talk := self._connected()) is not None:
            talk.say(words)

    def hear(self) -> dict[str, Any] | None:
        """Wait for the program's next word; None: it has ended."""
        talk = self._connected()
        return None if talk is None else talk.hear()

    def _connected(self) -> Talk | None:
        while self._talk is None:
            try:
                self._talk = Talk(self._listener.accept()[0])
            except TimeoutError:
                if self._process.poll() is not None:
                    return None
        return self._talk

    def ended(self, name: str) -> WorkerError:
        """Return the error of a program that has ended too early."""
        try:
            code: int | None = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = None
        how = "ended the conversation" if code is None else f"ended with code {code}"
        tail = "\n".join(_last(self._log).splitlines()[-_TAIL:])[-_LONGEST:]
        return WorkerError(
            f"The program {name!r} {how} before it had submitted. Its last lines:\n"
            f"{tail or '(none)'}",
            hint=f"All that it wrote is in {self._log}.",
            transient=code is not None and -code in {*SIGNALS, signal.SIGKILL},
        )

    def close(self) -> None:
        """End the conversation, and the process if it does not end by itself."""
        if self._talk is not None:
            self._talk.close()
        self._listener.close()
        shutil.rmtree(self._hidden, ignore_errors=True)
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            try:
                self._process.wait(_END_S)
                break
            except subprocess.TimeoutExpired:
                continue


def _last(path: Path) -> str:
    """Return the end of a file, which may be larger than the memory."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * _LONGEST))
        return file.read(4 * _LONGEST).decode("utf-8", "replace").rstrip()


def _close(child: _Child, folder: Path) -> None:
    child.close()
    shutil.rmtree(folder, ignore_errors=True)


def _first_ranks(words: Mapping[str, Any], team: Team) -> dict[str, Any]:
    """Return what rank 0 says; called on all ranks."""
    if team.world == 1:
        return dict(words)
    import torch  # noqa: PLC0415 - only a team needs it

    text = list(json.dumps(words).encode())
    size = torch.tensor([len(text)])
    torch.distributed.broadcast(size, 0)
    sent = text if team.rank == 0 else [0] * int(size)
    data = torch.tensor(sent, dtype=torch.uint8)
    torch.distributed.broadcast(data, 0)
    found: dict[str, Any] = json.loads(bytes(data.tolist()))
    return found


class FirstVersion:
    """Version 0 of a program's model: what `model.options.initial` holds.

    Raises:
        SpecError: There is no such file or folder.
    """

    def __init__(self, context: TrainerContext) -> None:
        options = cast(ProgramModelOptions, context.model_options)
        self._path = Path(options.initial).expanduser()
        if not self._path.exists():
            raise SpecError(
                f"There is no {self._path}, from which version 0 is to be made.",
                hint="model.options.initial names a safetensors file, or a folder with "
                "some, on the machine where `hansa run` runs.",
            )

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the tensors by name, sorted."""
        with self._opened() as folder:
            for name in folder.names:
                yield name, folder.read(name)

    def write_assets(self, target: Path) -> None:
        """Copy what else is in the folder and may be needed: small files of words."""
        if self._path.is_dir():
            for path in sorted(self._path.iterdir()):
                if path.suffix in _WORDS and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, target / path.name)

    def _opened(self) -> TensorFolder:
        if self._path.is_dir():
            return reader(self._path)
        alone = Path(tempfile.mkdtemp(prefix="hansa-"))
        finalize(self, shutil.rmtree, alone, True)
        (alone / "model.safetensors").symlink_to(self._path.absolute())
        return reader(alone)


_WORDS = {".json", ".jinja", ".txt", ".model"}


def write_assets(trainer: FirstVersion, folder: Path) -> None:
    """Write the assets of a first version; entry point of the plug-in."""
    trainer.write_assets(folder)


__all__ = ["UPDATE", "FirstVersion", "Program", "write_assets"]
