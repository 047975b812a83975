"""Runs device functions that are plain arithmetic on the host: the same text, compiled by the host's C++ compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SHIM = Path(__file__).with_name("cuda_on_host.h")


def run_on_host(device_source: str, main: str, folder: Path) -> list[list[str]]:
    """Compiles a flat device source with a `main` behind it and runs it; skips the test where there is no g++.

    Args:
        device_source: CUDA C++ that includes nothing.
        main: statements; `std::printf` is there.
        folder: for source and program.

    Returns:
        The fields of each line that it printed.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine, and without a GPU nothing else runs device functions")
    source, program = folder / "host.cpp", folder / "host"
    source.write_text(
        f'#include <cstdio>\n#include "{_SHIM.name}"\n{device_source}\nint main() {{\n{main}\n}}\n', encoding="utf-8"
    )
    # No contraction: the host must round after each operation, as the definitions in Python do. Permissive: templates
    # that are not instantiated here may call what only a GPU has.
    options = ["-std=c++17", "-O1", "-w", "-fpermissive", "-ffp-contract=off", "-I", str(_SHIM.parent)]
    built = subprocess.run(
        [compiler, *options, "-o", str(program), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[:4000]
    output = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    return [line.split() for line in output.splitlines()]
