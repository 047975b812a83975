"""The kernels that are compiled here, and what may be asked of what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.shapes import model_spec
from jitmk.arch import GpuArch
from jitmk.codegen import BuildOptions, render
from jitmk.engine.step_programs import kernel_variants
from jitmk.jit import CompiledKernel, Compiler, build
from jitmk.model.spec import ModelSpec
from tests.support.shapes import LLAMA_1B, LLAMA_3B, LLAMA_8B, llama
from tests.support.tiny import tiny_spec

NOTHING_EXTRA = BuildOptions()

MAX_REGISTERS = 168
"""Eleven warps share four schedulers of 16384 registers each: three warps on one of them have 168 a thread."""


@dataclass(frozen=True)
class Shape:
    """A model, and how many bytes its kernel may spill (stores and loads of all its code together).

    No spill is in a loop over weights or cached positions (test_main_loop.py). What is spilled is state of the walk
    through the queue, touched once an instruction, and what a report of a hang needs.
    """

    name: str
    spec: ModelSpec
    spilled_bytes: int = 128


SHAPES = (
    Shape("1b", LLAMA_1B),
    Shape("3b", LLAMA_3B),
    Shape("8b", LLAMA_8B),
    Shape("tiny", tiny_spec()),
    Shape("head-80-biases", llama(320, 640, 2, 4, 1, 80, vocab_size=1003, qkv_bias=True, o_bias=True, mlp_bias=True)),
    Shape("head-96", llama(768, 2048, 2, 8, 8, 96, vocab_size=1000)),
    Shape("head-128-odd-vocabulary", llama(1536, 2304, 3, 12, 2, 128, vocab_size=5003)),
    Shape("head-256", llama(512, 640, 2, 8, 1, 256, vocab_size=1000)),
    Shape("mqa-16", llama(1024, 2304, 2, 16, 1, 64, vocab_size=5003, tied=True)),
    Shape("gemma-2-2b", model_spec("gemma-2-2b", 8192)),
    Shape("gpt2", model_spec("gpt2", 1024)),
    Shape("qwen3-8b", model_spec("qwen3-8b", 8192)),
)
BY_NAME = {shape.name: shape for shape in SHAPES}

ARCHS = GpuArch.supported()

# The first is compiled for every architecture; the others, which differ in shapes and parts, for one.
CASES = tuple(("1b", arch) for arch in ARCHS) + tuple((shape.name, "sm_90a") for shape in SHAPES[1:])


def compile_shape(
    shape: Shape, arch: GpuArch, compiler: Compiler, options: BuildOptions = NOTHING_EXTRA
) -> CompiledKernel:
    """The kernel of a shape, compiled once for all tests and processes of a run."""
    source = render(kernel_variants(shape.spec), shape.spec, arch, options)
    return build(source, arch, compiler=compiler)
