"""Makes the language model of a run's first version, and of every later one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hansa.core.errors import SpecError, WorkerError
from hansa.core.rng import derive_seed
from hansa.store.manifest import NAME, read_version_manifest
from hansa.worker.base import Array, TensorReader, TrainerContext
from hansa.worker.llm_options import CausalLMModelOptions
from hansa.worker.reading import RowReader
from hansa.worker.trainers import lora, pretrained
from hansa.worker.trainers.collate import Rows, separate
from hansa.worker.trainers.empty import without_memory
from hansa.worker.trainers.gguf import GgufLlama
from hansa.worker.trainers.llama import Llama, LlamaShape
from hansa.worker.trainers.stream import InMemory, TensorFiles, fill
from hansa.worker.trainers.tokenizer import (
    ExampleTokenizer,
    check_same,
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
    """A decoder, its tokenizer and its Hugging Face config.

    Attributes:
        module: The decoder. Parameters that are read from files have no memory yet: the
            back end gives it to those rows that this rank holds.
        tokenizer: Its tokenizer.
        config: Its config.
        first: Gives what the federated parameters of a new model begin with; None: they
            are set, or those of a version follow.
        base: Gives the frozen parameters; None: nothing is frozen.
        residuals: Names of the version's tensors that go into frozen parameters.
        aliases: What `lora.own_weights` returned.
    """

    module: nn.Module
    tokenizer: ExampleTokenizer
    config: dict[str, Any]
    first: RowReader | None = None
    base: RowReader | None = None
    residuals: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def fill(self, read: TensorReader | None = None) -> None:
        """Set the frozen parameters, or this rank's rows of them; they have memory.

        Args:
            read: Gives the version's tensors, for the residuals.

        Raises:
            WorkerError: The model's files are damaged, or a residual is of another
                model.
        """
        base = self.base
        if base is None:
            return
        if self.residuals and read is not None:
            base = lora.WithResiduals(
                self.module, base, self.residuals, read, self.aliases
            )
        fill(lora.frozen(self.module), base, of="frozen model")

    def scores(
        self,
        rows: Rows,
        module: nn.Module | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return the next token's scores at the wanted positions.

        Padding is on the right, where causal attention never looks, so no mask of
        it is needed where rows are not packed.

        Args:
            rows: What goes in.
            module: Called in place of the model: a wrapper of it.
            dtype: Of the arithmetic; None: as the model's first parameter.

        Returns:
            Scores, (number of wanted positions, vocabulary).
        """
        called = self.module if module is None else module
        mask = None if rows.segments is None else separate(rows.segments)
        if isinstance(self.module, Llama):
            scores: Tensor = called(rows.ids, rows.wanted, rows.positions, mask)
            return scores
        more: dict[str, Tensor] = {}
        if mask is not None and rows.positions is not None:
            more = {
                "position_ids": rows.positions,
                "attention_mask": _added(mask, dtype or _dtype(self.module)),
            }
        result: Tensor = called(input_ids=rows.ids, use_cache=False, **more).logits
        return result[rows.wanted]

    def federated(self) -> dict[str, nn.Parameter]:
        """Return what is trained and exchanged, by name; a shared tensor once."""
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in sorted(self.module.named_parameters())
            if parameter.requires_grad
        }


