"""Softmax regression in numpy: a whole federation in seconds, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError, SpecError, WorkerError
from hansa.worker.arrays import read_arrays, write_arrays
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    TensorReader,
    TrainerContext,
    needs_plain_sgd,
)
from hansa.worker.options import SoftmaxModelOptions, SoftmaxWorkOptions

Floats = NDArray[np.floating]

SOURCES = ("zeros", "normal")
STATE = "state.safetensors"
EVALUATION_BATCH = 1024


def loss_and_gradient(
    weights: Floats, bias: Floats, inputs: Floats, labels: NDArray[np.int64]
) -> tuple[float, Floats, Floats]:
    """Return mean cross-entropy and its gradients by weights and bias.

    Args:
        weights: Shape [features, classes].
        bias: Shape [classes].
        inputs: Shape [batch, features].
        labels: Shape [batch], the class of each sample.
    """
    log_p = _log_softmax(inputs @ weights + bias)
    rows = np.arange(len(labels))
    error = np.exp(log_p)
    error[rows, labels] -= 1
    error /= len(labels)
    loss = -float(np.mean(log_p[rows, labels]))
    return loss, inputs.T @ error, error.sum(axis=0)


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


class Softmax:
    """The `Trainer`: tensors ``bias`` [classes] and ``weights`` [features, classes].

    `model.source` is "zeros" or "normal" (standard deviation 0.01). The optimizer is
    SGD: ``v = momentum * v + g; w = w - lr * v``, all in float32. The order's
    corrections change g and lr; see `correct`.

    Raises:
        SpecError: `source` is neither.
    """

    def __init__(self, context: TrainerContext) -> None:
        if not isinstance(context.model_options, SoftmaxModelOptions):
            raise TypeError("model_options must be SoftmaxModelOptions")
        if not isinstance(context.work, SoftmaxWorkOptions):
            raise TypeError("work must be SoftmaxWorkOptions")
        if context.source not in SOURCES:
            raise SpecError(
                f"The trainer 'softmax' has no model source {context.source!r}.",
                hint=f"Known: {', '.join(SOURCES)}.",
            )
        self._options, self._work = context.model_options, context.work
        shape = (self._options.features, self._options.classes)
        weights = np.zeros(shape, np.float32)
        if context.source == "normal":
            generator = np.random.default_rng(context.seed)
            weights = generator.standard_normal(shape, np.float32) * np.float32(0.01)
        self._tensors: dict[str, NDArray[np.float32]] = {
            "bias": np.zeros(shape[1], np.float32),
            "weights": weights,
        }
        self._velocity = {
            name: np.zeros_like(tensor) for name, tensor in self._tensors.items()
        }
        self._lr, self._proximal = self._work.lr, 0.0
        self._base: dict[str, NDArray[np.float32]] = {}
        self._control: dict[str, NDArray[np.float32]] = {}

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield ``bias`` and ``weights``, float32."""
        yield from sorted(self._tensors.items())

    def load(self, read: TensorReader) -> None:
        """Take both tensors from `read`, in any float dtype.

        Raises:
            WorkerError: A tensor has another shape than the options say.
        """
        for name, tensor in self._tensors.items():
            tensor[:] = self._fitting(name, read, "version")

    def correct(self, correction: Correction) -> None:
        """Let every step use ``lr * lr_scale`` and ``g + mu (w - w_base) + control``.

        Raises:
            SpecError: There is a control variate, and `work.momentum` is not 0.
            WorkerError: The control variate has another shape than the model.
        """
        if correction.control is not None and self._work.momentum:
            raise needs_plain_sgd("work.momentum: 0")
        self._lr = self._work.lr * correction.lr_scale
        self._proximal = correction.proximal
        if correction.proximal:
            self._base = {name: value.copy() for name, value in self._tensors.items()}
        if correction.control is not None:
            for name in self._tensors:
                value = self._fitting(name, correction.control, "control variate")
                self._control[name] = value.astype(np.float32)

    @property
    def plain_rate(self) -> float | None:
        """Learning rate of every step; None with momentum."""
        return None if self._work.momentum else self._lr

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Do one SGD step and return the mean loss before it; `of` is for teams."""
        del of
        inputs, labels = self._arrays(batch)
        weights, bias = self._tensors["weights"], self._tensors["bias"]
        loss, by_weights, by_bias = loss_and_gradient(weights, bias, inputs, labels)
        if not math.isfinite(loss):
            return loss
        lr, momentum = np.float32(self._lr), np.float32(self._work.momentum)
        for name, gradient in (("weights", by_weights), ("bias", by_bias)):
            self._add_corrections(name, gradient)
            self._velocity[name] *= momentum
            self._velocity[name] += gradient
            self._tensors[name] -= lr * self._velocity[name]
        return loss

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return the mean cross-entropy by task."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        stream = iter(examples)
        while chunk := list(islice(stream, EVALUATION_BATCH)):
            inputs, labels = self._arrays(chunk)
            scores = inputs @ self._tensors["weights"] + self._tensors["bias"]
            losses = -_log_softmax(scores)[np.arange(len(labels)), labels]
            for example, loss in zip(chunk, losses, strict=True):
                sums[example.task] = sums.get(example.task, 0.0) + float(loss)
                counts[example.task] = counts.get(example.task, 0) + 1
        return {task: sums[task] / counts[task] for task in sorted(sums)}

    def save(self, directory: Path) -> None:
        """Write tensors and velocities into one file."""
        state = dict(self._tensors)
        state.update({f"velocity.{name}": v for name, v in self._velocity.items()})
        write_arrays(directory / STATE, state.items)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote.

        Raises:
            WorkerError: The file is missing, damaged, or of another model.
        """
        path = directory / STATE
        try:
            state = read_arrays(path)
            for name in self._tensors:
                self._tensors[name][:] = state[name]
                self._velocity[name][:] = state[f"velocity.{name}"]
        except (HansaError, KeyError, ValueError) as error:
            raise WorkerError(f"{path} can't be restored: {error}") from error

    def _fitting(self, name: str, read: TensorReader, what: str) -> Array:
        """Read a tensor that has the shape of the model's."""
        value, shape = read(name), self._tensors[name].shape
        if value.shape != shape:
            raise WorkerError(
                f"Tensor {name!r} of the {what} has shape {list(value.shape)}, "
                f"the model's options ask for {list(shape)}.",
                hint="Do not change `model.options` of a run.",
            )
        return value

    def _add_corrections(self, name: str, gradient: Floats) -> None:
        """Add the order's terms to a gradient, in place."""
        if name in self._base:
            moved = self._tensors[name] - self._base[name]
            gradient += np.float32(self._proximal) * moved
        if name in self._control:
            gradient += self._control[name]

    def _arrays(
        self, examples: Sequence[Example]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        inputs = np.stack([np.asarray(e.input, np.float32) for e in examples])
        labels = np.array([e.output for e in examples], np.int64)
        options = self._options
        if inputs.shape[1:] != (options.features,):
            raise SpecError(
                f"A sample has shape {list(inputs.shape[1:])}, the trainer 'softmax' "
                f"takes {options.features} features.",
                hint="Set `model.options.features` to what the task gives.",
            )
        wrong = labels[(labels < 0) | (labels >= options.classes)]
        if len(wrong):
            raise SpecError(
                f"A sample has class {wrong[0]}, the trainer 'softmax' knows 0 to "
                f"{options.classes - 1}.",
                hint="Raise `model.options.classes`.",
            )
        return inputs, labels
