"""A schedule that can never end: the kernel gives up, says who waited for what, and the next launch is sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from jitmk.cuda.device import Device
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.engine.step_programs import DeviceProgram
from jitmk.errors import KernelTimeoutError
from jitmk.program.isa import END_VARIANT, HEADER
from jitmk.schedule.encode import decode
from jitmk.settings import Settings
from tests.gpu.live_models import LiveModels, open_backend

pytestmark = pytest.mark.gpu

DEADLINE_MS = 200
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
STEPS = 24


@pytest.fixture
def backend(models: LiveModels, gpu: Device, gpu_settings: Settings) -> Iterator[MegakernelBackend]:
    models["gqa-64"]  # compiles
    live = open_backend("gqa-64", gpu, replace(gpu_settings, wait_deadline_ms=DEADLINE_MS))
    yield live
    live.close()


def _tokens(backend: MegakernelBackend) -> list[int]:
    backend.prefill(PROMPT[:-1])
    return list(backend.decode_stream(PROMPT[-1], len(PROMPT) - 1, STEPS, DeviceSampling()))


def drop_instruction(program: DeviceProgram, phase_name: str) -> int:
    """Takes one instruction of a phase out of the queue that lies on the device; returns the SM that lost it."""
    phase = next(phase.index for phase in program.program.phases if phase.name == phase_name)
    queues = program.queues.cpu()
    is_it = (queues[:, :, HEADER.index("phase")] == phase) & (queues[:, :, 0] != END_VARIANT)
    sm, place = (int(i) for i in is_it.nonzero()[-1])
    queues[sm, place:-1] = queues[sm, place + 1 :].clone()
    program.queues.copy_(queues)
    return sm


def _later_phases(program: DeviceProgram, phase_name: str) -> set[str]:
    """Opcode and name of every phase behind one, as errors show them."""
    phases = program.program.phases
    dropped = next(phase.index for phase in phases if phase.name == phase_name)
    return {f"{phase.variant.opcode.value} of {phase.name}" for phase in phases[dropped + 1 :]}


@pytest.mark.parametrize("phase_name", ["embed", "layers.0.qkv", "layers.1.gate_up", "lm_head"])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_missing_instruction_is_reported(phase_name: str, steps: int, backend: MegakernelBackend) -> None:
    expected = _tokens(backend)
    program = backend._programs.for_splits(1)
    sound = program.queues.clone()
    drop_instruction(program, phase_name)
    backend.prefill(PROMPT[:-1])
    with pytest.raises(KernelTimeoutError) as caught:
        list(backend.decode_stream(PROMPT[-1], len(PROMPT) - 1, steps, DeviceSampling()))

    error = caught.value
    assert error.sm is not None and 0 <= error.sm < program.queues.shape[0]
    assert error.role is not None and re.fullmatch(r"consumer warp [0-7]|loader|storer", error.role)
    assert error.opcode in _later_phases(program, phase_name) | {"between two steps"}
    assert error.operand is not None and re.fullmatch(r"[a-z]+( [a-z]+)* \d+", error.operand)
    assert error.deadline_ms == DEADLINE_MS
    if error.opcode != "between two steps":
        queue = decode(program.queues[error.sm : error.sm + 1].cpu(), program.variants)[0]
        assert error.instruction is not None
        instruction = queue[error.instruction]
        named = program.program.phases[instruction.phase]
        assert error.opcode == f"{instruction.opcode.value} of {named.name}"
    for part in (f"SM {error.sm}", error.role, f"instruction {error.instruction}", error.opcode, error.operand):
        assert part in str(error)

    program.queues.copy_(sound)
    assert _tokens(backend) == expected, "the same process goes on as if nothing had happened"


def test_what_hangs_is_what_lacks_its_input(backend: MegakernelBackend) -> None:
    """With a chain of three phases behind the gap, nobody gets past the first of them."""
    program = backend._programs.for_splits(1)
    sound = program.queues.clone()
    drop_instruction(program, "layers.1.down")
    with pytest.raises(KernelTimeoutError) as caught:
        backend.step_logits(PROMPT[0], 0)
    assert caught.value.opcode in ("matvec of lm_head", "sample of sample")
    assert caught.value.operand is not None and caught.value.operand.startswith(("input ", "candidate "))
    program.queues.copy_(sound)
    assert bool(torch.isfinite(backend.step_logits(PROMPT[0], 0)).all())


def test_a_second_hang_is_reported_like_the_first(backend: MegakernelBackend) -> None:
    """The report is cleared, and the epochs start over."""
    program = backend._programs.for_splits(1)
    sound = program.queues.clone()
    drop_instruction(program, "layers.0.o_proj")
    for _ in range(2):
        with pytest.raises(KernelTimeoutError):
            backend.step_logits(PROMPT[0], 0)
    program.queues.copy_(sound)
    assert bool(torch.isfinite(backend.step_logits(PROMPT[0], 0)).all())
