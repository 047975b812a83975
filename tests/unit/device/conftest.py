"""Kernels of single opcodes on the host, compiled when they are first asked for, once for all processes of a run."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import torch

from jitmk.program.configs import Epilogue
from tests.support.megakernel_on_host import LIBRARY, SMS, HostLauncher, compile_for_host
from tests.support.model_on_host import HostModel
from tests.support.op_kernels import KERNELS, OpKernel, barrier_kernel
from tests.support.op_runner import ARENA_WORDS, KV_FLAGS, OpRunner
from tests.support.phases import matvec_variant

WIDEST = matvec_variant(512, 14336, Epilogue.RESIDUAL)
"""Beside it a kernel for sm_120a has room for a ring of three chunks."""


class HostRunners:
    """The kernels of `op_kernels.KERNELS`, and the one with barriers ("barriers"), ready to run on the host.

    Args:
        folder: that processes share.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._runners: dict[str, OpRunner] = {}

    def __getitem__(self, name: str) -> OpRunner:
        if name not in self._runners:
            launcher = HostLauncher(self.library(name), arena_words=ARENA_WORDS, kv_flags=KV_FLAGS)
            self._runners[name] = OpRunner(launcher, torch.device("cpu"), SMS, host_kernel(name))
        return self._runners[name]

    def library(self, name: str) -> Path:
        """The kernel, compiled."""
        kernel, folder = host_kernel(name), self._folder / name
        with open(self._folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.mkdir()
                compile_for_host(kernel.variants, kernel.spec, folder)
        return folder / LIBRARY

    def model(self, name: str, seed: int = 0) -> HostModel:
        """The model of a kernel that holds all that it needs."""
        kernel = host_kernel(name)
        return HostModel(kernel.spec, self.library(name), kernel.variants, seed=seed)


def host_kernel(name: str) -> OpKernel:
    """The kernel of a name."""
    return barrier_kernel(SMS) if name == "barriers" else KERNELS[name]


@pytest.fixture(scope="session")
def host_runners(shared_cache_dir: Path) -> HostRunners:
    return HostRunners(shared_cache_dir / "on-host")
