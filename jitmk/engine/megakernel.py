"""The backend that the project is about: decode steps as one persistent kernel on the GPU."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from jitmk import jit
from jitmk.codegen import render
from jitmk.codegen.prefill import render_prefill
from jitmk.cuda.device import Device
from jitmk.engine.arena import load_weights
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.kv_cache import KvCache, kv_cache_bytes
from jitmk.engine.launcher import LAST_TOKEN, MegakernelLauncher
from jitmk.engine.loading import note_if_slow
from jitmk.engine.prefill import Prefill, prefill_workspace_bytes
from jitmk.engine.prefill_kernels import DeviceKernels, KernelOps
from jitmk.engine.step_programs import StepPrograms, kernel_variants
from jitmk.engine.tuning import Tuning, find_tuning
from jitmk.errors import BackendError
from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec
from jitmk.program.fusion import Fusion
from jitmk.program.program import Buffer, BufferKind
from jitmk.program.rope_layout import rope_rows
from jitmk.program.weights import WeightPlan
from jitmk.settings import Settings

STEPS_PER_LAUNCH = 16
"""Tokens of one launch. More would hide more of the host's turn between two launches, and make one that nobody reads
any more (a stream closed early) last longer."""

GREEDY = DeviceSampling()


class MegakernelBackend:
    """Implements `DecodeBackend` and `PhaseOutputs` on one GPU.

    Args:
        spec, plan, source: the model and its weights.
        gpu: the GPU.
        max_seq_len: positions of the KV cache.
        tuning: what is free to choose; None takes what `jitmk tune` stored for this kernel and GPU, else the defaults.
        fused: as for `lower`.
        progress: whether long loads show a progress bar.

    Attributes:
        kernel: what was compiled, or came from the cache.
        tuning_origin: in words, where the tuning comes from.

    Raises:
        DeviceMemoryError: weights and cache do not fit the GPU.
        CodegenError, CompileError: no kernel can be built.
    """

    name = "megakernel"

    def __init__(
        self,
        spec: ModelSpec,
        plan: WeightPlan,
        source: WeightSource,
        gpu: Device,
        *,
        max_seq_len: int,
        settings: Settings,
        tuning: Tuning | None = None,
        fused: bool | Fusion = True,
        progress: bool = True,
    ) -> None:
        self._spec = spec
        self.device = device = torch.device("cuda", gpu.index)
        arch = gpu.arch
        self.max_seq_len = max_seq_len
        # The kernels first: a model that cannot be compiled for should not be loaded.
        sources = render(kernel_variants(spec, fused), spec, arch), render_prefill(spec)
        with (
            note_if_slow(f"compiling the megakernel for {arch.name}, once", progress),
            ThreadPoolExecutor(len(sources)) as pool,
        ):
            build = partial(jit.build, arch=arch, settings=settings)
            self.kernel, for_prefill = pool.map(build, sources)
        self.tuning_origin = "given"
        if tuning is None:
            tuning, self.tuning_origin = find_tuning(spec, gpu, self.kernel.key, max_seq_len, settings)
        if settings.print_configs:
            chosen = f"{self.kernel.info}, {tuning} ({self.tuning_origin})"
            print(f"jitmk: kernel {self.kernel.key[:16]}: {chosen}", file=sys.stderr)
        programs = StepPrograms(spec, plan, arch, device, tuning, fused)
        largest = programs.largest_arena_words()
        needed = {
            "KV cache": kv_cache_bytes(spec, max_seq_len),
            "words": 8 * largest,
            "prefill": prefill_workspace_bytes(spec, max_seq_len),
        }
        self._arena = load_weights(plan, source, device, also_needed=needed, progress=progress)
        self._cache = KvCache(spec, max_seq_len, device)
        self._prefill_kernels = DeviceKernels(gpu, spec, for_prefill.cubin)
        ops = KernelOps(spec, self._arena, self._cache, self._prefill_kernels)
        self._prefill = Prefill(spec, self._arena, self._cache, ops)
        self._rope = torch.stack(rope_rows(spec, range(max_seq_len)), dim=-1).to(device)
        kv = self._cache.tensor
        self._launcher = MegakernelLauncher(
            gpu,
            self.kernel.cubin,
            arena_words=largest,
            kv_flags=spec.num_layers * spec.num_kv_heads,
            deadline_ms=settings.wait_deadline_ms,
            window=tuning.window,
            window_ahead=tuning.window_ahead,
            first_look=tuning.first_look,
            operands={
                "weights": self._arena.weights.data_ptr(),
                "constants": self._arena.constants.data_ptr(),
                "kv": kv.data_ptr(),
                "rope": self._rope.data_ptr(),
                "kv_layer_stride": kv.stride(0) * kv.element_size(),
                "kv_head_stride": kv.stride(2) * kv.element_size(),
            },
        )
        self._programs = programs
        self._logits = torch.empty((1, spec.vocab_size), dtype=torch.float32, device=device)
        self._closed = False

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        """As `DecodeBackend.prefill`, from the packed weights (`engine/prefill_kernels.py`)."""
        self._require_open()
        self._launcher.enter_stream()  # steps that nobody reads any more may still write to the cache
        return self._prefill.run(ids, start, all_logits=all_logits)

    def step_logits(self, token: int, position: int) -> torch.Tensor:
        """As `DecodeBackend.step_logits`."""
        self._require_open()
        self._launcher.launch(self._programs.for_context(position), token, position, 1, GREEDY, logits=self._logits)
        self._launcher.synchronize()
        return self._logits[0]

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        """As `DecodeBackend.decode_stream`; tokens arrive while the launch that makes them runs on.

        The next launch is queued as soon as one has begun, so that the GPU does not wait for the host between them.
        All of them go to the stream that is torch's current one when the first token is asked for: they depend on each
        other, whatever the reader makes current meanwhile.
        """
        self._require_open()
        self._programs.expect(position, position + steps)
        stream = self._launcher.enter_stream()
        epoch: int | None = None
        while steps > 0:
            count = min(steps, STEPS_PER_LAUNCH)
            if epoch is None:
                program = self._programs.for_context(position + count - 1)
                epoch = self._launcher.launch(program, token, position, count, sampling, stream=stream)
            position, steps = position + count, steps - count
            following = None
            for i in range(count):
                token = self._launcher.token(epoch + i)
                if token in sampling.stop_tokens:
                    yield token
                    return  # the kernel has stopped there too, and a launch behind it finds that out
                if i == 0 and steps > 0:
                    following = self._follow(position, min(steps, STEPS_PER_LAUNCH), sampling, stream)
                yield token
            epoch = following

    def _follow(self, position: int, count: int, sampling: DeviceSampling, stream: torch.cuda.Stream) -> int | None:
        """Queues a launch behind the one under way; its first epoch, or None if it has to wait for the last token."""
        program = self._programs.for_context(position + count - 1)
        if not self._launcher.can_follow(program, count):
            return None
        return self._launcher.launch(program, LAST_TOKEN, position, count, sampling, stream=stream)

    def forced_logits(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """Decodes given tokens one after the other: fp32 [len(ids), vocab_size] on the CPU.

        What `prefill(ids, start, all_logits=True)` computes, step by step through the megakernel, with the launches and
        programs (and so the bits) of a `decode_stream` of as many steps from there.
        """
        self._require_open()
        rows = []
        for begin in range(0, len(ids), STEPS_PER_LAUNCH):
            piece = ids[begin : begin + STEPS_PER_LAUNCH]
            position = start + begin
            logits = torch.full((len(piece), self._spec.vocab_size), torch.nan, device=self.device)
            forced = torch.tensor(list(piece), dtype=torch.int32, device=self.device)
            program = self._programs.for_context(position + len(piece) - 1)
            self._launcher.launch(program, piece[0], position, len(piece), GREEDY, logits=logits, forced=forced)
            self._launcher.synchronize()
            rows.append(logits.cpu())
        return torch.cat(rows)

    def phase_outputs(self, token: int, position: int, splits: int | None = None) -> dict[str, torch.Tensor]:
        """As `PhaseOutputs.phase_outputs`; `splits` overrides the number of splits."""
        self._require_open()
        program = self._programs.for_context(position) if splits is None else self._programs.for_splits(splits)
        epoch = self._launcher.launch(program, token, position, 1, GREEDY, logits=self._logits)
        self._launcher.synchronize()
        outputs = {
            buffer.name: read_buffer(self._launcher.words, buffer, epoch)
            for buffer in program.program.buffers
            if buffer.kind is not BufferKind.CANDIDATE
        }
        return outputs | {"logits": self._logits[0].cpu()}

    def cached(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PhaseOutputs.cached`."""
        self._require_open()
        keys, values = self._cache.read(layer, positions)
        return keys.cpu(), values.cpu()

    @property
    def tuning(self) -> Tuning:
        """The choices that the next launch follows."""
        self._require_open()
        return self._programs.tuning

    def use(self, tuning: Tuning) -> None:
        """Follows other choices from the next launch on; `tuning` is one that `parse_tuning` would accept."""
        self._require_open()
        self._programs.tuning = tuning
        self._launcher.params.window = tuning.window
        self._launcher.params.window_ahead = tuning.window_ahead
        self._launcher.params.first_look = tuning.first_look

    def step_us(self, context: int, steps: int = STEPS_PER_LAUNCH) -> float:
        """Microseconds of a decode step behind `context` positions: the mean of one launch, by the GPU's own clock.

        What the cache holds is taken as it is; what it holds from `context` on is overwritten.
        """
        self._require_open()
        program = self._programs.for_context(context + steps - 1)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(self.device)
        begin.record(stream)
        self._launcher.launch(program, 0, context, steps, GREEDY)
        end.record(stream)
        self._launcher.synchronize()
        return 1000 * float(begin.elapsed_time(end)) / steps

    def fill_cache(self) -> None:
        """Fills the cache with normal noise, of which steps cost what they cost behind any text (`jitmk tune`)."""
        self._require_open()
        self._cache.tensor.normal_()

    def reset(self) -> None:
        """Waits for what is under way; the cache's positions are written before they are read, and need no clearing."""
        if not self._closed:
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Frees weights and cache."""
        if self._closed:
            return
        self._closed = True
        torch.cuda.synchronize(self.device)
        self._launcher.close()
        self._programs.close()
        self._prefill_kernels.close()
        del self._launcher, self._prefill, self._arena, self._cache, self._rope, self._logits, self._programs
        torch.cuda.empty_cache()

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the model is closed; load it again")


def read_buffer(words: torch.Tensor, buffer: Buffer, epoch: int) -> torch.Tensor:
    """The values of a buffer after a step, fp32 [values] on the CPU.

    Raises:
        BackendError: a word was not written in that step, or the copies of a word differ.
    """
    copies = torch.stack([words[buffer.places(copy).to(words.device)].cpu() for copy in range(buffer.copies)])
    stale = (copies >> 32) != epoch
    if bool(stale.any()):
        copy, word = (int(i) for i in stale.nonzero()[0])
        raise BackendError(
            f"word {word} of copy {copy} of {buffer.name} was written in step {int(copies[copy, word] >> 32)}, "
            f"not in step {epoch}"
        )
    if not bool((copies == copies[0]).all()):
        raise BackendError(f"the copies of {buffer.name} differ")
    payload = (copies[0] & 0xFFFFFFFF).to(torch.int64)
    payload = torch.where(payload >= 2**31, payload - 2**32, payload).to(torch.int32)
    if buffer.kind is BufferKind.FP32:
        return payload.view(torch.float32)[: buffer.values].clone()
    return payload.view(torch.bfloat16)[: buffer.values].float()
