"""Rendering: templates and the device library become one flat source, complete in itself.

Headers are inlined where they are included, each once, with `#line` directives: a compile error names the real file,
and whoever keys a cache by the source has keyed it by everything that goes into it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import jinja2

from jitmk.arch import GpuArch
from jitmk.codegen import abi
from jitmk.codegen.context import PLAIN, BuildOptions, render_context
from jitmk.errors import CodegenError
from jitmk.model.spec import ModelSpec
from jitmk.program import configs, isa, packing, program
from jitmk.resources import headers_dir, templates_dir

KERNEL_NAME = "jitmk_decode"

_INCLUDE = re.compile(r'^#include "(jitmk/[\w/]+\.cuh)"$')


def render(variants: Sequence[program.Variant], spec: ModelSpec, arch: GpuArch, build: BuildOptions = PLAIN) -> str:
    """The CUDA source of a megakernel.

    Args:
        variants: the code that its programs need; an instruction's `variant` is an index into this.
        spec: the model.
        arch: the GPU; its name, shared memory and number of SMs enter the source.
        build: what is built in beside the model.

    Raises:
        CodegenError: the model does not fit the GPU, or a header is missing.
    """
    template = environment().get_template("megakernel.cu.j2")
    rendered = template.render(
        kernel=render_context(variants, spec, arch, build),
        kernel_name=KERNEL_NAME,
        isa=isa,
        mask_of=_mask_of,
        operand_index=isa.operand_index,
        program=program,
        configs=configs,
        packing=packing,
        abi=abi,
        waits=_members(abi.Wait),
        marks=_members(abi.Mark),
        report_words=_members(abi.ReportWord),
    )
    return inline_headers(rendered, headers_dir(), "templates/megakernel.cu.j2")


def environment() -> jinja2.Environment:
    """The one Jinja environment that renders device code; a name that the context lacks is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dir()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _mask_of(groups: Sequence[tuple[int, ...]]) -> str:
    """The variants of these groups, as the bits of a number."""
    return hex(sum(1 << variant for group in groups for variant in group))


def _members(kind: type[IntEnum]) -> list[tuple[str, int]]:
    return [(member.name, member.value) for member in kind]


def inline_headers(source: str, root: Path, label: str) -> str:
    """Replaces every `#include "jitmk/..."` by the file's text, once, in the order of first use.

    Args:
        source: rendered text.
        root: the folder that holds `jitmk/`.
        label: what compile errors call the source.

    Raises:
        CodegenError: a header does not exist, or something outside the device library is included.
    """
    seen: set[str] = set()

    def expand(text: str, label: str) -> list[str]:
        out = [f'#line 1 "{label}"']
        for number, line in enumerate(text.splitlines(), start=1):
            match = _INCLUDE.match(line)
            if match is None:
                if line.startswith("#include"):
                    raise CodegenError(f"{label}:{number}: {line}: device code includes only the device library")
                if line != "#pragma once":
                    out.append(line)
                else:
                    out.append("")
                continue
            name = match.group(1)
            if name in seen:
                out.append("")
                continue
            seen.add(name)
            path = root / name
            if not path.is_file():
                raise CodegenError(f"{label}:{number}: {name} is not in the device library at {root}")
            out += expand(path.read_text(encoding="utf-8"), f"csrc_headers/{name}")
            out.append(f'#line {number + 1} "{label}"')
        return out

    return "\n".join(expand(source, label)) + "\n"
