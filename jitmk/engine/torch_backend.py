"""The decode step in plain torch, on a CPU or a GPU: the comparison that needs no program and no kernel."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch

from jitmk.engine.backend import DeviceSampling, sampled_stream
from jitmk.engine.kv_cache import KvCache, kv_cache_bytes
from jitmk.engine.prefill import Prefill, prefill_workspace_bytes
from jitmk.engine.resident import load_resident
from jitmk.errors import BackendError
from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec
from jitmk.program.weights import WeightPlan


class TorchBackend:
    """A `DecodeBackend` that runs every token, prompt or decoded, through `engine/prefill.py`.

    Args:
        spec: the model.
        plan: its matrices and vectors.
        source: the checkpoint.
        device: where everything lives.
        max_seq_len: positions of the KV cache.
        progress: whether a slow load shows a progress bar.

    Raises:
        DeviceMemoryError: weights and cache do not fit.
        CheckpointError: a tensor cannot be read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: WeightPlan,
        source: WeightSource,
        device: torch.device,
        max_seq_len: int,
        *,
        progress: bool = True,
    ) -> None:
        also_needed = {
            "KV cache": kv_cache_bytes(spec, max_seq_len),
            "workspace": prefill_workspace_bytes(spec, max_seq_len),
        }
        weights = load_resident(plan, source, device, also_needed=also_needed, progress=progress)
        self._device = device
        self._max_seq_len = max_seq_len
        self._cache: KvCache | None = KvCache(spec, max_seq_len, device)
        self._prefill: Prefill | None = Prefill(spec, weights, self._cache)

    @property
    def name(self) -> str:
        return "torch"

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def max_seq_len(self) -> int:
        return self._max_seq_len

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        """See `DecodeBackend.prefill`."""
        return self._running().run(ids, start, all_logits=all_logits)

    def step_logits(self, token: int, position: int) -> torch.Tensor:
        """See `DecodeBackend.step_logits`."""
        return self._running().step(token, position)

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        """See `DecodeBackend.decode_stream`; the host samples."""
        return sampled_stream(self, token, position, steps, sampling)

    def phase_outputs(self, token: int, position: int) -> Mapping[str, torch.Tensor]:
        """See `PhaseOutputs.phase_outputs`."""
        outputs: dict[str, torch.Tensor] = {}

        def keep(name: str, values: torch.Tensor) -> None:
            outputs[name] = values[0].to("cpu", torch.float32, copy=True)

        outputs["logits"] = self._running().step(token, position, keep).cpu()
        return outputs

    def cached(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PhaseOutputs.cached`."""
        self._running()
        assert self._cache is not None
        keys, values = self._cache.read(layer, positions)
        return keys.cpu(), values.cpu()

    def reset(self) -> None:
        """Nothing to do: every call overwrites the cache from its position on."""

    def close(self) -> None:
        """See `DecodeBackend.close`."""
        self._prefill = self._cache = None

    def _running(self) -> Prefill:
        if self._prefill is None:
            raise BackendError("the torch backend is closed")
        return self._prefill
