"""What holds for every test: jitmk's settings are the defaults, its cache is the run's own, a GPU is optional."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import pytest

# Before anything imports torch: the suite runs in several processes at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@cache
def _why_no_gpu() -> str | None:
    """Why tests marked ``gpu`` cannot run here, or None if they can. Asks the driver itself, without torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine"
    count, major = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no GPU on this machine"
    compute_capability_major = 75
    driver.cuDeviceGetAttribute(ctypes.byref(major), compute_capability_major, 0)
    return None if major.value >= 9 else f"needs compute capability 9.0 or newer, GPU 0 has major {major.value}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts that tests compare with")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether checked-in texts are to be written instead of compared with."""
    return bool(request.config.getoption("--update-golden"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if gpu else None
    if reason is not None:
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for the whole run, shared by its processes, so that nothing is compiled twice."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return base / "jitmk-cache"


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, shared_cache_dir: Path) -> None:
    """No setting of whoever runs the tests reaches them, and they leave the user's cache alone."""
    for name in list(os.environ):
        if name.startswith("JITMK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JITMK_CACHE_DIR", str(shared_cache_dir))
