"""Every environment variable of jitmk, in one typed place. Nothing else in the package reads the environment.

The environment is read when :func:`get_settings` is called, never at import, and nothing is created by reading it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jitmk.errors import SettingsError

_PREFIX = "JITMK_"
_SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MAX_DEADLINE_MS = 3_600_000


@dataclass(frozen=True)
class Settings:
    """What the environment asks for. Build one with :func:`get_settings`, or directly in a test.

    Attributes:
        use_nvrtc: True forces NVRTC, False forces NVCC, None takes NVCC where there is one, else NVRTC.
        cache_dir: root of the cache, or None for the user's cache folder of this platform.
        cache_max_bytes: least recently used kernels are removed above this size, in bytes.
        debug: build kernels with line information and log in detail.
        print_compiler_command: print each compiler command to stderr before it runs.
        ptxas_verbose: print what ptxas reports (registers, spills, shared memory) to stderr after each compile.
        print_configs: print the configuration that was chosen for each kernel to stderr.
        nvcc: the NVCC to use, or None to look for one.
        nvrtc: the libnvrtc to load, or None to look for one.
        tuning: whether what `jitmk tune` stored is used.
        wait_deadline_ms: longest that a wait inside the kernel may last, in milliseconds.
        cuda_home: the CUDA toolkit's folder, as CUDA_HOME or CUDA_PATH name it.
        search_path: the PATH, in which programs are looked for.
    """

    use_nvrtc: bool | None = None
    cache_dir: Path | None = None
    cache_max_bytes: int = 2 * 2**30
    debug: bool = False
    print_compiler_command: bool = False
    ptxas_verbose: bool = False
    print_configs: bool = False
    nvcc: Path | None = None
    nvrtc: Path | None = None
    tuning: bool = True
    wait_deadline_ms: int = 2000
    cuda_home: Path | None = None
    search_path: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from ``environment`` (the process environment when None); empty variables count as unset.

        Raises:
            SettingsError: a variable has a value that it cannot have. A JITMK_ variable that does not exist is warned
                about, since it is most likely misspelt.
        """
        env = os.environ if environment is None else environment
        _warn_about_unknown(env)
        values: dict[str, Any] = {}
        for variable in VARIABLES:
            text = env.get(variable.name, "").strip()
            if text:
                values[variable.field] = variable.parse(variable, text)
        home = env.get("CUDA_HOME", "").strip() or env.get("CUDA_PATH", "").strip()
        if home:
            values["cuda_home"] = Path(home)
        return cls(search_path=env.get("PATH", os.defpath), **values)


@dataclass(frozen=True)
class Variable:
    """One environment variable: which field of Settings it sets, and how its text is read."""

    name: str
    field: str
    type: str
    default: str
    allowed: str
    help: str
    parse: Callable[[Variable, str], Any]

    def error(self, text: str, reason: str = "") -> SettingsError:
        """The error for a value that this variable cannot have."""
        why = f" ({reason})" if reason else ""
        return SettingsError(
            f"{self.name}={text!r} is not allowed{why}; allowed: {self.allowed}. "
            f"Change the variable, or unset it for the default ({self.default})"
        )


def _parse_flag(variable: Variable, text: str) -> bool:
    if text not in ("0", "1"):
        raise variable.error(text)
    return text == "1"


def _parse_switch(variable: Variable, text: str) -> bool:
    if text not in ("on", "off"):
        raise variable.error(text)
    return text == "on"


def _parse_bytes(variable: Variable, text: str) -> int:
    number = text.upper().removesuffix("IB").removesuffix("B")
    suffix = number[-1:] if number[-1:].isalpha() else ""
    digits = number.removesuffix(suffix).strip()
    if suffix not in _SUFFIXES or not (digits.isascii() and digits.isdigit()):
        raise variable.error(text)
    return int(digits) * _SUFFIXES[suffix]


