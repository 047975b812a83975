"""Pieces of a kernel's source, for tests that look at or compile less than a whole kernel."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from unittest import mock

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.engine.step_programs import kernel_variants
from jitmk.model.spec import ModelSpec
from jitmk.resources import headers_dir

# By name: the package `jitmk.codegen` shows the function of the same name in the module's place.
render_module = importlib.import_module("jitmk.codegen.render")

_PTX_FOR_WARPS = Path(__file__).with_name("ptx_for_warps")
_CONVERSIONS = Path(__file__).parent / "ptx_on_host" / "convert.cuh"

_FIRST_HEADER = '#include "jitmk/vm/kernel.cuh"'


def model_part(spec: ModelSpec, arch: GpuArch) -> str:
    """What the templates make of a model, before the device library is inlined."""
    with mock.patch.object(render_module, "inline_headers", side_effect=lambda source, *_: source):
        return render(kernel_variants(spec), spec, arch)


def isa_part(spec: ModelSpec, arch: GpuArch) -> str:
    """The rendered instruction set and launch parameter alone, before inlining."""
    before, found, _ = model_part(spec, arch).partition(_FIRST_HEADER)
    assert found, f"the template no longer includes {_FIRST_HEADER}"
    return before


def inline(source: str, headers: Path | None = None) -> str:
    """A source with the device library inlined, as `render` does it; or with another library."""
    flat: str = render_module.inline_headers(source, headers or headers_dir(), "test.cu")
    return flat


def inline_for_host(source: str, folder: Path, of_warps: bool = True) -> str:
    """The same with what stands on the host for single instructions of the GPU, as far as tests need them.

    Args:
        folder: for the library that is put together.
        of_warps: for those that exchange something or wait as well, not for arithmetic alone.
    """
    headers = folder / "headers"
    shutil.copytree(headers_dir(), headers)
    shutil.copy(_CONVERSIONS, headers / "jitmk" / "ptx")
    if of_warps:
        shutil.copytree(_PTX_FOR_WARPS, headers / "jitmk" / "ptx", dirs_exist_ok=True)
    return inline(source, headers)
