"""jitmk: a JIT-compiled megakernel runtime for decoding with language models.

Importing the package loads nothing but this file: what it exports is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jitmk.api import load_model as load_model
    from jitmk.arch import GpuArch as GpuArch
    from jitmk.engine.generation import TextStream as TextStream
    from jitmk.engine.model import Model as Model
    from jitmk.engine.result import FinishReason as FinishReason
    from jitmk.engine.result import GenerationResult as GenerationResult
    from jitmk.engine.result import Timings as Timings
    from jitmk.errors import BackendError as BackendError
    from jitmk.errors import CacheError as CacheError
    from jitmk.errors import CheckpointError as CheckpointError
    from jitmk.errors import CodegenError as CodegenError
    from jitmk.errors import CompileError as CompileError
    from jitmk.errors import CompilerNotFoundError as CompilerNotFoundError
    from jitmk.errors import ConfigError as ConfigError
    from jitmk.errors import ContextLengthError as ContextLengthError
    from jitmk.errors import DeviceError as DeviceError
    from jitmk.errors import DeviceMemoryError as DeviceMemoryError
    from jitmk.errors import GenerationError as GenerationError
    from jitmk.errors import JitmkError as JitmkError
    from jitmk.errors import KernelTimeoutError as KernelTimeoutError
    from jitmk.errors import ScheduleError as ScheduleError
    from jitmk.errors import SettingsError as SettingsError
    from jitmk.errors import TokenizerError as TokenizerError
    from jitmk.errors import UnsupportedModelError as UnsupportedModelError
    from jitmk.model.families import register_family as register_family
    from jitmk.settings import Settings as Settings
    from jitmk.settings import get_settings as get_settings

# Exported name -> module that defines it; the imports above say the same to type checkers.
_EXPORTS: dict[str, str] = {
    "load_model": "jitmk.api",
    "GpuArch": "jitmk.arch",
    "TextStream": "jitmk.engine.generation",
    "Model": "jitmk.engine.model",
    "FinishReason": "jitmk.engine.result",
    "GenerationResult": "jitmk.engine.result",
    "Timings": "jitmk.engine.result",
    "register_family": "jitmk.model.families",
    "Settings": "jitmk.settings",
    "get_settings": "jitmk.settings",
    **dict.fromkeys(
        (
            "BackendError",
            "CacheError",
            "CheckpointError",
            "CodegenError",
            "CompileError",
            "CompilerNotFoundError",
            "ConfigError",
            "ContextLengthError",
            "DeviceError",
            "DeviceMemoryError",
            "GenerationError",
            "JitmkError",
            "KernelTimeoutError",
            "ScheduleError",
            "SettingsError",
            "TokenizerError",
            "UnsupportedModelError",
        ),
        "jitmk.errors",
    ),
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'jitmk' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
