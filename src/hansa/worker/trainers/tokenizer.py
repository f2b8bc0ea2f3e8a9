"""Text to token ids and back, on a ``tokenizer.json`` of the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example
from hansa.worker.trainers.chat import (
    ASSISTANT,
    ChatTemplate,
    Message,
    messages_of,
    read_template,
)

FILE = "tokenizer.json"
BOS, EOS = "<s>", "</s>"
_SEPARATOR = "\n"
_MEANING = ("added_tokens", "normalizer", "pre_tokenizer", "model")
# Encoding in threads of its own would fight for the cores that torch was given.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of an example, and which of them are learned.

    Attributes:
        ids: The ids.
        learned: Whether each belongs to an answer. The first id is not learned in any
            case, as nothing comes before it.
        cut: Whether the example had more of them.
    """

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    cut: bool = False

    @property
    def prompt(self) -> int:
        """Number of ids before the first answer."""
        return self.learned.index(True)

    @property
    def answer(self) -> int:
        """Number of ids that are learned, marks of the end among them."""
        return sum(self.learned[1:])


class ExampleTokenizer:
    """Writes examples as ``<s> input newline output </s>``, or by a chat template.

    Without a template a conversation is written in the same way, turn by turn: each
    answer ends with ``</s>``, everything else with a newline.

    Args:
        tokenizer: The library's tokenizer.
        bos: Id that begins a sequence; None where the model knows none.
        eos: Id that ends a sequence.
        template: The chat template of the model; None: it has none.
        chat: Whether examples are written by it.

    Raises:
        SpecError: It is asked for, and there is none.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: int | None,
        eos: int,
        template: ChatTemplate | None = None,
        chat: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos = bos
        self.eos = eos
        self.template = template
        self.chat = chat
        self._separator = self._ids([_SEPARATOR])[0]
        if chat and template is None:
            raise SpecError(
                "The model has no chat template.",
                hint="Set model.options.chat: false, or put chat_template.jinja into "
                "the model's folder.",
            )

    def with_chat(self, chat: bool) -> ExampleTokenizer:
        """Return the same tokenizer, with the chat template in use or not.

        Raises:
            SpecError: It is asked for, and there is none.
        """
        return ExampleTokenizer(
            self.tokenizer,
            bos=self.bos,
            eos=self.eos,
            template=self.template,
            chat=chat,
        )

    def encode(
        self,
        examples: Sequence[Example],
        longest: int,
        too_long: Literal["truncate", "refuse"] = "truncate",
    ) -> list[Encoded]:
        """Return the token ids of examples.

        Args:
            examples: Their inputs are text or messages, their outputs text.
            longest: Most ids of one example.
            too_long: What to do where there are more. "truncate": what comes before
                the first answer loses its beginning, down to a quarter of `longest`,
                then the whole its end.

        Raises:
            WorkerError: An example is too long and that is refused, or nothing of it
                can be learned.
            SpecError: The chat template refuses an example.
        """
        whole = self._conversations(examples) if self.chat else self._plain(examples)
        found = []
        for example, (ids, learned) in zip(examples, whole, strict=True):
            is_long = len(ids) > longest
            if is_long and too_long == "refuse":
                raise WorkerError(
                    f"{_name(example)} has {len(ids)} tokens, more than "
                    f"work.sequence_length ({longest}).",
                    hint="Raise work.sequence_length, shorten the example, or set "
                    "work.too_long: truncate.",
                )
            entry = Encoded(tuple(ids), tuple(learned))
            found.append(self._cut(ids, learned, longest) if is_long else entry)
            if not found[-1].answer:
                raise WorkerError(f"{_name(example)} has no answer to learn.")
        return found

    def question(self, example: Example, longest: int) -> tuple[int, ...]:
        """Return the ids that a model is to go on from with the example's answer.

        Args:
            example: Its output is not looked at.
            longest: Most ids; more lose their beginning.
        """
        if self.template is not None and self.chat:
            text = self.template.render(messages_of(example)[:-1], opening=True)
            ids = self._ids([text])[0]
        else:
            ids = self._turns(messages_of(example)[:-1])
        kept = [ids[0]] if ids[:1] == [self.bos] else []
        room = longest - len(kept)
        return tuple(ids if len(ids) <= longest else [*kept, *ids[len(ids) - room :]])

    def _cut(self, ids: list[int], learned: list[bool], longest: int) -> Encoded:
        first = learned.index(True) if True in learned else len(ids)
        start = 1 if ids[0] == self.bos else 0
        room = max(longest - start - (len(ids) - first), longest // 4)
        begin = max(start, first - room)
        return Encoded(
            (*ids[:start], *ids[begin:])[:longest],
            (*learned[:start], *learned[begin:])[:longest],
            cut=True,
        )

    def _plain(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[list[int], list[bool]]]:
        """Yield the ids of whole examples, and which of them are answers."""
        talks = [messages_of(example) for example in examples]
        texts = iter(self._ids([m["content"] for talk in talks for m in talk]))
        for talk in talks:
            ids = [] if self.bos is None else [self.bos]
            learned = [False] * len(ids)
            for message in talk:
                answers = message["role"] == ASSISTANT
                turn = [*next(texts), *([self.eos] if answers else self._separator)]
                ids += turn
                learned += [answers] * len(turn)
            yield ids, learned

    def _turns(self, messages: Sequence[Message]) -> list[int]:
        ids = [] if self.bos is None else [self.bos]
        for message in messages:
            ids += self._ids([message["content"]])[0]
            ids += [self.eos] if message["role"] == ASSISTANT else self._separator
        return ids

    def _conversations(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[list[int], list[bool]]]:
        """Yield the same by the chat template.

        Where the template ends its last answer with no mark, the end of a sequence is
        added, or the model would never learn to stop.
        """
        if self.template is None:
            raise TypeError("there is a chat template where it is used")
        for example in examples:
            text, spans = self.template.answers(messages_of(example))
            entry = self._exact.encode(text, add_special_tokens=False)
            ids, learned = list(entry.ids), _within(entry.offsets, spans)
            last = max((i for i, yes in enumerate(learned) if yes), default=None)
            if last is not None and ids[last] not in self.marks:
                ids, learned = [*ids[: last + 1], self.eos], learned[: last + 1]
                learned.append(True)
            yield ids, learned

    @cached_property
    def _exact(self) -> Any:
        """The tokenizer without what comes after it, which may trim offsets."""
        exact = Tokenizer.from_str(self.tokenizer.to_str())
        exact.post_processor = None
        return exact

    @cached_property
    def marks(self) -> frozenset[int]:
        """Ids of tokens that are no text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset({self.eos, *(i for i, t in added.items() if t.special)})

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [entry.ids for entry in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; marks of begin and end are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def write(self, folder: Path) -> None:
        """Write ``tokenizer.json`` into `folder`, and the chat template if any."""
        self.tokenizer.save(str(folder / FILE))
        if self.template is not None:
            self.template.write(folder)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """A hash of all that turns text into ids, as 16 hexadecimal digits."""
        told = json.loads(self.tokenizer.to_str())
        parts = {key: told.get(key) for key in _MEANING}
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same(here: ExampleTokenizer, run: ExampleTokenizer) -> None:
    """Refuse a model folder whose tokenizer is not the run's.

    Args:
        here: That of the facility's model.
        run: That of the run's versions.

    Raises:
        WorkerError: They differ; the message has size and hash of both.
    """
    if here.tokenizer.to_str() == run.tokenizer.to_str():
        return  # the quick way: a hash of a large vocabulary takes a second
    if here.fingerprint != run.fingerprint:
        raise WorkerError(
            "The tokenizer of the model at this facility is not the one that the run "
            f"began with: {here.size} tokens, hash {here.fingerprint}, instead of "
            f"{run.size} tokens, hash {run.fingerprint}.",
            hint="Copy the same model folder to every facility.",
        )


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
        WorkerError: The file is missing or damaged, the config names no end of a
            sequence, or the model is made for fewer tokens.
    """
    path = folder / FILE
    if not path.is_file():
        raise WorkerError(
            f"The model folder {folder} has no {FILE}.",
            hint="Save the tokenizer there with `save_pretrained` of a fast tokenizer.",
        )
    bos, eos = (_mark(config, f"{end}_token_id", folder) for end in ("bos", "eos"))
    if eos is None:
        raise WorkerError(
            f"config.json in {folder} has no eos_token_id.",
            hint="Add the id of the token that ends a sequence.",
        )
    tokenizer = ExampleTokenizer(
        _loaded(path), bos=bos, eos=eos, template=read_template(folder)
    )
    rows = config.get("vocab_size")
    if isinstance(rows, int) and tokenizer.size > rows:
        raise WorkerError(
            f"The tokenizer in {folder} has {tokenizer.size} tokens, its model only "
            f"{rows} (vocab_size in config.json).",
            hint="Take tokenizer and model from the same folder.",
        )
    return tokenizer


def _loaded(path: Path) -> Tokenizer:
    """Read a tokenizer, without what it says of lengths: that is for `work` to say.

    Many files bring `truncation` and `padding` of whoever has saved them.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise WorkerError(
            f"{path} can't be read: {error}.",
            hint="Save the tokenizer again with `save_pretrained`.",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _within(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[bool]:
    """Return which tokens have a part in a span, offsets and spans in characters."""
    return [
        any(begin < stop and start < end for begin, end in spans)
        for start, stop in offsets
    ]


def _name(example: Example) -> str:
    """Return what tells an example from the others: never its text."""
    place = f" ({example.place})" if example.place else ""
    return f"An example of the task {example.task!r}{place}"


def _mark(config: dict[str, Any], key: str, folder: Path) -> int | None:
    """Return the id of a mark; some models have several, of which the first counts."""
    value, rows = config.get(key), config.get("vocab_size")
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    most = rows if isinstance(rows, int) else math.inf
    if type(value) is not int or not 0 <= value < most:
        raise WorkerError(
            f"{key} in config.json of {folder} is {value!r}, which is the id of no "
            "token of the model.",
            hint="Set it to the id that the tokenizer has for the mark.",
        )
    return value
