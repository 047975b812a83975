from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jitmk.errors import ScheduleError
from jitmk.model.spec import ModelSpec
from jitmk.program.isa import END_VARIANT, NO_OPERAND, OPERANDS, Opcode
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.schedule.build import make_schedule
from jitmk.schedule.encode import decode, encode
from jitmk.schedule.policies import POLICIES
from jitmk.schedule.schedule import Schedule
from tests.support.features import FEATURES, feature_spec
from tests.support.programs import phase_index, with_phase
from tests.support.tiny import tiny_spec

SPECS = {
    "plain": tiny_spec(),
    "tied": tiny_spec(tied_embeddings=True, qkv_bias=True, o_bias=True, mlp_bias=True),
}
ALL_SPECS = SPECS | {name: feature_spec(name) for name in FEATURES}


def scheduled(spec: ModelSpec, policy: str = "round_robin", sms: int = 5, splits: int = 1) -> Schedule:
    return make_schedule(lower(spec, splits), sms, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("splits", [1, 3])
def test_decode_inverts_encode(policy: str, name: str, splits: int) -> None:
    schedule = scheduled(SPECS[name], policy, splits=splits)
    program, plan = schedule.program, plan_weights(SPECS[name])
    # A kernel may hold more variants than one program needs, in any order.
    variants = tuple({variant: None for part in (2, 1) for variant in reversed(lower(SPECS[name], part).variants)})
    encoded = encode(schedule, plan, variants)
    queues = decode(encoded, variants)
    assert [[(i.phase, i.unit_begin, i.unit_count, i.unit_stride) for i in queue] for queue in queues] == [
        [(a.phase, a.unit_begin, a.unit_count, a.unit_stride) for a in queue] for queue in schedule.queues
    ]
    for sm, queue in enumerate(queues):
        for place, instruction in enumerate(queue):
            assert instruction.encode() == encoded[sm, place].tolist()
            assert variants[instruction.variant] == program.phases[instruction.phase].variant


def test_every_queue_ends() -> None:
    schedule = scheduled(SPECS["plain"], sms=200)
    encoded = encode(schedule, plan_weights(SPECS["plain"]), schedule.program.variants)
    assert encoded.dtype is torch.int32 and encoded.is_contiguous()
    for sm, queue in enumerate(schedule.queues):
        rest = encoded[sm, len(queue) :]
        assert len(rest) >= 1
        assert (rest[:, 0] == END_VARIANT).all() and (rest[:, 1:] == 0).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ALL_SPECS)
def test_operands_say_where_things_lie(name: str, fused: bool) -> None:
    spec = ALL_SPECS[name]
    schedule, plan = make_schedule(lower(spec, 3, fused=fused), 5), plan_weights(spec)
    for queue in decode(encode(schedule, plan, schedule.program.variants), schedule.program.variants):
        for instruction in queue:
            phase, operands = schedule.program.phases[instruction.phase], dict(instruction.operands)
            for operand, buffer in phase.buffers.items():
                assert operands.pop(operand) == buffer.offset
            for operand, matrix in phase.matrices.items():
                assert operands.pop(operand) == plan.matrices[matrix].offset // 256
            for operand, vector in phase.vectors.items():
                assert operands.pop(operand) == plan.vectors[vector].offset
            for operand, number in phase.numbers.items():
                assert operands.pop(operand) == number
            if "splits" in operands:
                merges = phase.variant.opcode is not Opcode.MATVEC or "lse" in phase.buffers
                assert operands.pop("splits") == (3 if merges else 1)
            if "layer" in operands:
                assert operands.pop("layer") == phase.layer
            for operand in ("candidate", "candidates"):
                if phase.name in ("lm_head", "sample"):
                    operands.pop(operand, None)
            assert set(operands.values()) <= {NO_OPERAND}, phase.name


def test_candidates_are_numbered() -> None:
    schedule = scheduled(SPECS["plain"], sms=4)
    program = schedule.program
    queues = decode(encode(schedule, plan_weights(SPECS["plain"]), program.variants), program.variants)
    head, sample = phase_index(program, "lm_head"), phase_index(program, "sample")
    numbers = [i.operands["candidate"] for queue in queues for i in queue if i.phase == head]
    assert sorted(numbers) == list(range(4))
    assert [i.operands["candidates"] for queue in queues for i in queue if i.phase == sample] == [4]


def test_operands_of_every_opcode_are_known() -> None:
    """`encode` fills every operand that isa.py names; a new one must be added to it."""
    known = {"table", "positions", "weights", "layer", "splits", "candidate", "candidates", "window", "rope", "first"}
    known |= {"norm", "norm_bias", "post_norm", "post_norm_bias", "bias", "q_norm", "k_norm"}
    known |= {"input", "value_input", "other", "output", "residual_in", "residual_out", "appended", "lse", "lse_out"}
    assert {name for names in OPERANDS.values() for name in names} == known


def test_what_does_not_fit_is_refused() -> None:
    spec = SPECS["plain"]
    schedule, plan = scheduled(spec), plan_weights(spec)
    program = schedule.program
    with pytest.raises(ScheduleError, match="phase 'embed' needs the variant 'embed', which the kernel lacks"):
        encode(schedule, plan, program.variants[1:])
    spoiled = with_phase(program, 1, replace(program.phases[1], matrices={"weights": "layers.9.qkv"}))
    with pytest.raises(ScheduleError, match=r"needs the matrix 'layers\.9\.qkv'"):
        encode(replace(schedule, program=spoiled), plan, program.variants)
    far = replace(program.phases[1].buffers["output"], offset=2**31)
    moved = replace(program.phases[1], buffers={**program.phases[1].buffers, "output": far})
    with pytest.raises(ScheduleError, match="phase 1 is 2147483648, which does not fit an int32"):
        encode(replace(schedule, program=with_phase(program, 1, moved)), plan, program.variants)


def test_decode_refuses_what_is_no_queue() -> None:
    schedule = scheduled(SPECS["plain"])
    encoded = encode(schedule, plan_weights(SPECS["plain"]), schedule.program.variants)
    with pytest.raises(ScheduleError, match="no end-of-queue instruction"):
        decode(encoded[:, :2], schedule.program.variants)
    encoded[1, 0, 0] = 77
    with pytest.raises(ScheduleError, match="SM 1, instruction 0: there is no variant 77"):
        decode(encoded, schedule.program.variants)
