"""What the GPU tests share: the GPU, settings of their own, and kernels that are compiled side by side, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from jitmk import jit
from jitmk.codegen import render
from jitmk.cuda.device import Device
from jitmk.engine.launcher import MegakernelLauncher
from jitmk.settings import Settings
from tests.gpu.live_models import LiveModels
from tests.support.op_kernels import KERNELS
from tests.support.op_runner import ARENA_WORDS, KV_FLAGS, Data, OpRunner

DEADLINE_MS = 2000


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The GPU. Tests marked `gpu` are skipped before this where there is none; here where torch cannot use it."""
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no GPU that it can use")
    torch.zeros(1, device="cuda")  # makes the context that the driver calls below share with torch
    return Device.open()


@pytest.fixture(scope="session")
def gpu_settings(shared_cache_dir: Path) -> Settings:
    """Default settings, with the cache of this run, for fixtures that outlive a test."""
    kept = {name: os.environ[name] for name in ("PATH", "CUDA_HOME", "CUDA_PATH") if name in os.environ}
    return Settings.from_environment({**kept, "JITMK_CACHE_DIR": str(shared_cache_dir)})


class OpRunners:
    """The kernels of `op_kernels.KERNELS`, ready to run. All are compiled in the background from the first use on."""

    def __init__(self, gpu: Device, settings: Settings, pool: ThreadPoolExecutor) -> None:
        self._gpu = gpu
        self._settings = settings
        self._compiled = {name: pool.submit(self._compile, name) for name in KERNELS}
        self._runners: dict[str, OpRunner] = {}

    def __getitem__(self, name: str) -> OpRunner:
        if name not in self._runners:
            compiled: Future[jit.CompiledKernel] = self._compiled[name]
            launcher = MegakernelLauncher(
                self._gpu,
                compiled.result().cubin,
                arena_words=ARENA_WORDS,
                kv_flags=KV_FLAGS,
                deadline_ms=DEADLINE_MS,
                window=3,
                window_ahead=3,
                first_look=100,
                operands=Data().parameters(),
            )
            device = torch.device("cuda", self._gpu.index)
            self._runners[name] = OpRunner(launcher, device, self._gpu.arch.sm_count, KERNELS[name])
        return self._runners[name]

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()

    def _compile(self, name: str) -> jit.CompiledKernel:
        kernel = KERNELS[name]
        arch = self._gpu.arch
        return jit.build(render(kernel.variants, kernel.spec, arch), arch, settings=self._settings)


@pytest.fixture(scope="session")
def op_runners(gpu: Device, gpu_settings: Settings) -> Iterator[OpRunners]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        runners = OpRunners(gpu, gpu_settings, pool)
        yield runners
        runners.close()


@pytest.fixture(scope="session")
def models(gpu: Device, gpu_settings: Settings) -> Iterator[LiveModels]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        live = LiveModels(gpu, gpu_settings, pool)
        yield live
        live.close()
