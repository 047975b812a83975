"""LM heads by themselves, with the choice of a token behind them, wherever an `OpRunner` runs."""

from __future__ import annotations

import torch

from jitmk.engine.philox import gumbel
from jitmk.engine.sampling import leave
from jitmk.program.lowering import lower
from jitmk.program.packing import pack
from jitmk.program.weights import plan_weights
from tests.support.op_kernels import LARGE_SAMPLE_SPEC, SAMPLE_SPEC
from tests.support.op_runner import Data, OpRunner, Outcome, Step
from tests.support.phases import isolate


def run_head(runner: OpRunner, rows: torch.Tensor, x: torch.Tensor, step: Step, policy: str = "round_robin") -> Outcome:
    """LM head and SAMPLE over a table, bf16 [vocab_size, hidden], whose norm's weight is 1."""
    spec = SAMPLE_SPEC if len(rows) == SAMPLE_SPEC.vocab_size else LARGE_SAMPLE_SPEC
    plan = plan_weights(spec)
    head = plan.matrices["lm_head"]
    assert (head.layout.rows, head.layout.columns) == rows.shape
    weights = torch.full((plan.arena_bytes // 2,), torch.nan, dtype=torch.bfloat16, device=runner.device)
    weights[head.offset // 2 : (head.offset + head.nbytes) // 2] = pack(
        rows.to(runner.device), chunk_limit=head.layout.chunk_limit
    ).flatten()
    constants = torch.ones(plan.constant_values, device=runner.device)
    program = isolate(lower(spec), "lm_head", "sample")
    inputs = {program.phases[0].buffers["input"].name: x.to(runner.device)}
    return runner.run(program, plan, inputs, Data(weights, constants), step, policy=policy)


def random_head(vocab_size: int = SAMPLE_SPEC.vocab_size, seed: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, x) with logits of about unit size."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(vocab_size, SAMPLE_SPEC.hidden_size, generator=random) * SAMPLE_SPEC.hidden_size**-0.5
    return rows.bfloat16(), torch.randn(SAMPLE_SPEC.hidden_size, generator=random).bfloat16().float()


def check_filtered(outcome: Outcome, step: Step) -> bool:
    """Whether the token is the host's choice from the device's logits; False where two keys are as good as equal."""
    logits, sampling = outcome.logits, step.sampling
    assert logits is not None and outcome.token is not None
    left = leave(logits, sampling.temperature, sampling.filters)
    assert bool(left[outcome.token]), "what is chosen must be left"
    keys = logits / sampling.temperature + gumbel(sampling.seed, step.position + 1, len(logits))
    keys = torch.where(left, keys, -torch.inf)
    top = keys.topk(2).values
    if top[0] - top[1] <= 1e-3 * max(1.0, 1 / sampling.temperature):
        return False
    assert outcome.token == int(keys.argmax()), step
    return True
