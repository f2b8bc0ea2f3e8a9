"""The decoder layers of a model, whoever wrote it."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from hansa.core.errors import SpecError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers: the list of modules of one class with the most parameters.

    Llama, GPT-2, OPT and others all keep their layers in one `nn.ModuleList`. A model
    without such a list has none.
    """
    best: list[nn.Module] = []
    most = 0
    for module in model.modules():
        if not isinstance(module, nn.ModuleList):
            continue
        if len({type(layer) for layer in module}) != 1:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if size > most:
            best, most = list(module), size
    return best


def checkpoint_activations(model: nn.Module) -> list[nn.Module]:
    """Let each layer keep its input only, and compute the rest anew going back.

    The forward method of each layer is replaced, not the layer: names stay, and hooks
    of a back end stay outside of what is computed twice.

    Returns:
        The layers.

    Raises:
        SpecError: The model has none.
    """
    layers = layers_of(model)
    if not layers:
        raise SpecError(
            "The model has no list of layers, so their activations can't be computed "
            "twice.",
            hint="Set work.activation_checkpointing: false.",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return layers
