"""The optimizer's state and the schedule go on from round to round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from pydantic import ValidationError
from worker_place import Place

from hansa.core.commands import Term
from hansa.store.versions import Store
from hansa.worker.__main__ import main
from hansa.worker.initial import Request, write_initial
from hansa.worker.llm_options import CausalLMWorkOptions

MODEL = {
    "trainer": "causal-lm",
    "source": "tiny-llama",
    "dtype": "float32",
    "options": {"hidden": 16, "layers": 1, "heads": 2, "vocabulary": 270},
}
WORK = {
    "batch": 2,
    "lr": 3e-2,
    "sequence_length": 32,
    "schedule": {"steps": 8, "warmup": 2, "least": 0.1},
}


class Facility:
    """A facility alone: its rounds together are one training."""

    def __init__(self, root: Path, **work: Any) -> None:
        self.place, self.work = Place(root / "mailbox"), WORK | work
        lines = [{"input": f"Write {w}.", "output": w.upper()} for w in ("ash", "elm")]
        text = "".join(json.dumps({**line, "split": "train"}) + "\n" for line in lines)
        root.mkdir()
        (root / "data.jsonl").write_text(text * 3)
        self.task = {"name": "chem-instruct", "source": str(root / "data.jsonl")}
        request = {"model": MODEL, "task": self.task, "work": self.work, "seed": 5}
        write_initial(Request.model_validate(request), root / "made")
        self.store = Store(root / "run", "float32")
        self.store.import_initial(root / "made")
        self.publish(0)

    def publish(self, version: int) -> None:
        where = self.place.mailbox.version(version)
        shutil.copytree(self.store.version_dir(version), where)

    def train(self, number: int, steps: int, first: int) -> Any:
        """Do a round and aggregate; return the weights of the next version."""
        name = f"train-{number:04d}-a-1"
        self.deliver(name, number, steps, first)
        update = self.place.mailbox.update(name)
        shutil.copytree(update, self.store.update_dir(name))
        refs = (f"version/{number - 1}", f"update/{name}")
        self.store.aggregate(number, [Term(ref=ref, coefficient=1.0) for ref in refs])
        self.publish(number)
        tensors = self.place.tensors(self.place.mailbox.version(number))
        return np.concatenate([value.reshape(-1) for value in tensors.values()])

    def deliver(self, name: str, number: int, steps: int, first: int) -> None:
        """Do an order; whether its update counts is another thing."""
        order = {
            "model": MODEL, "work": self.work, "steps": steps, "round": number,
            "first": first, "evaluate": False,
        }  # fmt: skip
        task = self.task | {"cache": str(self.place.root / "cache")}
        assert main(["run", str(self.place.job(1, name, order, task=task))]) == 0

    def kept(self) -> list[str]:
        """Return the names of the states that are kept, the oldest first."""
        return sorted(p.name for p in (self.place.mailbox.path / "optimizer").iterdir())


def test_rounds_of_one_facility_are_one_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Facility(tmp_path / "whole").train(1, 6, 0)
    kept = Facility(tmp_path / "kept", keep_optimizer=True)
    kept.train(1, 3, 0)
    assert kept.kept() == ["00000003"]
    np.testing.assert_allclose(kept.train(2, 3, 3), whole, atol=2e-6)
    assert kept.kept() == ["00000003", "00000006"]
    # Updates that did not count leave nothing, and push out nothing.
    for name, steps in (("train-0003-a-1", 2), ("train-0003-a-2", 1)):
        kept.deliver(name, 2, steps, 6)
    assert kept.kept() == ["00000006", "00000007"]

    # Without the state, or with one that is damaged, Adam begins anew.
    fresh = Facility(tmp_path / "fresh")
    fresh.train(1, 3, 0)
    anew = fresh.train(2, 3, 3)
    assert np.abs(anew - whole).max() > 1e-3
    broken = Facility(tmp_path / "broken", keep_optimizer=True)
    broken.train(1, 3, 0)
    (state,) = (broken.place.mailbox.path / "optimizer").glob("*/pieces-*.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    np.testing.assert_array_equal(broken.train(2, 3, 3), anew)
    assert "is left out" in caplog.text


def test_plain_sgd_has_nothing_to_keep() -> None:
    with pytest.raises(ValidationError, match="plain sgd has no state"):
        CausalLMWorkOptions(optimizer="sgd", keep_optimizer=True)
