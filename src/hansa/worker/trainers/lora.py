"""LoRA: the model stays as it is, small adapters beside some layers are trained."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from hansa.core.errors import SpecError
from hansa.worker.llm_options import LoraOptions

_ADAPTER = "default"
_SAMPLE = 64


def add_adapters(module: nn.Module, options: LoraOptions, seed: int) -> None:
    """Freeze `module` and put adapters beside its target layers, in place.

    The adapters are float32 whatever the model's dtype is, and change nothing until
    they are trained: their second factor begins as zero.

    Args:
        module: The model.
        options: Rank, scale and target layers.
        seed: Seed of the adapters' first factor.

    Raises:
        SpecError: The model has no layer of a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    missing = sorted(set(options.targets) - names)
    if missing:
        raise SpecError(
            f"The model has no layer named {missing[0]!r} for a LoRA adapter.",
            hint="Correct model.options.lora.targets in the federation file.",
        )
    module.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.targets),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    for parameter in adapters(module).values():
        parameter.data = parameter.data.float()


def adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters by name, without peft's adapter name in it."""
    return {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def frozen(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen parameters by the name that they had before the adapters."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }


def fingerprint(module: nn.Module) -> str:
    """Return a hash of the frozen model: names, shapes and a sample of each tensor.

    Facilities read the frozen model from their own disk; this tells whether all of
    them have the same, without reading every byte of it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(frozen(module).items()):
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLE)
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(flat[::stride][:_SAMPLE].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_frozen(module: nn.Module, values: dict[str, Any]) -> None:
    """Copy saved tensors into the frozen parameters."""
    with torch.no_grad():
        for name, parameter in frozen(module).items():
            parameter.copy_(values[name])
