"""A Hugging Face `Trainer` in a federation, by one callback.

::

    callback = HansaCallback(lambda: {"own": trainer.evaluate()["eval_loss"]})
    arguments = TrainingArguments(..., max_steps=callback.max_steps)
    trainer = Trainer(model, arguments, ..., callbacks=[callback])
    trainer.train()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from hansa.worker.api import Job, load


class HansaCallback(TrainerCallback):  # type: ignore[misc]
    """Loads the global model, gives heartbeats, stops in time, submits.

    Args:
        losses: Returns the mean test loss by task; called before the model is
            submitted, where the order asks for it.

    Attributes:
        job: What is to be done.

    Raises:
        HansaError: As `hansa.worker.load`.
    """

    def __init__(self, losses: Callable[[], Mapping[str, float]] | None = None) -> None:
        self.job: Job = load()
        self._losses = losses
        self._over = False

    @property
    def max_steps(self) -> int:
        """What `TrainingArguments` should have: the steps that are left."""
        return max(self.job.left, 1)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        """Take the global model, or the checkpoint after a restart."""
        args.logging_nan_inf_filter = False  # the worker wants to see such a loss
        self.job.into(model, more.get("optimizer"))
        if not self.job.going:
            self._submit(model)
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Ask for the loss of this step."""
        control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any
    ) -> None:
        """Tell the loss, and stop if it is time to."""
        if self._over or not self.job.going or "loss" not in (logs or {}):
            return
        samples = args.train_batch_size * args.gradient_accumulation_steps
        if not self.job.step(logs["loss"], samples):
            control.should_training_stop = True

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        """Hand over the model."""
        self._submit(model)

    def _submit(self, model: Any) -> None:
        if self._over:
            return
        self._over = True
        wanted = self._losses if self.job.evaluates else None
        self.job.submit(model, None if wanted is None else wanted())
