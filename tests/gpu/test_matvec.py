"""MATVEC by itself: every epilogue, with and without norm and bias, in odd shapes."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.program import Epilogue, MatvecConfig, Variant
from jitmk.reference.ops.matvec import matvec
from jitmk.schedule.policies import POLICIES
from tests.gpu.conftest import OpRunners
from tests.gpu.op_kernels import MATVEC_KINDS, MATVEC_SHAPES
from tests.gpu.op_runner import Data, OpRunner, Outcome
from tests.support.closeness import assert_close
from tests.support.phases import matvec_arenas, matvec_plan, matvec_program

pytestmark = pytest.mark.gpu


def _run(runner: OpRunner, variant: Variant, policy: str = "round_robin") -> tuple[Outcome, dict[str, torch.Tensor]]:
    """The device's results and the twin's, for random inputs of about unit size."""
    config = variant.config
    assert isinstance(config, MatvecConfig)
    device = runner.device
    random = torch.Generator(device).manual_seed(config.rows * 65537 + config.columns)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device)

    x = normal(config.columns).bfloat16().float()
    weights = (normal(config.rows, config.columns) * config.columns**-0.5).bfloat16()
    norm, bias, residual = 1 + 0.2 * normal(config.columns), normal(config.rows), normal(config.rows)
    plan = matvec_plan(config)
    arena, constants = matvec_arenas(plan, weights, norm, bias)
    inputs = {"input": x}
    if config.epilogue is Epilogue.RESIDUAL:
        inputs["residual_in"] = residual
    outcome = runner.run(matvec_program(variant), plan, inputs, Data(arena, constants), policy=policy)
    expected = matvec(
        config,
        range(config.layout.units),
        x[None],
        weights,
        norm=norm if config.norm else None,
        bias=bias if config.bias else None,
        residual=residual[None],
        sums=torch.float64,
    )
    return outcome, {operand: values[0] for operand, values in expected.items()}


def _check(variant: Variant, outcome: Outcome, expected: dict[str, torch.Tensor]) -> None:
    config = variant.config
    assert isinstance(config, MatvecConfig)
    if config.epilogue is Epilogue.LOGITS:
        assert outcome.logits is not None
        assert_close("fp32 sum", outcome.logits, expected["output"], variant.name)
        _check_candidates(outcome, outcome.logits)
        return
    assert outcome.outputs.keys() == expected.keys()
    assert_close("bf16 of a sum", outcome.outputs["output"], expected["output"], variant.name)
    if config.epilogue is Epilogue.RESIDUAL:
        assert_close("fp32 sum", outcome.outputs["residual_out"], expected["residual_out"], variant.name)


def _check_candidates(outcome: Outcome, logits: torch.Tensor) -> None:
    """Each instruction's candidate is the best of the logits that it computed itself."""
    assert outcome.candidates is not None
    queues = [assignment for queue in outcome.schedule.queues for assignment in queue]
    for assignment, key, token in zip(queues, *outcome.candidates, strict=True):
        rows = torch.cat([torch.arange(unit * 8, min(len(logits), unit * 8 + 8)) for unit in assignment.units])
        best = logits[rows].max()
        assert key == best and token == rows[logits[rows] == best].min(), assignment


@pytest.mark.parametrize("variant", MATVEC_KINDS, ids=lambda variant: variant.name)
def test_every_prologue_and_epilogue(variant: Variant, op_runners: OpRunners) -> None:
    _check(variant, *_run(op_runners["matvec-kinds"], variant))


@pytest.mark.parametrize("variant", MATVEC_SHAPES, ids=lambda variant: variant.name)
def test_shapes(variant: Variant, op_runners: OpRunners) -> None:
    _check(variant, *_run(op_runners["matvec-shapes"], variant))


@pytest.mark.parametrize("policy", POLICIES)
def test_who_computes_a_row_does_not_matter(policy: str, op_runners: OpRunners) -> None:
    """Every bit is the same, whichever SM computed it and in whatever company."""
    for variant in (MATVEC_SHAPES[6], MATVEC_SHAPES[7]):
        runner = op_runners["matvec-shapes"]
        usual, _ = _run(runner, variant)
        other, _ = _run(runner, variant, policy)
        assert usual.outputs.keys() == other.outputs.keys()
        for operand, values in usual.outputs.items():
            assert torch.equal(values, other.outputs[operand]), (variant.name, operand)
