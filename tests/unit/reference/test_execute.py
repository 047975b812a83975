from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.configs import NoOpConfig
from jitmk.program.isa import Opcode
from jitmk.program.program import Phase, Variant
from jitmk.reference import ops
from jitmk.reference.execute import Environment, Sampling, StepInput, execute
from jitmk.reference.weights import ReferenceWeights
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("opcode", [opcode for opcode in Opcode if opcode is not Opcode.NO_OP])
def test_every_opcode_has_a_twin_and_tests_of_its_name(opcode: Opcode) -> None:
    assert (Path(ops.__path__[0]) / f"{opcode.value}.py").is_file()
    assert (Path(__file__).parent / "ops" / f"test_{opcode.value}.py").is_file()


def test_a_no_op_does_nothing() -> None:
    spec = tiny_spec()

    def read(*place: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError(place)

    phase = Phase(0, "nothing", Variant("no_op", Opcode.NO_OP, NoOpConfig()), 3)
    step = StepInput([1], [0], torch.empty(1, 0), torch.empty(1, 0), [Sampling()])
    environment = Environment(ReferenceWeights(spec, RandomCheckpoint(spec)), read)
    assert execute(phase, range(3), {}, step, environment) == {}
    assert phase.reads(2) == phase.writes(2) == ()
