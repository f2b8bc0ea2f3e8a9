"""A training program of one's own: the calls, and the worker on the other side."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_team import Ranks
from worker_place import FIRST, Place, read_job

import hansa.worker
from hansa.core.errors import HansaError, PolicyError, SpecError, WorkerError
from hansa.worker import checkpoint
from hansa.worker.__main__ import main
from hansa.worker.base import Correction
from hansa.worker.initial import Request, write_initial
from hansa.worker.loading import build_trainer
from hansa.worker.session import Session
from hansa.worker.signals import Stop

MODEL = {
    "trainer": "program",
    "source": "mine",
    "dtype": "float32",
    "options": {"initial": "-", "options": {"by": 0.5, "word": "model"}},
}
BEGIN = """\
import os, signal, sys
from pathlib import Path
import hansa.worker
job = hansa.worker.load()
tensors = dict(job.tensors())
mark = Path(sys.argv[1])
"""
# Adds `by` to every number at each step; saves and restores what it has added.
TRAIN = (
    BEGIN
    + """\
added = 0.0
def save(folder):
    (folder / "added.txt").write_text(str(added))
job.save_with(save)
if job.checkpoint is not None:
    added = float((job.checkpoint / "added.txt").read_text())
    print("restored at", job.done, file=mark.open("a"))
while job.going:
    added += job.options["by"]
    if job.done == 3 and BREAK:
        BREAK
    hansa.worker.step(loss=1.0 / (job.done + 1), samples=job.batch)
trained = {name: value + added for name, value in tensors.items()}
hansa.worker.submit(trained, losses={"own": 0.25} if job.evaluates else None)
"""
)


@pytest.fixture
def order(place: Place, tmp_path: Path) -> Callable[..., Path]:
    """Make the job of a program, whose text may have other words in it."""

    def make(
        text: str = TRAIN, number: int = 1, breaks: str = "None", **fields: Any
    ) -> Path:
        script = tmp_path / "train.py"
        script.write_text(text.replace("BREAK", breaks))
        assignment = fields.pop("assignment", FIRST)
        asked = {
            "model": MODEL,
            "work": {"batch": 4, "options": {"by": 0.125}},
            **fields.pop("order", {}),
        }
        task = {"name": "own-data", "cache": str(tmp_path / "cache")}
        command = [sys.executable, str(script), str(tmp_path / "mark")]
        fields = {"task": task, "program": command} | fields
        return place.job(number, assignment, asked, **fields)

    return make


def moved(place: Place) -> float:
    """Return by how much every number has moved."""
    tensors = place.tensors(place.mailbox.update(FIRST))
    assert list(tensors) == ["bias", "weights"]
    every = np.concatenate([value.reshape(-1) for value in tensors.values()])
    np.testing.assert_allclose(every, every[0], atol=1e-6)
    return float(every[0])


def failure(path: Path) -> HansaError:
    with pytest.raises(HansaError) as caught:
        Session(read_job(path), Stop(), 0.0).run()
    return caught.value


def test_a_program_trains_evaluates_and_delivers(
    place: Place, order: Callable[..., Path]
) -> None:
    assert main(["run", str(order())]) == 0
    assert moved(place) == pytest.approx(6 * 0.125)  # its own `by` of the two
    update, status = place.update(), place.status()
    assert (update.steps, update.samples, update.partial) == (6, 24, False)
    assert update.losses == {"own": 0.25}
    assert update.metrics["train_loss_last"] == pytest.approx(1 / 6)
    assert (status["phase"], status["step"]) == ("done", 6)
    assert not list(place.mailbox.job(FIRST, 1).path.glob(".program-*"))
    path = order(assignment="evaluate-0001-a-1", order={"version": 0})
    assert main(["run", str(path)]) == 0
    assert place.update("evaluate-0001-a-1").losses == {"own": 0.25}


def test_it_is_told_to_stop_and_a_later_job_goes_on(
    place: Place, order: Callable[..., Path], eager: None
) -> None:
    parent = "os.kill(os.getppid(), signal.SIGUSR1)"
    assert main(["run", str(order(breaks=parent))]) == 0
    assert (place.update().steps, place.update().partial) == (4, True)
    assert moved(place) == pytest.approx(4 * 0.125)


def test_a_restart_goes_on_from_the_checkpoint(
    place: Place, order: Callable[..., Path], eager: None, tmp_path: Path
) -> None:
    dies = "(print('a' * 9999), print('ahoy', flush=True), os._exit(7))"
    error = failure(order(breaks=dies, checkpoint_s=0.0))
    assert error.message.endswith("a\nahoy")
    assert len(error.message) < 2200
    assert "ended with code 7 before it had submitted" in error.message
    assert not error.transient
    state = checkpoint.newest(place.mailbox.job(FIRST, 1).checkpoint)
    assert state is not None
    assert checkpoint.load(state).step == 3
    assert main(["run", str(order(number=2))]) == 0
    assert (tmp_path / "mark").read_text() == "restored at 3\n"
    assert place.update().steps == 6
    assert moved(place) == pytest.approx(6 * 0.125)


def test_a_loss_that_is_no_number_names_the_last_state_that_was_saved(
    place: Place, order: Callable[..., Path], eager: None
) -> None:
    # It skips the step, as scaled gradients do, and tests under another name.
    text = TRAIN.replace("1.0 / (job.done + 1)", "[1.0, 1.0, float('nan')][job.done]")
    text = text.replace('{"own": 0.25}', '{"mine": 0.25}')
    error = failure(order(text, checkpoint_s=0.001))
    folder = place.mailbox.job(FIRST, 1).checkpoint
    assert "became nan at step 3 of 6. Its examples" in error.message
    assert f"The last good state is in {folder / '00000002'}." in error.message
    shutil.rmtree(folder)
    text = text.replace("job.save_with(save)", "")
    error = failure(order(text, number=2, checkpoint_s=0.001))
    assert "is the version that it began from." in error.message


TEAM = (
    BEGIN
    + """\
