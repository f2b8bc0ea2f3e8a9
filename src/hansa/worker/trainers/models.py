"""Makes the language model of a run's first version, and of every later one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hansa.core.errors import SpecError, WorkerError
from hansa.core.rng import derive_seed
from hansa.worker.base import TrainerContext
from hansa.worker.llm_options import CausalLMModelOptions
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.tokenizer import (
    ExampleTokenizer,
    read_tokenizer,
    train_tokenizer,
)

TINY = "tiny-llama"
SMOLLM2 = "smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CONFIG, _BASE = "config.json", "base.json"
_BASE_TENSORS = "base.frozen"  # safetensors; *.safetensors would be federated
_MULTIPLE = 16
_CORPUS = 20_000  # examples that a tokenizer is trained on, evenly chosen


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A decoder, its tokenizer and its Hugging Face config."""

    module: nn.Module
    tokenizer: ExampleTokenizer
    config: dict[str, Any]

    def scores(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Return the next token's scores at the wanted positions.

        Padding is on the right, where causal attention never looks, so no mask of
        it is needed.

        Args:
            ids: Token ids, (examples, length).
            wanted: Boolean, (examples, length).

        Returns:
            Scores, (number of wanted positions, vocabulary).
        """
        if isinstance(self.module, Llama):
            scores: Tensor = self.module(ids, wanted)
        else:
            scores = self.module(input_ids=ids, use_cache=False).logits[wanted]
        return scores

    def federated(self) -> dict[str, nn.Parameter]:
        """Return what is trained and exchanged, by name; a shared tensor once."""
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in sorted(self.module.named_parameters())
            if parameter.requires_grad
        }


def first_model(
    context: TrainerContext, options: CausalLMModelOptions
) -> LanguageModel:
    """Return the model that version 0 is made of: fresh or pretrained.

    Raises:
        SpecError: The source is not known, or its package is missing.
        WorkerError: The source is a folder that can't be read.
    """
    dtype = torch_dtype(context.dtype)
    if context.source == TINY:
        model = _fresh_tiny(context, options)
    else:
        model = LanguageModel(*_pretrained(context.source, dtype))
    model.module.to(dtype)
    if options.lora is not None:
        _with_adapters(model.module, options, context.seed)
    return model


def version_model(
    context: TrainerContext, options: CausalLMModelOptions, assets: Path
) -> LanguageModel:
    """Return the model of a version's assets; its federated tensors follow later.

    Raises:
        SpecError: The source is not known, or its package is missing.
        WorkerError: An asset is missing or damaged, or the frozen model that the
            facility has is not the run's.
    """
    dtype = torch_dtype(context.dtype)
    if context.source == TINY:
        config = _read_json(assets / _CONFIG)
        module: nn.Module = Llama(LlamaShape.from_config(config), context.seed)
        model = LanguageModel(module, read_tokenizer(assets, config), config)
    elif options.lora is None:
        from hansa.worker.trainers.pretrained import empty_pretrained  # noqa: PLC0415

        model = LanguageModel(*empty_pretrained(assets, dtype))
    else:
        model = LanguageModel(*_pretrained(context.source, dtype))
    model.module.to(dtype)
    if options.lora is not None:
        _with_adapters(model.module, options, context.seed)
        _settle_base(model.module, assets)
    return model


def write_model(
    model: LanguageModel, options: CausalLMModelOptions, folder: Path
) -> None:
    """Write what `version_model` reads: config, tokenizer and, for LoRA, the base.

    The frozen weights themselves are only written for `tiny-llama`, which no
    facility has on its disk.
    """
    text = json.dumps(model.config, indent=2, sort_keys=True)
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")
    model.tokenizer.write(folder)
    if options.lora is None:
        return
    from hansa.worker.trainers import lora  # noqa: PLC0415

    base = {"fingerprint": lora.fingerprint(model.module)}
    (folder / _BASE).write_text(json.dumps(base) + "\n", encoding="utf-8")
    if isinstance(model.module, Llama):
        tensors = {n: t.contiguous() for n, t in lora.frozen(model.module).items()}
        save_file(tensors, folder / _BASE_TENSORS)


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a name.

    Raises:
        SpecError: The trainer does not train in it.
    """
    if name not in DTYPES:
        raise SpecError(
            f"The trainer causal-lm can't train in {name}.",
            hint=f"Set model.dtype to {' or '.join(DTYPES)}.",
        )
    return DTYPES[name]


def _fresh_tiny(
    context: TrainerContext, options: CausalLMModelOptions
) -> LanguageModel:
    corpus = context.corpus()
    if not corpus:
        raise WorkerError(
            "The tokenizer of tiny-llama is trained on examples, and there are none.",
            hint="Check the task's data.",
        )
    some = corpus[:: -(-len(corpus) // _CORPUS)]
    texts = [str(text) for entry in some for text in (entry.input, entry.output)]
    tokenizer = train_tokenizer(texts, options.vocabulary)
    shape = LlamaShape(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate or _inner_width(options.hidden),
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.positions,
    )
    config = shape.to_config(bos=tokenizer.bos or 0, eos=tokenizer.eos)
    module = Llama(shape, derive_seed(context.seed, "initial weights"))
    return LanguageModel(module, tokenizer, config)


def _inner_width(hidden: int) -> int:
    return -(-hidden * 8 // (3 * _MULTIPLE)) * _MULTIPLE


def _pretrained(
    source: str, dtype: torch.dtype
) -> tuple[nn.Module, ExampleTokenizer, dict[str, Any]]:
    from hansa.worker.trainers.pretrained import (  # noqa: PLC0415
        read_pretrained,
        read_smollm2,
    )

    if source == SMOLLM2:
        return read_smollm2(dtype)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise SpecError(
            f"There is no model {source!r}: neither a known name nor a folder here.",
            hint=f"Known names: {TINY}, {SMOLLM2}. Jobs have no network, so a model "
            "of a hub has to be downloaded first; then give its folder.",
        )
    return read_pretrained(folder, dtype)


def _with_adapters(module: nn.Module, options: CausalLMModelOptions, seed: int) -> None:
    from hansa.worker.trainers.lora import add_adapters  # noqa: PLC0415

    if options.lora is not None:
        add_adapters(module, options.lora, derive_seed(seed, "adapters"))


def _settle_base(module: nn.Module, assets: Path) -> None:
    """Give the frozen weights their values, or check those that the facility has."""
    from hansa.worker.trainers import lora  # noqa: PLC0415

    if (assets / _BASE_TENSORS).is_file():
        lora.load_frozen(module, load_file(assets / _BASE_TENSORS))
    expected = _read_json(assets / _BASE).get("fingerprint")
    if lora.fingerprint(module) != expected:
        raise WorkerError(
            "The frozen model at this facility is not the one that the run began with.",
            hint="Copy the same model folder to every facility.",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"The version's {path.name} can't be read: {error}."
        ) from error
    if not isinstance(data, dict):
        raise WorkerError(f"The version's {path.name} is no JSON object.")
    return data
