"""How a program runs on a GPU: variants and a model become one flat CUDA source."""

from jitmk.codegen.context import BuildOptions, has_first_look, max_window, ring_chunks
from jitmk.codegen.render import KERNEL_NAME, render

__all__ = ["KERNEL_NAME", "BuildOptions", "has_first_look", "max_window", "render", "ring_chunks"]
