"""A small Llama decoder: the model behind `source: tiny-llama`.

Names, shapes and arithmetic are those of transformers' ``LlamaForCausalLM`` (tests
hold the two against each other), so a trained version opens there. Importing
transformers costs seconds of processor time, which every short job would pay; this
file costs nothing beyond torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.core.errors import WorkerError

_EPS = 1e-5
_THETA = 10000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaShape:
    """Sizes of the decoder, under the names of a Hugging Face config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int

    @property
    def deviation(self) -> float:
        """Standard deviation of the initial weights.

        "Small init", sqrt(2 / (5 width)): the usual 0.02 is made for wide models and
        starts a narrow one so near to zero that it learns late to heed its prompt.
        """
        return math.sqrt(2 / (5 * self.hidden_size))

    def to_config(self, *, bos: int, eos: int) -> dict[str, Any]:
        """Return a config that transformers reads, too."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_key_value_heads": self.num_attention_heads,
            "hidden_act": "silu",
            "rms_norm_eps": _EPS,
            "rope_parameters": {"rope_type": "default", "rope_theta": _THETA},
            "tie_word_embeddings": True,
            "initializer_range": self.deviation,
            "bos_token_id": bos,
            "eos_token_id": eos,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LlamaShape:
        """Read the sizes from a config that `to_config` made.

        Raises:
            WorkerError: A size is missing.
        """
        try:
            return cls(**{name: int(config[name]) for name in cls.__slots__})
        except KeyError as error:
            raise WorkerError(f"The model's config.json lacks {error}.") from error


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.heads = shape.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q = _rotate(self.q_proj(x).view(split).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(split).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged = mixed.transpose(1, 2).reshape(batch, length, width)
        result: Tensor = self.o_proj(merged)
        return result


class _FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width, inner = shape.hidden_size, shape.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        result: Tensor = self.down_proj(gated)
        return result


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=_EPS)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class _Decoder(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(
            _Layer(shape) for _ in range(shape.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(shape.hidden_size, eps=_EPS)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        result: Tensor = self.norm(x)
        return result


class Llama(nn.Module):
    """The decoder with its head, which shares the embedding's weights.

    Args:
        shape: Sizes.
        seed: Seed of the initial weights, which are normal.
    """

    def __init__(self, shape: LlamaShape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Decoder(shape)
        self._initialise(seed)

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Return the scores of the next token at the wanted positions.

        Args:
            ids: Token ids, (examples, length); padding on the right.
            wanted: Boolean, (examples, length).

        Returns:
            Scores, (number of wanted positions, vocabulary).
        """
        weight = self.model.embed_tokens.weight
        cos, sin = self._rotations(ids.shape[1], weight)
        hidden: Tensor = self.model(ids, cos, sin)
        return functional.linear(hidden[wanted], weight)

    def _rotations(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of all positions, (length, width of a head)."""
        width = self.shape.hidden_size // self.shape.num_attention_heads
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=like.device)
        places = torch.arange(length, dtype=torch.float32, device=like.device)
        angles = torch.outer(places, _THETA ** (-steps / width)).repeat(1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.shape.deviation, generator=generator)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of each head by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
