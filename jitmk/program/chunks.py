"""How large a model's chunks are: a slot of the ring holds one, whatever its size, so they should be of one size."""

from __future__ import annotations

from fractions import Fraction

from jitmk.model.spec import ModelSpec
from jitmk.program.kv_layout import KvLayout
from jitmk.program.packing import BLOCK_BYTES, CHUNK_LIMIT, CONSUMER_WARPS, MatrixLayout

LIMITS = (CHUNK_LIMIT, 3, 5)
"""Values of `chunk_limit` in the order in which they are preferred: 16, 12 and 20 KB."""
MIN_GAIN = Fraction(1, 10)
"""How much fuller the ring must be for another than the first of them."""


def chunk_limit(spec: ModelSpec) -> int:
    """Into how many blocks of a warp's slice, at most, a model's units are cut.

    Rows of 1536 columns are 6 blocks. In chunks of 4 at most they are two of 3, and a quarter of each slot of the ring
    stays empty; in slots of 3 nothing does. What counts is the part of the ring that a layer's weights fill.
    """
    tile = KvLayout(spec.head_dim).tile_bytes
    allowed = [limit for limit in LIMITS if chunk_bytes(limit) >= tile] or [CHUNK_LIMIT]
    best = max(allowed, key=lambda limit: _filled(spec, limit))  # the first of equals
    return best if _filled(spec, best) >= (1 + MIN_GAIN) * _filled(spec, allowed[0]) else allowed[0]


def chunk_bytes(limit: int) -> int:
    """Bytes of a slot of the ring."""
    return limit * CONSUMER_WARPS * BLOCK_BYTES


def _filled(spec: ModelSpec, limit: int) -> Fraction:
    """The part of slots that the weights of a layer fill."""
    shapes = (
        (spec.qkv_rows, spec.hidden_size),
        (spec.hidden_size, spec.attention_size),
        (spec.gate_up_rows, spec.hidden_size),
        (spec.hidden_size, spec.intermediate_size),
    )
    layouts = [MatrixLayout(*shape, limit) for shape in shapes]
    blocks = sum(layout.units * layout.blocks for layout in layouts)
    return Fraction(blocks, limit * sum(layout.units * layout.chunks for layout in layouts))
