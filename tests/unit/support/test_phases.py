"""Single phases are what lowering makes, and can be scheduled and encoded by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jitmk.program.configs import Epilogue, MatvecConfig, Prologue
from jitmk.program.isa import NO_OPERAND, Opcode
from jitmk.program.lowering import lower
from jitmk.program.packing import unpack
from jitmk.program.program import Phase, Program
from jitmk.program.weights import plan_weights
from jitmk.schedule.build import make_schedule
from jitmk.schedule.encode import decode, encode
from jitmk.schedule.verify import verify_program
from tests.support.features import feature_spec
from tests.support.phases import (
    in_buffer_order,
    inputs_of,
    isolate,
    matvec_arenas,
    matvec_plan,
    matvec_program,
    matvec_variant,
    outputs_of,
)
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("splits", [1, 3])
def test_attention_by_itself(splits: int) -> None:
    spec = tiny_spec()
    program = isolate(lower(spec, splits), "layers.1.attention")
    (phase,) = program.phases
    assert [buffer.name for buffer in inputs_of(program)] == ["layers.1.qkv.output"]
    written = ["output"] if splits == 1 else ["output", "lse_out"]
    assert [buffer.name for buffer in outputs_of(program)] == [phase.buffers[operand].name for operand in written]
    queues = decode(encode(make_schedule(program, 5), plan_weights(spec), program.variants), program.variants)
    units = [unit for queue in queues for instruction in queue for unit in instruction.units]
    assert sorted(units) == list(range(phase.units))
    assert all(instruction.operands["layer"] == 1 for queue in queues for instruction in queue)


def test_a_chain_reads_only_what_it_does_not_write() -> None:
    program = isolate(lower(tiny_spec(), 5), "layers.0.attention", "layers.0.attention_reduce")
    assert [buffer.name for buffer in inputs_of(program)] == ["layers.0.qkv.output"]
    assert [phase.index for phase in program.phases] == [0, 1]


def test_an_unknown_name_is_found_out() -> None:
    with pytest.raises(AssertionError):
        isolate(lower(tiny_spec()), "layers.7.qkv")


def _matvec(phase: Phase) -> MatvecConfig:
    assert isinstance(phase.variant.config, MatvecConfig)
    return phase.variant.config


@pytest.mark.parametrize("feature", ["plain", "learned-positions", "sandwich", "layer-post-norm"])
@pytest.mark.parametrize("name", ["qkv", "o_proj", "gate_up", "up", "down", "lm_head"])
def test_matvecs_are_those_of_lowering(name: str, feature: str) -> None:
    """Copies and kinds of buffers follow the config as they do in real programs."""
    for phase in lower(feature_spec(feature)).phases:
        if phase.variant.opcode is not Opcode.MATVEC or not phase.name.endswith(name):
            continue
        variant = replace(matvec_variant(16, 16, Epilogue.STORE), config=_matvec(phase))
        made = matvec_program(variant).phases[0]
        assert made.units == phase.units and made.buffers.keys() == phase.buffers.keys()
        for operand, buffer in phase.buffers.items():
            other = made.buffers[operand]
            assert (other.kind, other.values, other.copies) == (buffer.kind, buffer.values, buffer.copies), operand
        assert made.vectors.keys() == phase.vectors.keys() and made.matrices.keys() == phase.matrices.keys()


@pytest.mark.parametrize("epilogue", list(Epilogue))
def test_matvec_operands_point_at_the_data(epilogue: Epilogue) -> None:
    variant = matvec_variant(32, 48, epilogue, prologue=Prologue.RMS, bias=True)
    program = matvec_program(variant)
    plan = matvec_plan(_matvec(program.phases[0]))
    weights = torch.randn(32, 48).bfloat16()
    vectors = {"norm": torch.randn(48), "bias": torch.randn(32)}
    arena, constants = matvec_arenas(plan, weights, vectors)
    queues = decode(encode(make_schedule(program, 3), plan, program.variants), program.variants)
    instructions = [instruction for queue in queues for instruction in queue]
    assert {i.opcode for i in instructions} == {Opcode.MATVEC} and len(instructions) == 3
    operands = instructions[0].operands
    first = operands["weights"] * 256 // 2
    assert torch.equal(unpack(arena[first : first + plan.matrices["w"].nbytes // 2], 32, 48), weights)
    for name, values in vectors.items():
        assert torch.equal(constants[operands[name] : operands[name] + len(values)], values)
    assert (operands["residual_in"] != NO_OPERAND) == (epilogue is Epilogue.RESIDUAL)
    assert operands["post_norm"] == NO_OPERAND
    assert int(torch.isnan(arena).sum()) == arena.numel() - plan.matrices["w"].nbytes // 2


def test_values_of_units_are_put_in_order() -> None:
    program = isolate(lower(tiny_spec(num_heads=6, num_kv_heads=2), 3), "layers.0.attention")
    (phase,) = program.phases
    name = phase.buffers["output"].name
    owned = [torch.arange(s.begin, s.end) for u in range(phase.units) for s in phase.writes(u) if s.buffer == name]
    values = torch.cat(owned).float()
    assert not torch.equal(values, values.sort().values), "the units own the values out of order"
    assert torch.equal(in_buffer_order(phase, values), torch.arange(len(values)).float())


def test_the_whole_program_is_still_sound() -> None:
    """`isolate` shares what it does not copy: the program that it took from is as it was."""
    program: Program = lower(tiny_spec())
    isolate(program, "embed")
    verify_program(program)
