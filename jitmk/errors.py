"""Every exception that jitmk raises on purpose. All derive from :class:`JitmkError`.

A message says what was wrong, with which value, what is allowed, and what to do next. Errors that carry facts which a
caller may act on (a compiler's log, the SM that timed out) hold them as attributes as well. The first positional
argument is always the message, so that every error survives pickling between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class JitmkError(Exception):
    """Base of all errors of jitmk."""


class SettingsError(JitmkError):
    """An environment variable of jitmk has a value that it cannot have."""


class ConfigError(JitmkError):
    """A model's config.json or generation_config.json is missing, malformed or contradicts itself."""


class UnsupportedModelError(ConfigError):
    """The config is sound, but asks for something that jitmk does not run; the message names it."""


class CheckpointError(JitmkError):
    """A weight file or tensor is missing, truncated, of the wrong shape or dtype, or not safetensors."""


class TokenizerError(JitmkError):
    """The tokenizer or chat template is missing, malformed or cannot do what was asked."""


class GenerationError(JitmkError, ValueError):
    """An argument of generate, stream or logits has a value that it cannot have."""


class ContextLengthError(GenerationError):
    """Prompt and requested tokens together do not fit into the model's context."""


class ScheduleError(JitmkError):
    """The verifier refused a schedule: it would deadlock, race, or compute something twice or not at all."""


class CodegenError(JitmkError):
    """No kernel source can be rendered for this model and this GPU architecture."""


class CompileError(JitmkError):
    """The CUDA compiler rejected a source.

    Attributes:
        log: everything that the compiler wrote.
        command: the compiler and its options, as an argument list.
        source_path: where the refused source was saved, or None if it could not be saved.
    """

    def __init__(
        self, message: str, *, log: str = "", command: Sequence[str] = (), source_path: Path | None = None
    ) -> None:
        super().__init__(message)
        self.log = log
        self.command = tuple(command)
        self.source_path = source_path


class CompilerNotFoundError(JitmkError):
    """The CUDA compiler that was asked for is not on this machine, or cannot be used."""


class CacheError(JitmkError):
    """The kernel cache cannot be used as it is, and going on without it would hide that."""


class DeviceError(JitmkError):
    """There is no usable GPU or driver, or the driver refused a call."""


class DeviceMemoryError(DeviceError):
    """The GPU's memory does not hold what was asked of it."""


class KernelTimeoutError(JitmkError):
    """A wait inside the kernel passed its deadline (JITMK_WAIT_DEADLINE_MS) and the kernel stopped.

    Attributes:
        sm: index of the SM (the CTA) that waited; role: its warp role, such as ``"loader"``.
        instruction: index in that SM's queue; opcode: the instruction's opcode name; operand: what it waited for.
        deadline_ms: the deadline that passed, in milliseconds.
    """

    def __init__(
        self,
        message: str,
        *,
        sm: int | None = None,
        role: str | None = None,
        instruction: int | None = None,
        opcode: str | None = None,
        operand: str | None = None,
        deadline_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.sm = sm
        self.role = role
        self.instruction = instruction
        self.opcode = opcode
        self.operand = operand
        self.deadline_ms = deadline_ms

    @classmethod
    def at(
        cls, *, sm: int, role: str, instruction: int, opcode: str, operand: str, deadline_ms: int, detail: str = ""
    ) -> KernelTimeoutError:
        """The error with its usual message; ``detail`` is appended, such as the value expected and the one seen."""
        message = (
            f"the megakernel stopped: on SM {sm} the {role} waited longer than {deadline_ms} ms in instruction "
            f"{instruction} ({opcode}) for {operand}"
        )
        if detail:
            message += f" ({detail})"
        message += (
            "; if the GPU is shared or runs under a debugger, raise JITMK_WAIT_DEADLINE_MS, otherwise this is a bug "
            "in jitmk: please report it with this message"
        )
        return cls(
            message,
            sm=sm,
            role=role,
            instruction=instruction,
            opcode=opcode,
            operand=operand,
            deadline_ms=deadline_ms,
        )


class BackendError(JitmkError):
    """The backend that was asked for cannot run this model, or no backend can."""
