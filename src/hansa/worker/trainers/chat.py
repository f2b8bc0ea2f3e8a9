"""Conversations as text: a model's own chat template.

A template is a Jinja program that comes with a model's tokenizer. It is rendered in
Jinja's sandbox, where it can reach neither files nor Python's objects, with what
transformers gives to templates (tests hold the two against each other); transformers
itself takes a second to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example

TEMPLATE, WORDS = "chat_template.jinja", "tokenizer_config.json"
ASSISTANT = "assistant"
_DATE = "26 Jul 2024"  # some templates write today's; a restart must see the same

Message = Mapping[str, str]


def messages_of(example: Example) -> list[Message]:
    """Return an example as a conversation that its answer ends.

    Its input is text, which a user says, or a list of messages
    ``{"role": ..., "content": ...}``.
    """
    asked = example.input
    if not isinstance(asked, list):
        asked = [{"role": "user", "content": str(asked)}]
    return [*asked, {"role": ASSISTANT, "content": str(example.output)}]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template with the words that it may use.

    Attributes:
        source: The Jinja program.
        words: Texts of special tokens by name, as ``{"bos_token": "<s>"}``.
    """

    source: str
    words: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, opening: bool = False) -> str:
        """Return a conversation as text, special tokens included.

        Args:
            messages: What was said.
            opening: Whether what begins an answer is added at the end.

        Raises:
            SpecError: The template refuses these messages.
        """
        told = {"date_string": _DATE, "tools": None, "documents": None, **self.words}
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=opening,
                **told,
            )
        except Exception as error:  # it is a program, which may fail in any way
            raise SpecError(
                f"The model's chat template refuses the messages: {error}.",
                hint="Look at their roles and order, or set model.options.chat: false.",
            ) from error

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation as text, and where in it the assistant's answers are.

        An answer begins where the model is asked to go on and includes the mark that
        ends it, without white space after that.

        Raises:
            SpecError: The template refuses the messages, or writes a conversation
                otherwise once it has gone on.
        """
        whole, spans = self.render(messages), []
        for index, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self.render(messages[:index], opening=True)
            after = self.render(messages[: index + 1]).rstrip()
            if not (whole.startswith(before) and whole.startswith(after)):
                raise SpecError(
                    "The model's chat template changes what was said before an "
                    f"answer (message {index + 1}), so answers can't be told apart.",
                    hint="Set model.options.chat: false.",
                )
            spans.append((len(before), len(after)))
        return whole, spans

    def write(self, folder: Path) -> None:
        """Write the template into `folder`, for `read_template` and transformers."""
        (folder / TEMPLATE).write_text(self.source, encoding="utf-8")
        words = {"tokenizer_class": "PreTrainedTokenizerFast", **self.words}
        text = json.dumps(words, indent=2, sort_keys=True)
        (folder / WORDS).write_text(text + "\n", encoding="utf-8")


def read_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a model folder; None if it has none.

    It is in ``chat_template.jinja``, or in older folders in ``tokenizer_config.json``;
    of several the one named "default" is taken.

    Raises:
        WorkerError: A file is damaged.
    """
    config: dict[str, Any] = {}
    try:
        if (folder / WORDS).is_file():
            config = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        source = config.get("chat_template")
        if (folder / TEMPLATE).is_file():
            source = (folder / TEMPLATE).read_text(encoding="utf-8")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkerError(
            f"The chat template in {folder} can't be read: {error}."
        ) from error
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, _words(config))


class _Generation(Extension):
    """The block that marks answers in some templates; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = _json
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = lambda form: _DATE
    return sandbox.from_string(source)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _words(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens, which are texts or objects with a `content`."""
    words = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            words[name] = text
    return words
