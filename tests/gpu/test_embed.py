"""EMBED by itself: from a row-major table, and from the packed LM head."""

from __future__ import annotations

import pytest

from jitmk.engine.arena import load_weights
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec, Role, WeightKey
from jitmk.program.lowering import lower
from jitmk.program.program import EmbedConfig
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.embed import embed
from tests.gpu.conftest import OpRunners
from tests.support.closeness import assert_close
from tests.support.op_kernels import EMBED_SPECS
from tests.support.op_runner import Data, Step
from tests.support.phases import isolate

pytestmark = pytest.mark.gpu


def _name(spec: ModelSpec) -> str:
    return f"{spec.hidden_size}-{'tied' if spec.tied_embeddings else 'untied'}"


@pytest.mark.parametrize("spec", EMBED_SPECS, ids=_name)
def test_rows_of_the_table(spec: ModelSpec, op_runners: OpRunners) -> None:
    runner = op_runners["embed-sample"]
    plan, source = plan_weights(spec), RandomCheckpoint(spec, 3)
    arena = load_weights(plan, source, runner.device, progress=False)
    table = source.tensor(WeightKey(Role.EMBEDDING))
    program = isolate(lower(spec), "embed")
    (phase,) = program.phases
    assert isinstance(phase.variant.config, EmbedConfig)
    for token in (0, 1, 7, 8, 50, spec.vocab_size - 1):
        outcome = runner.run(program, plan, {}, Data(arena.weights, arena.constants), Step(token))
        expected = embed(phase.variant.config, range(phase.units), table[token : token + 1])
        for operand, values in expected.items():
            assert_close("moved", outcome.outputs[operand], values[0], (token, operand))
