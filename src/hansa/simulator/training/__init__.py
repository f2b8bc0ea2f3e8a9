"""What stands for the training, one file a kind; `make_training` chooses."""

from __future__ import annotations

from hansa.simulator.training.base import Training
from hansa.simulator.training.none import Untrained
from hansa.simulator.training.quadratic import Quadratic
from hansa.simulator.training.real import Real
from hansa.simulator.training.softmax import SoftmaxRegression
from hansa.spec.federation import FederationSpec
from hansa.spec.simulation import (
    NoTraining,
    RealTraining,
    SimulationSpec,
    SurrogateTraining,
)


def make_training(spec: FederationSpec, seed: int) -> Training:
    """Return what stands for the training of a federation.

    Args:
        spec: The federation.
        seed: Seed of everything that is drawn.

    Raises:
        SpecError: A facility's `work`, or the model or the task, does not suit it.
        PluginError: The trainer or the task of a real training is unknown.
    """
    simulation = spec.simulation or SimulationSpec.model_validate({})
    match simulation.training:
        case NoTraining(bytes=size, update_bytes=update_size):
            return Untrained(spec, size, update_size)
        case SurrogateTraining() as chosen:
            kind = Quadratic if chosen.problem == "quadratic" else SoftmaxRegression
            return kind(spec, chosen, seed)
        case RealTraining() as chosen:
            return Real(spec, chosen, seed)
