"""The kernels of prefill compile for every architecture, by every compiler, with every part that a model can have."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen.prefill import PREFILL_KERNELS, render_prefill
from jitmk.jit import build
from jitmk.model.spec import ModelSpec
from tests.compile.kernels import ARCHS
from tests.support.compilers import COMPILERS, require_compiler
from tests.support.features import FEATURES, feature_spec
from tests.support.shapes import LLAMA_1B, llama

SPECS = {"1b": LLAMA_1B, "wide": llama(16384, 16384, 1, 64, 8, 256), **{name: feature_spec(name) for name in FEATURES}}
CASES = tuple(("1b", arch, compiler) for arch in ARCHS for compiler in COMPILERS) + tuple(
    (name, "sm_90a", "nvrtc") for name in SPECS if name != "1b"
)


@pytest.mark.parametrize(("name", "arch_name", "compiler_name"), CASES)
def test_they_compile(name: str, arch_name: str, compiler_name: str) -> None:
    arch = GpuArch.parse(arch_name)
    spec: ModelSpec = SPECS[name]
    kernel = build(render_prefill(spec), arch, compiler=require_compiler(compiler_name, arch))
    assert kernel.cubin[:4] == b"\x7fELF"
    assert all(entry.encode() in kernel.cubin for entry in PREFILL_KERNELS)
    assert kernel.info.registers is not None and kernel.info.spills is not None, kernel.log
    # A row's values stay in registers; what the compiler spills of an address is no loop's.
    assert kernel.info.spills <= 16, kernel.log
    assert kernel.info.registers * max(entry.threads(spec) for entry in PREFILL_KERNELS.values()) <= 65536
