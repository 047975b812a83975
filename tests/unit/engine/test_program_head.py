"""What a scheduled program tells of its LM head."""

from __future__ import annotations

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.engine.step_programs import Head, kernel_variants, prepare
from jitmk.program.lowering import lower
from jitmk.program.packing import ceil_div
from jitmk.program.weights import plan_weights
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("vocab_size", [5, 101, 8 * 132, 8 * 132 + 1, 20011])
def test_the_head_is_known_by_its_rows_and_instructions(vocab_size: int) -> None:
    spec, arch = tiny_spec(vocab_size=vocab_size), GpuArch.parse("sm_90a")
    for splits in (1, 3):
        program = prepare(lower(spec, splits), plan_weights(spec), kernel_variants(spec), arch, torch.device("cpu"))
        assert program.head == Head(vocab_size, min(arch.sm_count, ceil_div(vocab_size, 8)))
