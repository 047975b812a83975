"""jitmk: a JIT-compiled megakernel runtime for decoding with language models.

Importing the package loads nothing but this file: what it exports is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ERRORS = (
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
)

# Exported name -> module that defines it.
_EXPORTS: dict[str, str] = {
    "load_model": "jitmk.api",
    "Model": "jitmk.engine.model",
    "TextStream": "jitmk.engine.generation",
    "GenerationResult": "jitmk.engine.result",
    "GpuArch": "jitmk.arch",
    "Settings": "jitmk.settings",
    "get_settings": "jitmk.settings",
    **dict.fromkeys(_ERRORS, "jitmk.errors"),
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
