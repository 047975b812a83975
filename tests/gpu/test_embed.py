"""EMBED by itself: from a row-major table and from the packed LM head, with a scale and with learned positions."""

from __future__ import annotations

import pytest

from jitmk.model.spec import ModelSpec
from tests.gpu.conftest import OpRunners
from tests.support.op_kernels import EMBED_SCALED, EMBED_SPECS
from tests.support.single_phases import ModelPhases

pytestmark = pytest.mark.gpu


def _name(spec: ModelSpec) -> str:
    parts = {"tied": spec.tied_embeddings, "scaled": spec.embedding_scale != 1, "positions": spec.learned_positions}
    return "-".join([str(spec.hidden_size), *(part for part, there in parts.items() if there)])


@pytest.mark.parametrize("spec", [*EMBED_SPECS, *EMBED_SCALED], ids=_name)
def test_rows_of_the_table(spec: ModelSpec, op_runners: OpRunners) -> None:
    runner = op_runners["embed-sample"]
    model = ModelPhases(spec, spec.max_positions, runner.device)
    for token in (0, 1, 7, 8, 50, spec.vocab_size - 1):
        for position in (0, 1, spec.max_positions - 1):
            model.check(runner, ("embed",), position, token=token)
