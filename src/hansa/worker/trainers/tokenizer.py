"""Text to token ids and back, on a ``tokenizer.json`` of the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hansa.core.errors import WorkerError
from hansa.worker.base import Example

FILE = "tokenizer.json"
BOS, EOS = "<s>", "</s>"
_SEPARATOR = "\n"
# Encoding in threads of its own would fight for the cores that torch was given.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prompt with its answer; the first `prompt` ids are the prompt."""

    ids: tuple[int, ...]
    prompt: int

    @property
    def answer(self) -> int:
        """Number of ids that belong to the answer, the end mark among them."""
        return len(self.ids) - self.prompt


class ExampleTokenizer:
    """Writes examples as ``<s> input newline output </s>``.

    Args:
        tokenizer: The library's tokenizer.
        bos: Id that begins a sequence; None where the model knows none.
        eos: Id that ends a sequence.
    """

    def __init__(self, tokenizer: Any, *, bos: int | None, eos: int) -> None:
        self.tokenizer = tokenizer
        self.bos = bos
        self.eos = eos
        self._separator = self._ids([_SEPARATOR])[0]

    def encode(self, examples: Sequence[Example], longest: int) -> list[Encoded]:
        """Return the token ids of examples.

        Args:
            examples: Their inputs and outputs are text.
            longest: Most ids of one example. Where there are more, the prompt loses
                its beginning, down to a quarter of `longest`, then the answer its end.
        """
        start = () if self.bos is None else (self.bos,)
        prompts = self._ids([str(example.input) for example in examples])
        answers = self._ids([str(example.output) for example in examples])
        encoded = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tail = (*answer, self.eos)
            head = (*prompt, *self._separator)
            room = max(longest - len(start) - len(tail), longest // 4)
            head = (*start, *head[-room:])
            encoded.append(Encoded((*head, *tail)[:longest], len(head)))
        return encoded

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [entry.ids for entry in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; marks of begin and end are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def write(self, folder: Path) -> None:
        """Write ``tokenizer.json`` into `folder`."""
        self.tokenizer.save(str(folder / FILE))


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> ExampleTokenizer:
    """Learn a byte-level BPE of `vocabulary` tokens; any text can be encoded by it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return ExampleTokenizer(tokenizer, bos=0, eos=1)  # special tokens come first


def read_tokenizer(folder: Path, config: dict[str, Any]) -> ExampleTokenizer:
    """Read ``tokenizer.json``; begin and end are those of the model's config.

    Raises:
        WorkerError: The file is missing or the config names no end of a sequence.
    """
    path = folder / FILE
    if not path.is_file():
        raise WorkerError(
            f"The model folder {folder} has no {FILE}.",
            hint="Save the tokenizer there with `save_pretrained` of a fast tokenizer.",
        )
    bos, eos = _first(config.get("bos_token_id")), _first(config.get("eos_token_id"))
    if eos is None:
        raise WorkerError(
            f"config.json in {folder} has no eos_token_id.",
            hint="Add the id of the token that ends a sequence.",
        )
    return ExampleTokenizer(Tokenizer.from_file(str(path)), bos=bos, eos=eos)


def _first(value: Any) -> int | None:
    """Some models have several end tokens; the first one is written."""
    if isinstance(value, list):
        return int(value[0]) if value else None
    return None if value is None else int(value)
