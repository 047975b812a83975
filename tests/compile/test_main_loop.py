"""Loops over weights and cached positions, and products wherever they are, touch no local memory; warps stay together.

Reads the machine code, where that is possible.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from tests.compile.kernels import BY_NAME, CASES, compile_shape
from tests.support.compilers import COMPILERS, require_compiler
from tests.support.sass import before_looks, main_loops, product_stretches, tensor_instructions

LONGEST_LOOP = 1000
"""Instructions; main loops have some hundred, the walk over the queue has thousands."""


MAY_BE_APART = {"sm_120a"}
"""Where the compiler is still not sure that lanes are together."""


def machine_code(name: str, arch_name: str, compiler_name: str, folder: Path) -> str:
    """A kernel, disassembled; skips the test where that cannot be done."""
    disassembler = shutil.which("nvdisasm")
    if disassembler is None:
        pytest.skip("nvdisasm of the CUDA toolkit is not in PATH")
    arch = GpuArch.parse(arch_name)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compile_shape(BY_NAME[name], arch, require_compiler(compiler_name, arch)).cubin)
    listing = subprocess.run([disassembler, "-c", str(cubin)], capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip(f"this nvdisasm does not read cubins of this compiler: {listing.stderr.strip()[:200]}")
    return listing.stdout


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize(("name", "arch_name"), CASES)
def test_no_spills_where_the_time_is_spent(name: str, arch_name: str, compiler_name: str, tmp_path: Path) -> None:
    listing = machine_code(name, arch_name, compiler_name, tmp_path)
    # What is longer is the walk over the queue, in which the weights that consumers fetch early are multiplied.
    loops = [loop for loop in main_loops(listing) if loop.instructions < LONGEST_LOOP]
    stretches = product_stretches(listing)
    tensor = tensor_instructions(listing)
    assert 0 < sum(loop.tensor for loop in loops) < tensor
    assert sum(stretch.tensor for stretch in stretches) == tensor, "each is in a stretch"
    assert [hot for hot in (*loops, *stretches) if hot.spills] == []


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize(("name", "arch_name"), [case for case in CASES if case[1] not in MAY_BE_APART])
def test_lanes_are_known_to_be_together(name: str, arch_name: str, compiler_name: str, tmp_path: Path) -> None:
    # Otherwise each vote and shuffle is there twice: for lanes that are together, and for lanes that came apart.
    listing = machine_code(name, arch_name, compiler_name, tmp_path)
    assert listing.count("VOTE") > 0
    assert listing.count("BRA.DIV") == 0


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize(("name", "arch_name"), CASES)
def test_polls_ask_before_they_look_at_the_flag(name: str, arch_name: str, compiler_name: str, tmp_path: Path) -> None:
    # Otherwise each look waits for shared memory before its loads are issued, and everybody for the look.
    polls = before_looks(machine_code(name, arch_name, compiler_name, tmp_path))
    assert polls
    assert [before for before in polls if any("LDS" in instruction for instruction in before)] == []
