"""Matvecs by themselves, of any shape: random inputs, and the opcode in plain torch as the truth."""

from __future__ import annotations

import torch

from jitmk.program.configs import Epilogue, MatvecConfig, Prologue
from jitmk.program.program import Variant
from jitmk.reference.ops.matvec import MatvecVectors, matvec
from tests.support.closeness import assert_close
from tests.support.op_runner import Data, OpRunner, Outcome
from tests.support.phases import matvec_arenas, matvec_plan, matvec_program

Expected = dict[str, torch.Tensor]


def run_matvec(runner: OpRunner, variant: Variant, policy: str = "round_robin") -> tuple[Outcome, Expected]:
    """The device's results and the twin's, for random inputs of about unit size."""
    config = variant.config
    assert isinstance(config, MatvecConfig)
    device = runner.device
    random = torch.Generator(device).manual_seed(config.rows * 65537 + config.columns)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device)

    x = normal(config.columns).bfloat16().float()
    weights = (normal(config.rows, config.columns) * config.columns**-0.5).bfloat16()
    plan = matvec_plan(config)
    vectors = {
        name: 0.2 * normal(vector.values) + (0 if name.endswith("bias") else 1) for name, vector in plan.vectors.items()
    }
    arena, constants = matvec_arenas(plan, weights, vectors)
    inputs, residual = {"input": x}, None
    if config.post is not None or config.epilogue is Epilogue.RESIDUAL:
        residual = normal(config.rows if config.post is None else config.columns)
        inputs["residual_in"] = residual
    outcome = runner.run(matvec_program(variant), plan, inputs, Data(arena, constants), policy=policy)
    expected = matvec(
        config,
        range(config.layout.units),
        x[None],
        weights,
        MatvecVectors(**vectors),
        residual=None if residual is None else residual[None],
        sums=torch.float64,
    )
    return outcome, {operand: values[0] for operand, values in expected.items()}


def check_matvec(variant: Variant, outcome: Outcome, expected: Expected) -> None:
    """Compares what `run_matvec` returned."""
    config = variant.config
    assert isinstance(config, MatvecConfig)
    rounded = " of rounded values" if config.prologue is Prologue.LAYER or config.post is not None else ""
    if config.epilogue is Epilogue.LOGITS:
        assert outcome.logits is not None
        assert_close("fp32 sum" + rounded, outcome.logits, expected["output"], variant.name)
        _check_candidates(outcome, outcome.logits)
        return
    added = config.epilogue is Epilogue.RESIDUAL or config.post_sum
    written = {"output": config.output_copies > 0, "residual_out": added}
    assert outcome.outputs.keys() == {operand for operand, there in written.items() if there}
    for operand, values in outcome.outputs.items():
        kind = "bf16 of a sum" + rounded if operand == "output" else "fp32 sum"
        assert_close(kind, values, expected[operand], f"{operand} of {variant.name}")


def _check_candidates(outcome: Outcome, logits: torch.Tensor) -> None:
    """Each instruction's candidate is the best of the logits that it computed itself."""
    assert outcome.candidates is not None
    queues = [assignment for queue in outcome.schedule.queues for assignment in queue]
    for assignment, key, token in zip(queues, *outcome.candidates, strict=True):
        rows = torch.cat([torch.arange(unit * 8, min(len(logits), unit * 8 + 8)) for unit in assignment.units])
        best = logits[rows].max()
        assert key == best and token == rows[logits[rows] == best].min(), assignment
