"""Launches phases on their own: given inputs as words, poison in every other word, and a look at everything after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from jitmk.codegen.abi import KernelParams
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import read_buffer
from jitmk.engine.step_programs import DeviceProgram
from jitmk.program.configs import Epilogue, MatvecConfig
from jitmk.program.isa import Opcode
from jitmk.program.program import Buffer, BufferKind, Program, Variant, word_spread
from jitmk.program.weights import WeightPlan
from jitmk.schedule.build import make_schedule
from jitmk.schedule.encode import encode
from jitmk.schedule.schedule import Schedule
from tests.support.op_kernels import OpKernel
from tests.support.phases import inputs_of, outputs_of, spread_out
from tests.support.words import poison_words, read_candidates, write_words, written_words

ARENA_WORDS = 1 << 20
"""Words that a launcher needs to have for these tests."""

KV_FLAGS = 64
"""And layers times key/value heads."""


@dataclass(frozen=True)
class Data:
    """What instructions use besides words; what a phase does not use stays None, and the kernel gets a null pointer.

    Attributes:
        weights: bf16, the weight arena; constants: fp32, norms and biases.
        cache: bf16 [layers, tokens, kv_heads, tiles, tile_elements].
        rope: fp32 [positions, rope_stride, 2], cos and sin.
    """

    weights: torch.Tensor | None = None
    constants: torch.Tensor | None = None
    cache: torch.Tensor | None = None
    rope: torch.Tensor | None = None

    def parameters(self) -> dict[str, int]:
        """Fields of KernelParams."""
        pointers = {"weights": self.weights, "constants": self.constants, "kv": self.cache, "rope": self.rope}
        fields = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in pointers.items()}
        if self.cache is not None:
            fields["kv_layer_stride"] = self.cache.stride(0) * self.cache.element_size()
            fields["kv_head_stride"] = self.cache.stride(2) * self.cache.element_size()
        return fields


@dataclass(frozen=True)
class Step:
    """What the host says of the step."""

    token: int = 0
    position: int = 0
    sampling: DeviceSampling = field(default_factory=DeviceSampling)


@dataclass(frozen=True)
class Outcome:
    """What a launch left behind, on the CPU.

    Attributes:
        outputs: fp32 [values] by operand of the last phase ("output", "residual_out"), but for candidates.
        schedule: which SM computed what.
        candidates: keys fp32 [n] and token ids int64 [n] of the LM head's instructions, in the order of the queues.
        logits: fp32 [vocab_size], if the program has an LM head.
        token: that SAMPLE chose, if the program has one.
    """

    outputs: Mapping[str, torch.Tensor]
    schedule: Schedule
    candidates: tuple[torch.Tensor, torch.Tensor] | None
    logits: torch.Tensor | None
    token: int | None


class Launcher(Protocol):
    """What a `MegakernelLauncher` on a GPU and a `HostLauncher` have in common."""

    words: torch.Tensor
    params: KernelParams
    _next_epoch: int

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
    ) -> int: ...

    def token(self, epoch: int) -> int: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class OpRunner:
    """One kernel, for programs of any of its variants.

    Args:
        launcher: of the kernel.
        device: where its tensors are.
        sms: how many there are.
        kernel: what it was rendered from.
    """

    def __init__(self, launcher: Launcher, device: torch.device, sms: int, kernel: OpKernel) -> None:
        self.device = device
        self.variants = kernel.variants
        self.sms = sms
        self._spread = word_spread(kernel.spec.hidden_size)
        self._launcher = launcher

    @property
    def words(self) -> torch.Tensor:
        """The word arena, int64."""
        return self._launcher.words

    @property
    def next_epoch(self) -> int:
        """The epoch of the next launch's first step: inputs must carry it before the launch gives it away."""
        return self._launcher._next_epoch

    def run(
        self,
        program: Program,
        plan: WeightPlan,
        inputs: Mapping[str, torch.Tensor],
        data: Data,
        step: Step | None = None,
        *,
        policy: str = "round_robin",
    ) -> Outcome:
        """Runs a program once and reads what it computed. Its buffers are laid out as the kernel expects them.

        Args:
            inputs: values of the buffers that it reads and does not write, by buffer name.

        Raises:
            BackendError: an output was not written, or its copies differ.
            AssertionError: a word was written that is none of its outputs.
            KernelTimeoutError: it waited for something else than its inputs.
        """
        step = step or Step()
        program = spread_out(program, self._spread)
        schedule = make_schedule(program, self.sms, policy)
        ready = inputs_of(program)
        assert {buffer.name for buffer in ready} == inputs.keys(), (ready, inputs.keys())
        head = next((p for p in program.phases if _is_head(p.variant)), None)
        logits = None
        if head is not None:
            assert isinstance(head.variant.config, MatvecConfig)
            logits = torch.full((1, head.variant.config.rows), torch.nan, device=self.device)

        queues = encode(schedule, plan, self.variants).to(self.device)
        epoch = self.next_epoch
        poison_words(self.words, epoch)
        for buffer in ready:
            write_words(self.words, buffer, inputs[buffer.name].to(self.device), epoch)
        before = self.words.clone()
        self.launch(DeviceProgram(program, queues, self.variants), data, step, epoch, logits)

        written = outputs_of(program)
        count = 0 if head is None else int((schedule.table.phase == head.index).sum())
        self._check_stray_writes(before, written, count)
        candidates = None
        if head is not None:
            candidates = read_candidates(self.words, head.buffers["output"], count, epoch)
        samples = any(phase.variant.opcode is Opcode.SAMPLE for phase in program.phases)
        outputs = {
            operand: read_buffer(self.words, buffer, epoch)
            for operand, buffer in program.phases[-1].buffers.items()
            if buffer in written and buffer.kind is not BufferKind.CANDIDATE
        }
        return Outcome(
            outputs,
            schedule,
            candidates,
            None if logits is None else logits[0].cpu(),
            self._launcher.token(epoch) if samples else None,
        )

    def launch(
        self, program: DeviceProgram, data: Data, step: Step, epoch: int, logits: torch.Tensor | None = None
    ) -> None:
        """Launches queues as they are and waits for them; words must be in place for `epoch`."""
        for name, value in data.parameters().items():
            setattr(self._launcher.params, name, value)
        started = self._launcher.launch(program, step.token, step.position, 1, step.sampling, logits=logits)
        assert started == epoch, "words carry another epoch than the launch"
        self._launcher.synchronize()

    def token(self, epoch: int) -> int:
        """As `MegakernelLauncher.token`."""
        return self._launcher.token(epoch)

    def close(self) -> None:
        self._launcher.close()

    def _check_stray_writes(self, before: torch.Tensor, written: list[Buffer], candidates: int) -> None:
        changed = (self.words != before).cpu()
        stray = changed & ~written_words(written, len(changed), candidates)
        assert not bool(stray.any()), f"{int(stray.sum())} words were written that belong to no output"


def _is_head(variant: Variant) -> bool:
    return isinstance(variant.config, MatvecConfig) and variant.config.epilogue is Epilogue.LOGITS
