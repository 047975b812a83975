from __future__ import annotations

import pytest

from benchmarks.shapes import model_spec
from jitmk.program.chunks import chunk_bytes, chunk_limit
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("llama-3.2-1b", 4),  # whole chunks of 4 blocks
        ("llama-3.1-8b", 4),
        ("qwen2.5-1.5b", 3),  # rows of 6 blocks
        ("qwen3-4b", 5),  # rows of 10
        ("qwen2.5-7b", 4),  # 5 would fill the ring better, but not by a tenth
        ("gemma-2-2b", 4),  # 3 would, but a tile of the cache is 16 KB
    ],
)
def test_slots_are_filled(name: str, limit: int) -> None:
    assert chunk_limit(model_spec(name, 256)) == limit


def test_a_tile_fits_a_slot() -> None:
    narrow, wide = tiny_spec(head_dim=64), tiny_spec(head_dim=256)
    assert chunk_limit(narrow) == 3, "rows of one block, of which more fit"
    assert chunk_bytes(chunk_limit(wide)) == 16384


def test_program_and_weights_agree() -> None:
    spec = model_spec("qwen3-4b", 256)
    plan = plan_weights(spec)
    for phase in lower(spec).phases:
        config = phase.variant.config
        for name in phase.matrices.values():
            matrix = plan.matrices[name]
            assert not matrix.packed or getattr(config, "chunk_limit", None) == matrix.layout.chunk_limit == 5
