from __future__ import annotations

import torch

from jitmk.model.rope import rope_table
from jitmk.model.spec import RopeKind
from jitmk.reference.rope_rows import RopeRows
from tests.support.tiny import tiny_spec


def test_rows_are_those_of_the_table() -> None:
    for kind in RopeKind:
        spec = tiny_spec(rope=kind)
        rows = RopeRows(spec)
        for prompt_length in (0, 600):
            cos, sin = rope_table(spec.ropes[0], range(600), prompt_length)
            for position in (0, 255, 256, 599):
                row_cos, row_sin = rows.at(position, prompt_length)
                # torch's power may differ in the last bit with the size of its input: 2^-23 of an angle of up to 599.
                assert torch.allclose(row_cos, cos[position], rtol=0, atol=1e-4)
                assert torch.allclose(row_sin, sin[position], rtol=0, atol=1e-4)
