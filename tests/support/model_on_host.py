"""A whole model on the host: its megakernel, weights, cache and programs."""

from __future__ import annotations

from pathlib import Path

import torch

from jitmk.engine.arena import load_weights
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.step_programs import DeviceProgram
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec
from jitmk.program.lowering import lower
from jitmk.program.program import Program, Variant
from jitmk.program.rope_layout import rope_rows
from jitmk.program.weights import plan_weights
from jitmk.schedule.build import make_schedule
from jitmk.schedule.encode import encode
from tests.support.megakernel_on_host import SMS, HostLauncher

_CPU = torch.device("cpu")


class HostModel:
    """Random weights behind a kernel that runs on the host.

    Args:
        spec: the model.
        library: a kernel of `compile_for_host`.
        variants: what it was rendered from.
        capacity: positions of the cache.
        seed: who takes turns with whom.

    Attributes:
        spec: the model.
        source: its weights.
        cache: of keys and values; random at first, so that a decode may begin anywhere.
    """

    def __init__(
        self, spec: ModelSpec, library: Path, variants: tuple[Variant, ...], capacity: int = 48, seed: int = 0
    ) -> None:
        self.spec = spec
        self.source = RandomCheckpoint(spec, 1)
        self._variants = variants
        self._plan = plan_weights(spec)
        self._arena = load_weights(self._plan, self.source, _CPU, progress=False)
        self.cache = KvCache(spec, capacity, _CPU)
        random = torch.Generator().manual_seed(2)
        for layer in range(spec.num_layers):
            past = torch.randn((2, spec.num_kv_heads, capacity, spec.head_dim), generator=random)
            self.cache.write(layer, 0, past[0], past[1])
        self._rope = torch.stack(rope_rows(spec, range(capacity)), dim=-1).contiguous()
        words = max(lower(spec, 3, fused=fused).arena_words for fused in (True, False))
        # Room for the words of barriers between all phases.
        self._launcher = HostLauncher(
            library, arena_words=2 * words, kv_flags=spec.num_layers * spec.num_kv_heads, seed=seed
        )
        kv, params = self.cache.tensor, self._launcher.params
        params.weights, params.constants = self._arena.weights.data_ptr(), self._arena.constants.data_ptr()
        params.kv, params.rope = kv.data_ptr(), self._rope.data_ptr()
        params.kv_layer_stride, params.kv_head_stride = (kv.stride(axis) * kv.element_size() for axis in (0, 2))

    def prepare(self, program: Program) -> DeviceProgram:
        """A program of the model, scheduled for the host's SMs."""
        queues = encode(make_schedule(program, SMS), self._plan, self._variants)
        return DeviceProgram(program, queues, self._variants)

    def forced_logits(self, program: DeviceProgram, ids: list[int], start: int) -> torch.Tensor:
        """Decodes given tokens one after the other, in one launch: fp32 [len(ids), vocab_size]."""
        logits = torch.full((len(ids), self.spec.vocab_size), torch.nan)
        forced = torch.tensor(ids, dtype=torch.int32)
        self._launcher.launch(program, ids[0], start, len(ids), DeviceSampling(), logits=logits, forced=forced)
        return logits

    def stream(self, program: DeviceProgram, token: int, start: int, steps: int, sampling: DeviceSampling) -> list[int]:
        """The tokens of one launch, up to a stop token."""
        epoch = self._launcher.launch(program, token, start, steps, sampling)
        tokens: list[int] = []
        while len(tokens) < steps and not (tokens and tokens[-1] in sampling.stop_tokens):
            tokens.append(self._launcher.token(epoch + len(tokens)))
        return tokens
