"""Which training is chosen, what it says of sizes, and the same bytes anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from surrogates import federation, order

from hansa.simulator.training import make_training
from hansa.spec.federation import FederationSpec

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_training import digest
print(digest())
"""


def digest() -> str:
    """Return the hash of all that the trainings give for some work."""
    found = sha256()
    for problem in ("quadratic", "softmax"):
        spec = federation({"type": "surrogate", "problem": problem})
        training = make_training(spec, 7)
        weights = training.initial()
        assert weights is not None
        for number in range(1, 4):
            for name in "abc":
                made = training.train(name, weights, order(4 * number, number))
                assert made.delta is not None
                found.update(made.delta.tobytes() + repr(made.metrics).encode())
            weights = weights + np.linspace(0, 0.1, weights.size)
            found.update(repr(training.losses(weights)).encode())
    return found.hexdigest()


def test_processes_with_other_hash_seeds_give_the_same_bytes() -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    others = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    found = [other.communicate()[0].strip() for other in others]
    assert found == [digest(), digest()]


def test_no_training_counts_samples_only() -> None:
    spec = federation({"type": "none", "bytes": 1000, "update_bytes": 400})
    training = make_training(spec, 0)
    assert (training.version_bytes, training.update_bytes) == (1000, 400)
    assert training.initial() is None
    made = training.train("a", None, order(7))
    assert (made.delta, made.samples, made.metrics) == (None, 28, {"lr_sum": 7.0})
    assert training.losses(None) == {}


def test_a_federation_that_does_not_say_has_the_quadratic_problem() -> None:
    spec: FederationSpec = federation({"type": "none"})
    training = make_training(spec.model_copy(update={"simulation": None}), 0)
    assert training.version_bytes == training.update_bytes == 250_000_000
    assert training.losses(training.initial()) == {"all": pytest.approx(1.0)}
