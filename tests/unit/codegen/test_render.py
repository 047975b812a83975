"""What is rendered: a golden file, strictness, and the inlining of headers with the lines that errors name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jinja2
import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import KERNEL_NAME, render
from jitmk.codegen.prefill import render_prefill
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import CodegenError, CompileError
from jitmk.resources import headers_dir, templates_dir
from tests.support.compilers import COMPILERS, require_compiler
from tests.support.rendering import inline, model_part, render_module
from tests.support.tiny import tiny_spec

ARCH = GpuArch.parse("sm_90a")
# Every feature of the templates: biases, an odd vocabulary, groups that do not divide evenly, both kinds of attention.
SPEC = tiny_spec(num_heads=6, num_kv_heads=2, qkv_bias=True, o_bias=True, mlp_bias=True)
GOLDEN = Path(__file__).parent / "golden" / "tiny.cu"


def test_golden_source(update_golden: bool) -> None:
    """The device code of one model, as text: a change of it is meant, and seen in review."""
    source = model_part(SPEC, ARCH)
    if update_golden:
        GOLDEN.write_text(source, encoding="utf-8")
    assert source == GOLDEN.read_text(encoding="utf-8"), "if the change is meant: pytest --update-golden"


def test_same_input_same_source() -> None:
    """The cache is keyed by the source: rendering must not depend on anything else."""
    assert render(kernel_variants(SPEC), SPEC, ARCH) == render(kernel_variants(SPEC), SPEC, ARCH)


def test_a_missing_variable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(templates_dir(), templates)
    main = templates / "megakernel.cu.j2"
    main.write_text(main.read_text() + "// {{ kernel.no_such_field }}\n")
    monkeypatch.setattr(render_module, "templates_dir", lambda: templates)
    with pytest.raises(jinja2.UndefinedError, match="no_such_field"):
        render(kernel_variants(SPEC), SPEC, ARCH)


def test_every_header_once_and_nothing_left_to_include() -> None:
    used: set[str] = set()
    for source in (render(kernel_variants(SPEC), SPEC, ARCH), render_prefill(SPEC)):
        assert "#include" not in source and "#pragma once" not in source
        names = re.findall(r'^#line 1 "csrc_headers/(.+)"$', source, re.MULTILINE)
        assert len(names) == len(set(names))
        used |= set(names)
    there = [str(path.relative_to(headers_dir())) for path in sorted(headers_dir().rglob("*.cuh"))]
    assert sorted(used) == there, "each header once, and no header that nothing includes"


def test_lines_are_those_of_the_files() -> None:
    """Every line that is not a directive stands where its `#line` says."""
    files = {f"csrc_headers/{p.relative_to(headers_dir())}": p.read_text() for p in headers_dir().rglob("*.cuh")}
    files["templates/megakernel.cu.j2"] = model_part(SPEC, ARCH)
    lines = {name: text.splitlines() for name, text in files.items()}
    name, number, checked = "", 0, 0
    for line in render(kernel_variants(SPEC), SPEC, ARCH).splitlines():
        directive = re.fullmatch(r'#line (\d+) "(.+)"', line)
        if directive:
            number, name = int(directive[1]), directive[2]
            continue
        original = lines[name][number - 1]
        if not original.startswith(("#include", "#pragma once")):
            assert line == original, f"{name}:{number}"
            checked += 1
        number += 1
    assert checked > 500


@pytest.mark.parametrize("compiler_name", COMPILERS)
def test_compile_errors_name_the_header_and_its_line(
    compiler_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = require_compiler(compiler_name, ARCH)
    headers = tmp_path / "csrc_headers"
    shutil.copytree(headers_dir(), headers)
    broken = headers / "jitmk" / "vm" / "words.cuh"
    lines = broken.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "word_epoch(u64 word)" in line)
    lines[at] = lines[at].replace("u64 word", "no_such_type word")
    broken.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(render_module, "headers_dir", lambda: headers)
    with pytest.raises(CompileError) as caught:
        compiler.compile(render(kernel_variants(SPEC), SPEC, ARCH), ARCH)
    assert re.search(rf"csrc_headers/jitmk/vm/words\.cuh\({at + 1}\): error: .*no_such_type", caught.value.log)


@pytest.mark.parametrize("include", ["#include <cstdint>", '#include "cuda_bf16.h"', '#include "jitmk/../../secret.h"'])
def test_only_the_device_library_can_be_included(include: str) -> None:
    with pytest.raises(CodegenError, match=r"test\.cu:2: .*includes only the device library"):
        inline(f"// first line\n{include}\n")


def test_a_missing_header_is_named() -> None:
    with pytest.raises(CodegenError, match=r"test\.cu:1: jitmk/vm/no_such\.cuh is not in the device library"):
        inline('#include "jitmk/vm/no_such.cuh"\n')


def test_the_kernel_has_c_linkage_and_one_parameter() -> None:
    source = model_part(SPEC, ARCH)
    assert re.search(
        rf'extern "C" __global__ void .*\b{KERNEL_NAME}\(const __grid_constant__ \S*Params params\)', source
    )
