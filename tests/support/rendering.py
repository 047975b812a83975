"""Pieces of a kernel's source, for tests that look at or compile less than a whole kernel."""

from __future__ import annotations

import importlib
from unittest import mock

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.engine.step_programs import kernel_variants
from jitmk.model.spec import ModelSpec
from jitmk.resources import headers_dir

# By name: the package `jitmk.codegen` shows the function of the same name in the module's place.
render_module = importlib.import_module("jitmk.codegen.render")

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


def inline(source: str) -> str:
    """A source with the device library inlined, as `render` does it."""
    flat: str = render_module.inline_headers(source, headers_dir(), "test.cu")
    return flat
