"""A Llama decoder: the model behind `source: tiny-llama` and `source: smollm2`.

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

Mask = Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaShape:
    """Sizes of the decoder, under the names of a Hugging Face config.

    Attributes:
        num_key_value_heads: Heads of keys and values, each shared by several of the
            queries'; None: as many as those.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    rms_norm_eps: float = _EPS
    rope_theta: float = _THETA

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def shared_heads(self) -> int:
        """Heads of keys and of values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def deviation(self) -> float:
        """Standard deviation of the initial weights.

        "Small init", sqrt(2 / (5 width)): the usual 0.02 is made for wide models and
        starts a narrow one so near to zero that it learns late to heed its prompt.
        """
        return math.sqrt(2 / (5 * self.hidden_size))

    def to_config(self, *, bos: int, eos: int) -> dict[str, Any]:
        """Return a config that transformers reads, too."""
        sizes = asdict(self)
        theta = sizes.pop("rope_theta")
        return sizes | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_key_value_heads": self.shared_heads,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
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
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=int(config["num_attention_heads"]),
                max_position_embeddings=int(config["max_position_embeddings"]),
                num_key_value_heads=int(config["num_key_value_heads"]),
                rms_norm_eps=float(config["rms_norm_eps"]),
                rope_theta=float(config["rope_parameters"]["rope_theta"]),
            )
        except KeyError as error:
            raise WorkerError(f"The model's config.json lacks {error}.") from error


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width, shared = shape.hidden_size, shape.shared_heads * shape.head
        self.head = shape.head
        self.grouped = shape.shared_heads != shape.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        split = (*x.shape[:2], -1, self.head)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.grouped
        )
        result: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(x.shape))
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
        width, eps = shape.hidden_size, shape.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class _Decoder(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(
            _Layer(shape) for _ in range(shape.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        result: Tensor = self.norm(x)
        return result


class Llama(nn.Module):
    """The decoder with its head, which shares the embedding's weights.

    Args:
        shape: Sizes.
        seed: Seed of the initial weights, which are normal; None: they are not set.
    """

    def __init__(self, shape: LlamaShape, seed: int | None) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Decoder(shape)
        if seed is not None:
            self._initialise(seed)

    def forward(
        self,
        ids: Tensor,
        wanted: Tensor,
        positions: Tensor | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Return the scores of the next token at the wanted positions.

        Args:
            ids: Token ids, (rows, length); padding on the right.
            wanted: Boolean, (rows, length).
            positions: Place of each token in its own example, (rows, length); None:
                each row is one example.
            mask: Which tokens each one attends to, booleans (rows, 1, length,
                length); None: itself and all before it.

        Returns:
            Scores, (number of wanted positions, vocabulary).
        """
        weight = self.model.embed_tokens.weight
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        cos, sin = self.rotations(positions, weight)
        hidden: Tensor = self.model(ids, cos, sin, mask)
        # Asked for again: DeepSpeed takes weights away once their layer is done.
        return functional.linear(hidden[wanted], self.model.embed_tokens.weight)

    def rotations(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions, (rows, 1, length, width of a head)."""
        width = self.shape.head
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=like.device)
        turns = self.shape.rope_theta ** (-steps / width)
        angles = (positions[:, None, :, None].float() * turns).repeat(1, 1, 1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.shape.deviation, generator=generator)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of each head by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
