"""What training needs by itself, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from hansa.planner.flops import bf16_peak, flops_per_token
from hansa.planner.known import must_know
from hansa.planner.shape import Adapters, tiny_llama

SMALL = tiny_llama(
    hidden=8, layers=2, heads=2, intermediate=16, vocabulary=100, positions=64
)
LAYERS = 2 * (4 * 8 * 8 + 3 * 8 * 16)
"""Weights of the linear layers: four projections of 8 x 8, three of 8 x 16."""
HEAD = 8 * 100
ATTENTION = 12 * 2 * 8 * 10
"""For sequences of ten tokens."""


def test_six_operations_for_a_weight_that_is_trained() -> None:
    assert flops_per_token(SMALL, 10) == 6 * (LAYERS + HEAD) + ATTENTION
    # A quarter of the tokens is scored.
    quarter = flops_per_token(SMALL, 10, 0.25)
    assert quarter == 6 * (LAYERS + HEAD / 4) + ATTENTION


def test_four_for_one_that_is_frozen_beneath_adapters() -> None:
    adapted = SMALL.with_adapters(Adapters(rank=2, targets=("q_proj", "v_proj")))
    adapters = 2 * 2 * 2 * (8 + 8)
    expected = 4 * (LAYERS + HEAD) + 6 * adapters + ATTENTION
    assert flops_per_token(adapted, 10) == expected


def test_llama_2_7b_is_six_times_its_parameters_but_for_embedding_and_norms() -> None:
    shape = must_know("llama-2-7b")
    embedding, norms = 32000 * 4096, (2 * 32 + 1) * 4096
    multiplied = 6_738_415_616 - embedding - norms
    attention = 12 * 32 * 4096 * 512
    assert flops_per_token(shape, 512) == 6 * multiplied + attention


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.4),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("AMD Instinct MI250X", 191.5),
        ("Intel(R) Data Center GPU Max 1550", 419.4),
    ],
)
def test_peaks_of_devices_as_torch_calls_them(name: str, peak: float) -> None:
    assert bf16_peak(name) == peak * 1e12


def test_of_a_processor_no_peak_is_claimed() -> None:
    assert bf16_peak("cpu") is None
    assert bf16_peak("") is None
