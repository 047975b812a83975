"""Runs code in a process whose CUDA driver is ``fake_driver.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import jitmk

RunWithFakeDriver = Callable[..., tuple[list[str], list[str]]]

_PRELUDE = """
import ctypes
import threading
from jitmk.cuda.device import Device
from jitmk.cuda.driver import api, check, driver_version
from jitmk.cuda.launch import Launcher
from jitmk.cuda.memory import HostBuffer
from jitmk.cuda.module import Module
from jitmk.errors import DeviceError, DeviceMemoryError

class Parameters(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("second", ctypes.c_uint64)]

def says(call):
    try:
        call()
    except DeviceError as error:
        print(type(error).__name__, error)
    else:
        print("nothing was raised")

"""


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake libcuda."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake driver with")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_driver.c")
    library = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library)
    return folder


@pytest.fixture
def run(fake_driver: Path, tmp_path: Path) -> RunWithFakeDriver:
    """Runs code; returns the lines that it printed, and the calls that the driver noted."""

    def run_code(code: str, **environment: str) -> tuple[list[str], list[str]]:
        log = tmp_path / "calls"
        result = subprocess.run(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code)],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(fake_driver),
                "PYTHONPATH": str(Path(jitmk.__file__).parent.parent),
                "FAKE_LOG": str(log),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines(), log.read_text().splitlines() if log.exists() else []

    return run_code
