"""Runs megakernels on the host: what is rendered for a GPU, compiled by the host's C++ compiler, with all its threads.

Only the folder `ptx` of the device library, one instruction a function, is replaced (by `ptx_on_host`), and
`machine_on_host.h` says how threads take turns. A launch that cannot come to its end, or in which lanes of a warp come
apart, is an error.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.codegen.abi import HOST_TOKENS, REPORT_WORDS, STOP_BIT, KernelParams
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.launcher import FilterMemory, describe, place
from jitmk.engine.step_programs import DeviceProgram
from jitmk.model.spec import ModelSpec
from jitmk.program.program import Variant
from jitmk.resources import headers_dir

_HERE = Path(__file__).parent

SMS = 3
"""CTAs of every launch: enough for each to wait for others."""

LIBRARY = "kernel.so"

_ENTRY = """
alignas(128) unsigned char shared_memory[1];

extern "C" int run_megakernel(const jitmk::isa::Params* params, int ctas, unsigned seed) {
  using jitmk::Geometry, jitmk::Ops;
  std::vector<unsigned char*> shared;
  for (int i = 0; i < ctas; i++) {
    shared.push_back(static_cast<unsigned char*>(std::aligned_alloc(128, (Geometry::shared_bytes + 127) / 128 * 128)));
    std::memset(shared.back(), 0xff, Geometry::shared_bytes);
  }
  const auto body = [&] { jitmk::vm::run<Geometry, Ops>(*params, shared[blockIdx.x]); };
  const bool done = machine::run(ctas, jitmk::vm::THREADS, seed, body);
  for (unsigned char* block : shared) std::free(block);
  return done ? 0 : 1;
}
"""


def compile_for_host(
    variants: Sequence[Variant],
    spec: ModelSpec,
    folder: Path,
    mistake: tuple[str, str, str] | None = None,
    arch: str = "sm_90a",
) -> Path:
    """The library that `HostLauncher` loads; skips the test where there is no g++.

    Args:
        variants, spec: as for `render`.
        folder: an empty one.
        mistake: a header of the device library, something that it says, and what it says here instead.
        arch: a GPU, for the size of its shared memory.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine, and without a GPU nothing else runs device functions")
    headers = folder / "csrc_headers"
    shutil.copytree(headers_dir(), headers)
    shutil.copytree(_HERE / "ptx_on_host", headers / "jitmk" / "ptx", dirs_exist_ok=True)
    if mistake is not None:
        header = headers / "jitmk" / mistake[0]
        text = header.read_text(encoding="utf-8")
        assert text.count(mistake[1]) == 1, f"{mistake[0]} looks different now"
        header.write_text(text.replace(mistake[1], mistake[2]), encoding="utf-8")
    # By name: the package `jitmk.codegen` shows the function of the same name in the module's place.
    with mock.patch.object(importlib.import_module("jitmk.codegen.render"), "headers_dir", lambda: headers):
        device = render(variants, spec, GpuArch.parse(arch))
    source, library = folder / "kernel.cpp", folder / LIBRARY
    source.write_text(f'#include "machine_on_host.h"\n{device}\n#line 1 "entry"\n{_ENTRY}', encoding="utf-8")
    # No fortified longjmp: it takes a jump to another fiber for a mistake.
    options = ["-std=c++17", "-Og", "-w", "-fpermissive", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-I", str(_HERE)]
    command = [compiler, *options, "-o", str(library), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[:4000]
    return library


class HostLauncher:
    """Launches a kernel as `MegakernelLauncher` does, over tensors of the CPU.

    Args:
        library: of `compile_for_host`.
        arena_words: words of the largest program.
        kv_flags: layers * kv_heads.
        seed: who takes turns with whom.
    """

    def __init__(self, library: Path, *, arena_words: int, kv_flags: int, seed: int = 0) -> None:
        self._library = ctypes.CDLL(str(library))
        self._seed = seed
        self.words = torch.zeros(arena_words, dtype=torch.int64)
        self._tokens = torch.zeros(HOST_TOKENS, dtype=torch.int64)
        self._buffers = {
            "words": self.words,
            "token_words": torch.zeros(SMS, dtype=torch.int64),
            "kv_ready": torch.zeros(kv_flags, dtype=torch.int32),
            "halt": torch.zeros(1, dtype=torch.int32),
            "host_tokens": self._tokens,
            "report": torch.zeros(REPORT_WORDS, dtype=torch.int32),
        }
        pointers = {name: tensor.data_ptr() for name, tensor in self._buffers.items()}
        self.params = KernelParams(sms=SMS, window=3, window_ahead=2, deadline_ns=10**18, **pointers)
        self._filters = FilterMemory(torch.device("cpu"))
        self._next_epoch = 1

    def launch(
        self,
        program: DeviceProgram,
        token: int,
        position: int,
        steps: int,
        sampling: DeviceSampling,
        *,
        logits: torch.Tensor | None = None,
        forced: torch.Tensor | None = None,
    ) -> int:
        """As `MegakernelLauncher.launch`; returns when the grid has finished."""
        epoch = self._next_epoch
        self._next_epoch += steps
        describe(self.params, program, sampling, self._filters)
        place(self.params, token, position, steps, epoch, logits, forced)
        self._seed += 1
        failed = self._library.run_megakernel(ctypes.byref(self.params), SMS, self._seed)
        assert not failed, "the launch went wrong; see what it printed"
        return epoch

    def token(self, epoch: int) -> int:
        """The token that the step of that epoch sampled."""
        word = int(self._tokens[epoch % HOST_TOKENS])
        assert word >> 32 == epoch, "the step has not sampled"
        return word & 0xFFFFFFFF & ~STOP_BIT

    def synchronize(self) -> None:
        """Nothing is under way between two launches."""

    def close(self) -> None:
        """Nothing to free."""
