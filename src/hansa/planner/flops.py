"""How much arithmetic training needs by itself, and how much a GPU could do.

Counted are the matrix products of the model: a multiplication and an addition for
each weight and token, forwards once, backwards once for the gradient of the
activations and once for that of the weights; so six for a weight that is trained and
four for one that is frozen beneath adapters (Kaplan et al., arXiv 2001.08361, section
2.1). Attention adds ``12 layers width length`` for each token, where the width is that
of all heads together (Chowdhery et al., arXiv 2204.02311, appendix B). What is computed
twice to save memory is work of the method, not of the model, and does not count; nor
does padding.
"""

from __future__ import annotations

from typing import Final

from hansa.planner.shape import EMBEDDINGS, Matrix, ModelShape

PEAKS: Final[tuple[tuple[str, float], ...]] = (
    ("H200", 989.4e12),
    ("GH200", 989.4e12),
    ("H100 NVL", 835.5e12),
    ("H100 PCIe", 756.4e12),
    ("H100", 989.4e12),
    ("A100", 312.0e12),
    ("MI300X", 1307.4e12),
    ("MI250X", 191.5e12),
    ("Max 1550", 419.4e12),
)
"""Dense bfloat16 operations in a second, by a part of the device's name.

The makers' data sheets, without sparsity: NVIDIA A100, H100 (SXM, PCIe, NVL), H200; AMD
MI300X and MI250X, of which torch shows each of the two dies (GCDs) as a device: half of
383; Intel Max 1550, of whose two tiles each is a device: 64 cores of 4096 operations a
clock at 1.6 GHz.
"""


def bf16_peak(device_name: str) -> float | None:
    """Return the operations in a second that a device can do; None if not known."""
    name = device_name.lower()
    return next((peak for part, peak in PEAKS if part.lower() in name), None)


def flops_per_token(shape: ModelShape, length: float, answers: float = 1.0) -> float:
    """Return the operations that training needs for one token.

    Args:
        shape: The model.
        length: Tokens of an example, the mean.
        answers: Share of the tokens whose successor is scored: only for those the
            output layer is multiplied with.
    """
    layers = shape.layers * _products(shape.layer)
    head = answers * _head(shape)
    attention = 12.0 * shape.layers * shape.heads * shape.head_width * length
    if shape.adapters is None:
        return 6.0 * (layers + head) + attention
    return 4.0 * (layers + head) + 6.0 * shape.adapter_parameters + attention


def _products(matrices: tuple[Matrix, ...]) -> float:
    return float(sum(one.inputs * one.outputs for one in matrices))


def _head(shape: ModelShape) -> float:
    if shape.tied:
        return float(shape.hidden * shape.vocabulary)
    return _products(tuple(one for one in shape.outer if one.name not in EMBEDDINGS))
