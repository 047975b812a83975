"""Launches of the megakernel: what lives on the device beside weights and KV cache, and how launches are told apart.

Every launch owns a range of epochs, one a step. Words that earlier launches left behind carry older epochs and are
never taken for this one's, so nothing is cleared between launches.
"""

from __future__ import annotations

import ctypes
import select
from collections.abc import Callable

import torch

from jitmk.codegen import KERNEL_NAME
from jitmk.codegen.abi import (
    FILTER_SUMS,
    HOST_TOKENS,
    MAX_STOP_TOKENS,
    NO_TOKEN,
    REPORT_WORDS,
    STOP_BIT,
    WARPS,
    WORKING_WARPS,
    KernelParams,
    ReportWord,
    decode_report,
)
from jitmk.cuda.device import Device
from jitmk.cuda.launch import Launcher
from jitmk.cuda.memory import HostBuffer
from jitmk.cuda.module import Module
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.step_programs import DeviceProgram, Head
from jitmk.errors import DeviceError, KernelTimeoutError
from jitmk.program.packing import CONSUMER_WARPS, UNIT_ROWS, ceil_div
from jitmk.program.program import MAX_CANDIDATES
from jitmk.reference.ops.sample_filter import drop_scale, largest_drop

THREADS = WARPS * 32

LAST_TOKEN = -1
"""As a launch's first token: the last one of the launch before. After a stop there is none, and nothing happens."""

_EPOCH_LIMIT = 2**31
_SPINS_PER_LOOK = 2000


