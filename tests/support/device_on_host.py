"""Runs kernels on the host, whole grids of them: the device's own text, compiled by the host's C++ compiler."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from jitmk.codegen.prefill import PREFILL_KERNELS, render_prefill
from jitmk.model.spec import ModelSpec

_SHIM = Path(__file__).with_name("cuda_grid_on_host.h")

# The functions of the kernels that are an instruction of the GPU, and what stands for them.
_ON_HOST = {
    "u32 pack_bf16(float low, float high)": "return bf16_bits(low) | bf16_bits(high) << 16;",
    "float exp2_approx(float x)": "return std::exp2(x);",
}

BLOCKS = 3
"""CTAs of every grid here: few, so that each has to come back for more work."""


class HostKernels:
    """Implements `prefill_kernels.Kernels` on tensors of the CPU. Skips the test where there is no g++.

    Args:
        spec: the model.
        folder: for source and library.
    """

    def __init__(self, spec: ModelSpec, folder: Path) -> None:
        source = render_prefill(spec)
        for function, body in _ON_HOST.items():
            source, replaced = re.subn(rf"({re.escape(function)}) \{{[^}}]*\}}", rf"\1 {{ {body} }}", source)
            assert replaced == 1, f"{function} looks different now"
        self._spec = spec
        self._library = ctypes.CDLL(str(_compile(source, PREFILL_KERNELS, folder)))

    def launch(self, name: str, **fields: float) -> None:
        """As `Kernels.launch`; returns when the grid has finished."""
        kernel = PREFILL_KERNELS[name]
        parameters = kernel.structure()
        assert set(fields) == {field.name for field in kernel.fields}
        for field, value in fields.items():
            setattr(parameters, field, value)
        getattr(self._library, f"run_{name}")(ctypes.byref(parameters), BLOCKS, kernel.threads(self._spec))


def _compile(source: str, kernels: Iterable[str], folder: Path) -> Path:
    """A library with a `run_<name>(parameter, blocks, threads)` for each kernel."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine, and without a GPU nothing else runs device functions")
    entries = "\n".join(
        f'extern "C" void run_{name}(const jitmk::prefill::{PREFILL_KERNELS[name].params}* p, int blocks, int threads) '
        f"{{ host_grid::run(blocks, threads, [&] {{ {name}(*p); }}); }}"
        for name in kernels
    )
    text, library = folder / "kernels.cpp", folder / "kernels.so"
    text.write_text(f'#include "{_SHIM.name}"\n{source}\n{entries}\n', encoding="utf-8")
    options = ["-std=c++17", "-O1", "-w", "-fpermissive", "-ffp-contract=off", "-fPIC", "-shared"]
    built = subprocess.run(
        [compiler, *options, "-I", str(_SHIM.parent), "-o", str(library), str(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[:4000]
    return library
