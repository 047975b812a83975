"""A schedule, run queue by queue on the CPU, in the form in which `jitmk diff` compares backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from jitmk.engine.prefill import Prefill
from jitmk.engine.resident import load_resident
from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec
from jitmk.program.lowering import lower
from jitmk.program.weights import WeightPlan
from jitmk.reference.interleaving import RandomOrder
from jitmk.reference.schedule_machine import ScheduleMachine
from jitmk.schedule.build import make_schedule
from jitmk.schedule.verify import verify

_SMS = 7
"""SMs of the imagined GPU: few, for each takes turns; odd, so that no phase is dealt out evenly by chance."""
_SPLITS = 3


class ScheduleBackend:
    """Implements `PhaseOutputs` and prefill on the schedule machine, its agents taking turns at random.

    Args:
        spec: the model.
        plan: its matrices and vectors.
        source: the checkpoint.
        policy: who deals the program out.

    Raises:
        ConfigError: no such policy.
        ScheduleError: the verifier refuses the schedule, or it deadlocks or races as it runs.
    """

    def __init__(self, spec: ModelSpec, plan: WeightPlan, source: WeightSource, policy: str) -> None:
        schedule = make_schedule(lower(spec, _SPLITS), _SMS, policy)
        verify(schedule)
        weights = load_resident(plan, source, torch.device("cpu"))
        self.name = f"schedule:{policy}"
        self._machine = ScheduleMachine(schedule, spec, weights)
        self._prefill = Prefill(spec, weights, self._machine.cache)

    def prefill(self, ids: Sequence[int], start: int = 0) -> torch.Tensor:
        """Fills the cache; the logits of the last token, fp32 [vocab_size]."""
        return self._prefill.run(ids, start)

    def phase_outputs(self, token: int, position: int) -> Mapping[str, torch.Tensor]:
        """See `PhaseOutputs.phase_outputs`."""
        self._machine.run(token, position, 1, RandomOrder(seed=position))
        return {**self._machine.outputs(), "logits": self._machine.logits[0]}

    def cached(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PhaseOutputs.cached`."""
        return self._machine.cache.read(layer, positions)

    def close(self) -> None:
        """Nothing to free but memory."""