class MegakernelLauncher:
    """Launches one kernel over one set of weights and one KV cache.

    Args:
        gpu: the GPU.
        cubin: the kernel, compiled for it.
        arena_words: words of the largest program.
        kv_flags: layers * kv_heads.
        deadline_ms: how long a wait inside the kernel may last.
        window: chunk loads in flight an SM, one more in long instructions; window_ahead: the same while its ring is
            more than half full. first_look: as in `Tuning`.
        operands: the fields of KernelParams that stay as they are (weights, constants, kv, rope, strides).
    """

    def __init__(
        self,
        gpu: Device,
        cubin: bytes,
        *,
        arena_words: int,
        kv_flags: int,
        deadline_ms: int,
        window: int,
        window_ahead: int,
        first_look: int,
        operands: dict[str, int],
    ) -> None:
        self._device = device = torch.device("cuda", gpu.index)
        self._deadline_ms = deadline_ms
        sms = gpu.arch.sm_count
        self.words = torch.zeros(arena_words, dtype=torch.int64, device=device)
        self._token_words = torch.zeros(sms, dtype=torch.int64, device=device)
        self._kv_ready = torch.zeros(kv_flags, dtype=torch.int32, device=device)
        self._halt = torch.zeros(1, dtype=torch.int32, device=device)
        self._token_buffer = HostBuffer(gpu, 8 * HOST_TOKENS)
        self._report_buffer = HostBuffer(gpu, 4 * REPORT_WORDS)
        self._tokens = self._token_buffer.array(ctypes.c_uint64, HOST_TOKENS)
        self._report = self._report_buffer.array(ctypes.c_uint32, REPORT_WORDS)
        self._module = Module(gpu, cubin, gpu.arch.name)
        self.params = KernelParams(
            token_words=self._token_words.data_ptr(),
            words=self.words.data_ptr(),
            kv_ready=self._kv_ready.data_ptr(),
            halt=self._halt.data_ptr(),
            host_tokens=self._token_buffer.device_pointer,
            report=self._report_buffer.device_pointer,
            deadline_ns=deadline_ms * 1_000_000,
            sms=sms,
            window=window,
            window_ahead=window_ahead,
            first_look=first_look,
            **operands,
        )
        self._launcher = Launcher(
            self._module.kernel(KERNEL_NAME),
            self.params,
            blocks=sms,
            threads=THREADS,
            dynamic_shared=gpu.arch.shared_bytes_per_block,
        )
        self._next_epoch = 1
        self._program: DeviceProgram | None = None
        self._sampling: DeviceSampling | None = None
        self._stream: torch.cuda.Stream | None = None
        self._filters = FilterMemory(device)

    def enter_stream(self) -> torch.cuda.Stream:
        """Torch's current stream of the GPU; from here on it waits for launches that are under way on another one.

        Looking it up costs as much as half a launch: a generation does so once, and hands it to every launch.
        """
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        return stream

    def launch(
        self,
        program: DeviceProgram,
        token: int,
        position: int,
        steps: int,
        sampling: DeviceSampling,
        *,
        logits: torch.Tensor | None = None,
        forced: torch.Tensor | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> int:
        """Starts `steps` decode steps; returns the epoch of the first.

        Args:
            program: what a step is; sampling: how its token is chosen. Both are described to the kernel anew only when
                they are other objects than the last launch's.
            token: the first step's input, or LAST_TOKEN if `can_follow` says so.
            position: tokens in the cache.
            logits: fp32 [steps, vocab_size] on the device, filled if given.
            forced: int32 [steps] on the device: inputs of the steps instead of the sampled tokens.
            stream: of `enter_stream`; None enters torch's current one.

        Raises:
            DeviceError: the program's words do not fit, or the driver refuses.
        """
        if program is not self._program or sampling is not self._sampling:
            self._require_room(program)
            self._sampling = None  # until the description is whole
            describe(self.params, program, sampling, self._filters)
            self._program, self._sampling = program, sampling
        if self._next_epoch + steps > _EPOCH_LIMIT:
            self._restart_epochs()
        epoch = self._next_epoch
        self._next_epoch = epoch + steps
        place(self.params, token, position, steps, epoch, logits, forced)
        if stream is None:
            stream = self.enter_stream()
        self._stream = stream
        self._launcher.launch(stream.cuda_stream)
        return epoch

    def can_follow(self, program: DeviceProgram, steps: int) -> bool:
        """Whether a launch may be queued behind the one under way, before its last token is known.

        Not with another program, for a hang report does not say which launch it is of, nor when epochs begin anew.
        """
        return program is self._program and self._next_epoch + steps <= _EPOCH_LIMIT

    def token(self, epoch: int) -> int:
        """The token that the step of that epoch sampled, as soon as the device has written it.

        Raises:
            KernelTimeoutError: a wait in the kernel passed its deadline.
            DeviceError: the kernel failed, or no logit was a number.
        """
        tokens, slot = self._tokens, epoch % HOST_TOKENS
        spins = 0
        while tokens[slot] >> 32 != epoch:
            spins += 1
            if spins % _SPINS_PER_LOOK == 0:
                self._look(lambda: bool(tokens[slot] >> 32 == epoch))
        token = int(tokens[slot] & 0xFFFFFFFF & ~STOP_BIT)
        if token == NO_TOKEN:
            raise DeviceError(
                "the logits are not numbers (NaN or -inf throughout): the weights or the KV cache are corrupt; "
                "load the model again"
            )
        return token

    def synchronize(self) -> None:
        """Waits for every launch, and raises what went wrong in them (as `token` does)."""
        if self._stream is not None:
            self._stream.synchronize()
        self._raise_report()

    def close(self) -> None:
        """Unloads the kernel and frees the host's buffers. No launch may be under way."""
        self._module.close()
        self._token_buffer.close()
        self._report_buffer.close()

    def _require_room(self, program: DeviceProgram) -> None:
        needed, reserved = program.program.arena_words, self.words.numel()
        if needed > reserved:
            raise DeviceError(f"the program needs {needed} words, but {reserved} were reserved")

    def _look(self, arrived: Callable[[], bool]) -> None:
        """Once in a while during a wait for a token: is the kernel still at it?"""
        assert self._stream is not None
        if not self._stream.query():
            # Other threads may have the interpreter. By time.sleep(0) they may, too, but it sets a timer: 54 us.
            select.select((), (), (), 0)
            return
        self._raise_report()
        if not arrived():
            raise DeviceError("the megakernel ended without the token that was asked of it; this is a bug in jitmk")

    def _raise_report(self) -> None:
        if not self._report[ReportWord.VALID]:
            return
        sm, warps = decode_report([int(word) for word in self._report], WORKING_WARPS)
        torch.cuda.synchronize(self._device)
        self._report[:] = [0] * REPORT_WORDS
        self._halt.zero_()
        self._restart_epochs()
        assert self._program is not None
        culprit = warps[0]
        opcode, operand = self._program.describe(sm, culprit)
        raise KernelTimeoutError.at(
            sm=sm,
            role=_role(culprit.warp),
            instruction=culprit.instruction,
            opcode=opcode,
            operand=operand,
            deadline_ms=self._deadline_ms,
            detail=f"step {culprit.step} of the launch; the other warps of this SM: "
            + ", ".join(f"{_role(w.warp)} at {w.instruction} ({self._program.describe(sm, w)[1]})" for w in warps[1:]),
        )

    def _restart_epochs(self) -> None:
        """Forgets every word, so that epochs can count from 1 again."""
        torch.cuda.synchronize(self._device)
        for words in (self.words, self._token_words, self._kv_ready, self._filters.words):
            words.zero_()
        self._tokens[:] = [0] * HOST_TOKENS
        torch.cuda.synchronize(self._device)
        self._next_epoch = 1


class FilterMemory:
    """What SMs share while they look for the threshold of a sampling filter (csrc_headers/jitmk/vm/sample_filter.cuh).

    Attributes:
        words: int64 [MAX_CANDIDATES]; they carry epochs.
    """

    def __init__(self, device: torch.device) -> None:
        self.words = torch.zeros(MAX_CANDIDATES, dtype=torch.int64, device=device)
        # Whatever they hold, differences are what counts.
        self._sums = torch.zeros(FILTER_SUMS, dtype=torch.int64, device=device)
        self._values = torch.empty(0, device=device)

    def describe(self, params: KernelParams, head: Head, sampling: DeviceSampling) -> None:
        """The launch parameters of filters, and room for a step's logits and keys."""
        filters = sampling.filters
        values = 2 * ceil_div(head.vocab_size, UNIT_ROWS) * UNIT_ROWS
        if self._values.numel() < values:
            self._values = torch.empty(values, device=self.words.device)
        params.filter_values = self._values.data_ptr()
        params.filter_words = self.words.data_ptr()
        params.filter_sums = self._sums.data_ptr()
        params.shares = head.instructions
        params.top_k = min(filters.top_k, 2**31 - 1)
        params.top_p = filters.top_p
        params.drop_scale = drop_scale(sampling.temperature)
        params.largest_drop = largest_drop(filters.min_p)


def describe(params: KernelParams, program: DeviceProgram, sampling: DeviceSampling, memory: FilterMemory) -> None:
    """Fills in what stays the same from one launch of a generation to the next: program, sampling, its filters."""
    params.instructions = program.queues.data_ptr()
    params.queue_length = program.queues.shape[1]
    params.greedy = int(sampling.temperature == 0)
    params.inverse_temperature = 1.0 if params.greedy else 1.0 / sampling.temperature
    params.filters = int(sampling.filtered)
    stops = sampling.stop_tokens[:MAX_STOP_TOKENS]
    params.stop_tokens = len(stops)
    params.stop_token[: len(stops)] = stops
    params.seed_low, params.seed_high = sampling.seed & 0xFFFFFFFF, sampling.seed >> 32
    if sampling.filtered:
        memory.describe(params, program.head, sampling)


def place(
    params: KernelParams,
    token: int,
    position: int,
    steps: int,
    epoch: int,
    logits: torch.Tensor | None,
    forced: torch.Tensor | None,
) -> None:
    """Fills in what differs from one launch to the next, in the terms of `MegakernelLauncher.launch`.

    Nothing else does: the host pays for each field while the GPU may be waiting for the launch.
    """
    params.first_token = token
    params.position = position
    params.steps = steps
    params.epoch = epoch
    params.logits = 0 if logits is None else logits.data_ptr()
    params.forced_tokens = 0 if forced is None else forced.data_ptr()


def _role(warp: int) -> str:
    if warp < CONSUMER_WARPS:
        return f"consumer warp {warp}"
    return "loader" if warp == CONSUMER_WARPS else "storer"
