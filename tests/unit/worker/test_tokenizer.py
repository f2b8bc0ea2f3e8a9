"""Examples as token ids: plain or by a chat template, whole, cut or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from hansa.core.errors import SpecError, WorkerError
from hansa.worker.base import Example
from hansa.worker.trainers.chat import ChatTemplate, read_template
from hansa.worker.trainers.tokenizer import (
    Encoded,
    ExampleTokenizer,
    check_same,
    read_tokenizer,
    train_tokenizer,
)

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = Example(
    "t",
    [
        {"role": "system", "content": "Be  brief. "},
        {"role": "user", "content": "Grüße?"},
        {"role": "assistant", "content": " Hallo\n"},
        {"role": "user", "content": "And?"},
    ],
    "Bye.",
    "mine.jsonl:3",
)


def talking(source: str = CHATML) -> ExampleTokenizer:
    plain = train_tokenizer(["Be brief. Hallo Bye. assistant user"], 300)
    marks = [AddedToken(m, special=True) for m in ("<|im_start|>", "<|im_end|>")]
    plain.tokenizer.add_special_tokens(marks)
    # As GPT-2's: it trims the offsets of tokens, which must not move an answer.
    plain.tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return ExampleTokenizer(plain.tokenizer, bos=0, eos=1, template=template, chat=True)


def text_of(tokenizer: ExampleTokenizer, ids: list[int]) -> str:
    return str(tokenizer.tokenizer.decode(ids, skip_special_tokens=False))


def answers(tokenizer: ExampleTokenizer, entry: Encoded) -> list[str]:
    """Return the text of each run of learned ids."""
    runs: list[list[int]] = []
    before = False
    for token, learned in zip(entry.ids, entry.learned, strict=True):
        if learned:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = learned
    return [text_of(tokenizer, run) for run in runs]


def test_a_conversation_without_a_template_is_written_turn_by_turn() -> None:
    plain = train_tokenizer(["a"], 260)
    (entry,) = plain.encode([TALK], 200)
    assert text_of(plain, list(entry.ids)) == (
        "<s>Be  brief. \nGrüße?\n Hallo\n</s>And?\nBye.</s>"
    )
    assert answers(plain, entry) == [" Hallo\n</s>", "Bye.</s>"]
    assert plain.question(TALK, 200) == entry.ids[: -len("Bye.") - 1]
    single = Example("t", "in", "out")
    (entry,) = plain.encode([single], 200)
    assert text_of(plain, list(entry.ids)) == "<s>in\nout</s>"
    assert plain.question(single, 200) == entry.ids[: entry.prompt]
    assert plain.question(single, 3) == (0, *entry.ids[2:4])
    assert plain.question(single, 1) == (0,)


def test_the_template_is_learned_in_the_assistants_answers_only() -> None:
    chat = talking()
    talk, single = chat.encode([TALK, Example("t", "2+2?", "4")], 300)
    assert text_of(chat, list(talk.ids)) == (
        "<s><|im_start|>system\nBe  brief. <|im_end|>\n<|im_start|>user\nGrüße?"
        "<|im_end|>\n<|im_start|>assistant\n Hallo\n<|im_end|>\n<|im_start|>user\n"
        "And?<|im_end|>\n<|im_start|>assistant\nBye.<|im_end|>\n"
    )
    assert answers(chat, talk) == [" Hallo\n<|im_end|>", "Bye.<|im_end|>"]
    assert answers(chat, single) == ["4<|im_end|>"]
    last = max(i for i, learned in enumerate(talk.learned) if not learned and i < 300)
    asked = chat.question(TALK, 300)
    assert talk.ids[: len(asked)] == asked
    assert text_of(chat, list(asked)).endswith(
        "And?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert last >= len(asked)  # only the newline after the last mark


def test_an_answer_without_a_mark_at_its_end_gets_one() -> None:
    bare = talking(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (entry,) = bare.encode([Example("t", "2+2?", "It is 4")], 300)
    assert text_of(bare, list(entry.ids)) == "user: 2+2?\nassistant: It is 4</s>"
    assert "".join(answers(bare, entry)).strip() == "It is 4</s>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('No system.') }}", "refuses the messages: No system"),
        ("{{ messages.__class__.__mro__ }}", "refuses the messages: access to"),
        ("{{ messages[0].content + 1 }}", "refuses the messages: can only concat"),
        ("{{ range(10 ** 6) | list }}", "refuses the messages: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion"),
        ("{{ messages | length }}{{ messages[-1].content }}", "changes what was said"),
    ],
)
def test_templates_that_refuse_or_rewrite_are_an_error(source: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        talking(source).encode([TALK], 300)


def test_an_example_that_teaches_nothing_is_refused() -> None:
    mute = talking(
        "{% for m in messages %}{% if m.role == 'user' %}u{% endif %}{% endfor %}"
    )
    with pytest.raises(WorkerError, match=r"'t' \(mine.jsonl:3\) has no answer"):
        mute.encode([TALK], 300)


def test_too_long_is_cut_and_counted_or_refused_by_name() -> None:
    plain = train_tokenizer(["a"], 260)
    long = Example("t", "q" * 30, "abcdef", "number 12")
    (entry,) = plain.encode([long], 20)
    assert entry.cut
    assert text_of(plain, list(entry.ids)) == "<s>" + "q" * 11 + "\nabcdef</s>"
    (whole,) = plain.encode([long], 39, "refuse")
    assert not whole.cut
    with pytest.raises(WorkerError, match=r"'t' \(number 12\) has 39 tokens.* \(38\)"):
        plain.encode([long], 38, "refuse")


@given(
    turns=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1),
    longest=st.integers(8, 64),
    chat=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_what_is_cut_keeps_a_part_of_an_answer(
    turns: list[tuple[int, int]], longest: int, chat: bool
) -> None:
    talk = [
        {"role": role, "content": letter * size}
        for pair in turns[:4]
        for role, letter, size in zip(("user", "assistant"), "qz", pair, strict=True)
    ]
    tokenizer = CHAT if chat else PLAIN
    example = Example("t", talk[:-1], talk[-1]["content"])
    (entry,) = tokenizer.encode([example], longest)
    (whole,) = tokenizer.encode([example], 10_000)
    assert len(entry.ids) == len(entry.learned) == min(longest, len(whole.ids))
    assert entry.cut == (len(whole.ids) > longest)
    assert entry.answer > 0
    assert not entry.learned[0]
    assert entry.ids[0] == 0  # the mark of the beginning stays


PLAIN, CHAT = train_tokenizer(["a"], 260), talking()


def test_templates_are_read_as_transformers_reads_and_writes_them(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    chat = talking()
    chat.write(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 400}
    again = read_tokenizer(tmp_path, config).with_chat(True)
    (entry,) = again.encode([TALK], 300)
    assert entry == chat.encode([TALK], 300)[0]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = [*TALK.input, {"role": "assistant", "content": TALK.output}]
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert tuple(ids) == entry.ids
    theirs.save_pretrained(tmp_path / "saved")
    read = read_template(tmp_path / "saved")
    assert read is not None
    assert read.render(messages) == chat.template.render(messages)


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    place = tmp_path / "tokenizer_config.json"
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    bos = {"content": "<s>", "lstrip": False}
    place.write_text(json.dumps({"chat_template": named, "bos_token": bos}))
    assert read_template(tmp_path) == ChatTemplate("D", {"bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert read_template(tmp_path) == ChatTemplate("J", {"bos_token": "<s>"})
    place.write_text("{")
    with pytest.raises(WorkerError, match="can't be read"):
        read_template(tmp_path)
    with pytest.raises(SpecError, match="has no chat template"):
        PLAIN.with_chat(True)


def test_tokenizers_that_do_not_fit_are_refused_with_size_and_hash(
    tmp_path: Path,
) -> None:
    other = train_tokenizer(["bbb"], 270)
    check_same(PLAIN, train_tokenizer(["a"], 260))
    with pytest.raises(WorkerError, match="is not the one") as info:
        check_same(other, PLAIN)
    for known in (other, PLAIN):
        assert f"{known.size} tokens, hash {known.fingerprint}" in info.value.message
    other.write(tmp_path)
    with pytest.raises(WorkerError, match=rf"has {other.size} tokens, .* only 256"):
        read_tokenizer(tmp_path, {"eos_token_id": 1, "vocab_size": 256})


def test_lengths_in_the_tokenizers_file_do_not_count(tmp_path: Path) -> None:
    other = train_tokenizer(["a"], 260)
    other.tokenizer.enable_truncation(4)
    other.tokenizer.enable_padding(length=10)
    other.write(tmp_path)
    read = read_tokenizer(tmp_path, {"bos_token_id": 0, "eos_token_id": 1})
    some = [Example("t", "1234567", "89abcdefghijk")]
    assert read.encode(some, 99) == PLAIN.encode(some, 99)
    check_same(read, PLAIN)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no eos_token_id"),
        ({"eos_token_id": []}, "has no eos_token_id"),
        ({"eos_token_id": "</s>"}, "eos_token_id in .* is '</s>', which is the id of"),
        ({"eos_token_id": [260, 1]}, "eos_token_id in .* is 260"),
        ({"eos_token_id": 1, "bos_token_id": -1}, "bos_token_id in .* is -1"),
    ],
)
def test_marks_that_are_no_token_are_refused(
    tmp_path: Path, config: dict[str, object], words: str
) -> None:
    PLAIN.write(tmp_path)
    with pytest.raises(WorkerError, match=words):
        read_tokenizer(tmp_path, {"vocab_size": 260, **config})


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"model": {}}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(WorkerError, match=r"tokenizer\.json can't be read"):
        read_tokenizer(tmp_path, {"eos_token_id": 1})
