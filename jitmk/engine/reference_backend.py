"""The decode step on the CPU, opcode by opcode: the same program as the megakernel's, in plain torch.

Prompts (and `logits`) take the way that they take on a GPU too, through `engine/prefill.py`; each decoded token goes
through the reference machine.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch

from jitmk.engine.backend import DeviceSampling
from jitmk.engine.philox import gumbel
from jitmk.engine.prefill import Prefill
from jitmk.engine.resident import load_resident
from jitmk.errors import BackendError
from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec
from jitmk.program.fusion import Fusion
from jitmk.program.weights import WeightPlan
from jitmk.reference.machine import ReferenceMachine

_CPU = torch.device("cpu")


class ReferenceBackend:
    """A `DecodeBackend` on the reference machine.

    Args:
        spec: the model.
        plan: its matrices and vectors.
        source: the checkpoint.
        max_seq_len: positions of the KV cache.
        splits: parts into which attention splits the context.
        fused: as for `lower`.
        progress: whether a slow load shows a progress bar.

    Raises:
        DeviceMemoryError: weights and cache do not fit into the machine's memory.
        CheckpointError: a tensor cannot be read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: WeightPlan,
        source: WeightSource,
        max_seq_len: int,
        *,
        splits: int = 1,
        fused: bool | Fusion = True,
        progress: bool = True,
    ) -> None:
        # Keys and values in fp32, of what is used: the machine's cache grows with the sequence.
        also_needed = {"KV cache": 8 * spec.num_layers * max_seq_len * spec.num_kv_heads * spec.head_dim}
        weights = load_resident(plan, source, _CPU, also_needed=also_needed, progress=progress)
        self._max_seq_len = max_seq_len
        self._machine: ReferenceMachine | None = ReferenceMachine(
            spec, weights, splits=splits, fused=fused, noise=gumbel
        )
        self._prefill: Prefill | None = Prefill(spec, weights, self._machine.cache)

    @property
    def name(self) -> str:
        return "reference"

    @property
    def device(self) -> torch.device:
        return _CPU

    @property
    def max_seq_len(self) -> int:
        return self._max_seq_len

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        """See `DecodeBackend.prefill`."""
        if self._prefill is None:
            raise BackendError("the reference backend is closed")
        return self._prefill.run(ids, start, all_logits=all_logits)

    def step_logits(self, token: int, position: int) -> torch.Tensor:
        """See `DecodeBackend.step_logits`."""
        logits = self._running().step(token, position, want_logits=True).logits
        assert logits is not None
        return logits

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        """See `DecodeBackend.decode_stream`; the program's own SAMPLE chooses."""
        for at in range(position, position + steps):
            step = self._running().step(
                token, at, temperature=sampling.temperature, seed=sampling.seed, filters=sampling.filters
            )
            token = step.token
            yield token

    def phase_outputs(self, token: int, position: int) -> Mapping[str, torch.Tensor]:
        """See `PhaseOutputs.phase_outputs`."""
        machine = self._running()
        machine.step(token, position, want_logits=True)
        return {name: values.clone() for name, values in machine.outputs().items()}

    def cached(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PhaseOutputs.cached`."""
        return self._running().cache.read(layer, positions)

    def reset(self) -> None:
        """See `DecodeBackend.reset`."""
        self._running().reset()

    def close(self) -> None:
        """See `DecodeBackend.close`."""
        self._machine = self._prefill = None

    def _running(self) -> ReferenceMachine:
        if self._machine is None:
            raise BackendError("the reference backend is closed")
        return self._machine