import socket, time
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(job.rank), "2")
assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ  # torchrun's
if job.rank == 0:
    with socket.create_server(place) as server:
        server.accept()
else:
    while socket.socket().connect_ex(place): time.sleep(0.01)
while job.going:
    hansa.worker.step(*((1.0, 1) if job.rank == 0 else (4.0, 3)))
trained = {name: value + 0.25 for name, value in tensors.items()}
hansa.worker.submit(trained, losses=None if job.rank else {"own": 0.5})
"""
)


def test_each_rank_has_its_program_and_they_meet(
    place: Place, order: Callable[..., Path]
) -> None:
    pytest.importorskip("torch")
    path = order(TEAM, ranks_per_node=2, launched=True, order={"steps": 2})
    with Ranks(path, 2, {"TORCHELASTIC_USE_AGENT_STORE": "True"}) as ranks:
        codes = ranks.codes()
        assert codes == [0, 0], ranks.words(0) + ranks.words(1)
    assert moved(place) == pytest.approx(0.25)
    assert place.update().losses == {"own": 0.5}
    # The mean over the samples of both: (1 * 1 + 3 * 4) / 4.
    assert place.update().metrics["train_loss"] == pytest.approx(3.25)


def is_gone(process: int) -> bool:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] == "Z"


def test_a_program_ends_soon_after_a_worker_that_was_killed(
    order: Callable[..., Path], tmp_path: Path
) -> None:
    path = order(
        "import hansa.worker.api, time\nhansa.worker.api.GRACE_S = 0.1\n"
        + BEGIN
        + "mark.write_text(f'{os.getpid()}.')\ntime.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-m", "hansa.worker", "run", str(path)])
    mark, end = tmp_path / "mark", time.monotonic() + 60
    while not mark.exists() or not mark.read_text().endswith("."):
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    program = int(mark.read_text().rstrip("."))
    while not is_gone(program):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("print('a'); raise RuntimeError('no such ship')", "no such ship"),
        (
            BEGIN + "job.step(1.0)\nhansa.worker.submit(tensors, {'own': 1})",
            "submitted after 1 of 6 steps",
        ),
        (
            BEGIN + "while job.step(1.0): pass\nhansa.worker.submit(tensors)",
            "no test loss 'own'",
        ),
        (BEGIN + "hansa.worker.submit({})", "The model lacks 'bias'"),
        (
            BEGIN + "while job.step(1.0): pass\njob.step(1.0)",
            "This step was not wanted any more",
        ),
    ],
)
def test_what_goes_wrong_is_said(
    order: Callable[..., Path], text: str, words: str
) -> None:
    error = failure(order(text))
    assert isinstance(error, WorkerError)
    assert words in error.message


def test_what_only_the_worker_can_do_is_refused(
    place: Place, order: Callable[..., Path]
) -> None:
    assert "Correct `programs`" in str(failure(order(program=["/no/such"])).hint)
    with pytest.raises(PolicyError, match="lists no program 'mine'"):
        build_trainer(read_job(order(program=[])), place.mailbox.version(0))
    trainer = build_trainer(read_job(order()), place.mailbox.version(0))
    with pytest.raises(SpecError, match="corrects the gradient"):
        trainer.correct(Correction(proximal=0.1))


def test_outside_of_a_job_there_is_nothing_to_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HANSA_WORKER", raising=False)
    with pytest.raises(SpecError, match="not started by Hansa"):
        hansa.worker.load()
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = hansa.worker.lode  # type: ignore[attr-defined]


def test_version_0_is_a_file_or_a_folder(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "model"
    folder.mkdir()
    numpy.save_file({"b": np.ones(2, np.float32)}, folder / "one.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("never")

    def made(initial: Path) -> list[str]:
        model = {**MODEL, "options": {"initial": str(initial)}}
        request = {"model": model, "task": {"name": "own-data"}, "seed": 1}
        target = tmp_path / f"made-{initial.name}"
        return write_initial(Request.model_validate(request), target)

    assert made(folder) == ["config.json", "model.safetensors"]
    assert made(folder / "one.safetensors") == ["model.safetensors"]
    with pytest.raises(SpecError, match="from which version 0 is to be made"):
        made(tmp_path / "none")


def test_state_of_a_torch_model_goes_on_bit_identically(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from hansa.worker import own_state

    def fresh() -> Any:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(model: Any, optimizer: Any) -> Any:
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        return model[0].weight.detach().clone()

    model, optimizer = fresh()
    step(model, optimizer)
    own_state.save(tmp_path, model, optimizer, 0)
    assert json.loads((tmp_path / "optimizer.json").read_text())["plain"] == {}
    expected = [step(model, optimizer) for _ in range(2)]
    model, optimizer = fresh()
    own_state.restore(tmp_path, model, optimizer, 0)
    found = [step(model, optimizer) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # Another rank draws its own numbers, and leaves the rest to the first one.
    torch.manual_seed(2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    own_state.save(tmp_path, torch.nn.Linear(1, 1), None, 1)
    drawn = torch.rand(3)
    other, fresh_one = fresh()
    own_state.restore(tmp_path, other, fresh_one, 1)
    assert torch.equal(torch.rand(3), drawn)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"generators-1.safetensors"}
    assert before.items() <= after.items()
    own_state.restore(tmp_path, other, fresh_one, 2)  # it was not there
    with pytest.raises(WorkerError, match="no tensor 'odd'"):
        own_state.set_tensors(model, {"odd": torch.ones(1)})
    with pytest.raises(WorkerError, match=r"is \[1\], the model's is \[2\]"):
        own_state.set_tensors(model, {"0.bias": torch.ones(1)})