def _parse_deadline(variable: Variable, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= _MAX_DEADLINE_MS:
        raise variable.error(text)
    return int(text)


def _parse_folder(variable: Variable, text: str) -> Path:
    path = _expand(variable, text)
    if path.exists() and not path.is_dir():
        raise variable.error(text, "it exists and is no folder")
    return path.absolute()


def _parse_file(variable: Variable, text: str) -> Path:
    path = _expand(variable, text)
    if not path.is_file():
        raise variable.error(text, "there is no such file")
    return path.absolute()


def _expand(variable: Variable, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise variable.error(text, str(error)) from error


def _flag(name: str, field: str, help_text: str) -> Variable:
    return Variable(name, field, "flag", "`0`", "`0` or `1`", help_text, _parse_flag)


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "JITMK_USE_NVRTC",
        "use_nvrtc",
        "flag",
        "unset",
        "`0` or `1`",
        "`1` compiles with NVRTC, `0` with NVCC; unset takes NVCC where there is one, else NVRTC.",
        _parse_flag,
    ),
    Variable(
        "JITMK_CACHE_DIR",
        "cache_dir",
        "path",
        "the user's cache folder",
        "a folder, which need not exist yet",
        "Root of the cache of compiled kernels.",
        _parse_folder,
    ),
    Variable(
        "JITMK_CACHE_MAX_BYTES",
        "cache_max_bytes",
        "bytes",
        "`2G`",
        "a whole number of bytes, optionally with the suffix `K`, `M`, `G` or `T` (powers of 1024)",
        "Above this size the least recently used kernels are removed; `0` keeps none.",
        _parse_bytes,
    ),
    _flag("JITMK_DEBUG", "debug", "Builds kernels with line information and logs in detail."),
    _flag("JITMK_PRINT_COMPILER_COMMAND", "print_compiler_command", "Prints each compiler command before it runs."),
    _flag("JITMK_PTXAS_VERBOSE", "ptxas_verbose", "Prints registers, spills and shared memory after each compile."),
    _flag("JITMK_PRINT_CONFIGS", "print_configs", "Prints the configuration that was chosen for each kernel."),
    Variable(
        "JITMK_NVCC",
        "nvcc",
        "path",
        "searched for",
        "an existing file",
        "The NVCC to use; by default the one in `PATH`, `CUDA_HOME` or `/usr/local/cuda`.",
        _parse_file,
    ),
    Variable(
        "JITMK_NVRTC",
        "nvrtc",
        "path",
        "searched for",
        "an existing file",
        "The libnvrtc to load; by default the one of the installed Python packages, else the system's.",
        _parse_file,
    ),
    Variable(
        "JITMK_TUNING",
        "tuning",
        "switch",
        "`on`",
        "`on` or `off`",
        "`off` ignores what `jitmk tune` stored; every model then runs with the defaults of the cost model.",
        _parse_switch,
    ),
    Variable(
        "JITMK_WAIT_DEADLINE_MS",
        "wait_deadline_ms",
        "milliseconds",
        "`2000`",
        f"a whole number from 1 to {_MAX_DEADLINE_MS}",
        "Longest that a wait inside the kernel may last before the kernel stops with an error.",
        _parse_deadline,
    ),
)


def get_settings() -> Settings:
    """The settings as the environment has them now; raises SettingsError for a value that is not allowed."""
    return Settings.from_environment()


def compiler_environment() -> dict[str, str]:
    """The environment in which a compiler is started.

    NVCC takes further options from NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS. They are left out: what a cubin depends
    on must be in its cache key.
    """
    ignored = {"NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"}
    return {name: value for name, value in os.environ.items() if name not in ignored}


def markdown_table() -> str:
    """The table of all variables as the README shows it, without a final newline."""
    rows = ["| variable | type | default | allowed | what it does |", "| --- | --- | --- | --- | --- |"]
    rows += [f"| `{v.name}` | {v.type} | {v.default} | {v.allowed} | {v.help} |" for v in VARIABLES]
    return "\n".join(rows)


def _warn_about_unknown(env: Mapping[str, str]) -> None:
    known = [variable.name for variable in VARIABLES]
    for name in sorted(env):
        if name.startswith(_PREFIX) and name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            warnings.warn(f"{name} is not a setting of jitmk and has no effect{hint}", stacklevel=4)


if __name__ == "__main__":
    print(markdown_table())
