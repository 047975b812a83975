"""Kernels of single opcodes on the host, compiled when they are first asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.megakernel_on_host import SMS, HostLauncher, compile_for_host
from tests.support.op_kernels import KERNELS, OpKernel, barrier_kernel
from tests.support.op_runner import ARENA_WORDS, KV_FLAGS, OpRunner


class HostRunners:
    """The kernels of `op_kernels.KERNELS`, and the one with barriers ("barriers"), ready to run on the host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runners: dict[str, OpRunner] = {}

    def __getitem__(self, name: str) -> OpRunner:
        if name not in self._runners:
            kernel = host_kernel(name)
            folder = self._folder / name
            folder.mkdir()
            library = compile_for_host(kernel.variants, kernel.spec, folder)
            launcher = HostLauncher(library, arena_words=ARENA_WORDS, kv_flags=KV_FLAGS)
            self._runners[name] = OpRunner(launcher, torch.device("cpu"), SMS, kernel.variants)
        return self._runners[name]


def host_kernel(name: str) -> OpKernel:
    """The kernel of a name."""
    return barrier_kernel(SMS) if name == "barriers" else KERNELS[name]


@pytest.fixture(scope="session")
def host_runners(tmp_path_factory: pytest.TempPathFactory) -> HostRunners:
    return HostRunners(tmp_path_factory.mktemp("kernels"))
