"""How a program runs on a GPU: variants and a model become one flat CUDA source."""

from jitmk.codegen.context import BuildOptions, ring_chunks
from jitmk.codegen.render import KERNEL_NAME, render

__all__ = ["KERNEL_NAME", "BuildOptions", "render", "ring_chunks"]