def _dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers that are added, which all kinds of attention take."""
    nothing = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, nothing, torch.finfo(dtype).min)


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
        model = _pretrained(context.source, dtype)
    _convert(model.module, dtype)
    if options.lora is not None:
        base = model.first or InMemory(dict(model.module.named_parameters()))
        lora.add_adapters(model.module, options.lora)
        seed = derive_seed(context.seed, "adapters")
        adapters = InMemory(lora.first_values(model.module, seed))
        model = replace(model, first=adapters, base=base)
    return _talking(model, options)


def version_model(
    context: TrainerContext, options: CausalLMModelOptions, assets: Path
) -> LanguageModel:
    """Return the model of a version's assets, without memory.

    Its federated tensors follow with the version, its frozen ones with `fill`.

    Raises:
        SpecError: The source is not known, or its package is missing.
        WorkerError: An asset is missing or damaged, or the frozen model that the
            facility has is not the run's.
    """
    dtype, config = torch_dtype(context.dtype), _read_json(assets / _CONFIG)
    tokenizer = read_tokenizer(assets, config)
    if context.source in (TINY, SMOLLM2):
        with without_memory():
            module: nn.Module = Llama(LlamaShape.from_config(config), None)
    else:
        module = pretrained.empty_pretrained(assets, dtype)
    _convert(module, dtype)
    model = LanguageModel(module, tokenizer, config)
    if options.lora is not None:
        names = [name for name, _ in module.named_parameters()]
        base = _base(context, model, names, assets)
        lora.add_adapters(module, options.lora)
        _check_base(module, base, assets)
        residuals = _residuals(assets)
        aliases = lora.own_weights(module, residuals)
        model = replace(model, base=base, residuals=residuals, aliases=aliases)
    return _talking(model, options)


class FirstModel:
    """Makes version 0 without training: it holds no more than a tensor at a time.

    Args:
        context: What a trainer is built from.

    Raises:
        HansaError: As `first_model`.
    """

    def __init__(self, context: TrainerContext) -> None:
        if not isinstance(context.model_options, CausalLMModelOptions):
            raise TypeError("model_options must be CausalLMModelOptions")
        self._options = context.model_options
        self._model = first_model(context, self._options)

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors, sorted by name."""
        federated = self._model.federated()
        read = self._model.first or InMemory(federated)
        for name in sorted(federated):
            yield name, read(name)

    def write_assets(self, folder: Path) -> None:
        """Write config and tokenizer (and what LoRA needs) into `folder`."""
        write_model(self._model, self._options, folder)


def _talking(model: LanguageModel, options: CausalLMModelOptions) -> LanguageModel:
    """Return the model with its chat template in use, if that is asked for."""
    if not options.chat:
        return model
    return replace(model, tokenizer=model.tokenizer.with_chat(True))


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
    if model.base is None:
        raise TypeError("a model with adapters has a base")
    base = {"fingerprint": lora.fingerprint(model.module, model.base)}
    (folder / _BASE).write_text(json.dumps(base) + "\n", encoding="utf-8")
    if isinstance(model.base, InMemory) and isinstance(model.module, Llama):
        frozen = lora.frozen(model.module)
        tensors = {name: tensor.contiguous() for name, tensor in frozen.items()}
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


def _pretrained(source: str, dtype: torch.dtype) -> LanguageModel:
    """Return a model that exists, without memory, and what reads its numbers."""
    if source == SMOLLM2:
        return _smollm2()
    folder = pretrained.find_folder(source)
    config = pretrained.read_config(folder)
    tokenizer = read_tokenizer(folder.path, config)
    module = pretrained.empty_pretrained(folder.path, dtype)
    names = [name for name, _ in module.named_parameters()]
    first = pretrained.stored_weights(folder, module, names, dtype)
    return LanguageModel(module, tokenizer, config, first=first)


def _smollm2() -> LanguageModel:
    file = GgufLlama(pretrained.smollm2_file())
    config = pretrained.smollm2_config(file.about)
    with without_memory():
        module = Llama(LlamaShape.from_config(config), None)
    tokenizer = pretrained.smollm2_tokenizer(file.about)
    return LanguageModel(module, tokenizer, config, first=file)


def _base(
    context: TrainerContext, model: LanguageModel, names: list[str], assets: Path
) -> RowReader:
    """Return what reads the frozen model: from the version, or from the facility."""
    if (assets / _BASE_TENSORS).is_file():
        return TensorFiles.of([assets / _BASE_TENSORS])
    if context.source == SMOLLM2:
        return GgufLlama(pretrained.smollm2_file())
    folder = pretrained.find_folder(context.source)
    config = pretrained.read_config(folder)
    check_same(read_tokenizer(folder.path, config), model.tokenizer)
    dtype = torch_dtype(context.dtype)
    return pretrained.stored_weights(folder, model.module, names, dtype)


def _check_base(module: nn.Module, base: RowReader, assets: Path) -> None:
    """Compare the frozen model that the facility has with the run's."""
    expected = _read_json(assets / _BASE).get("fingerprint")
    if lora.fingerprint(module, base) != expected:
        raise WorkerError(
            "The frozen model at this facility is not the one that the run began with.",
            hint="Copy the same model folder to every facility.",
        )


def _residuals(assets: Path) -> frozenset[str]:
    """Return the names of the residuals that a version brings."""
    if not (assets / NAME).is_file():
        return frozenset()  # no version: a folder of assets alone
    return lora.residual_names(read_version_manifest(assets).fixed)


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters; buffers stay as exact as the model has made them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


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
