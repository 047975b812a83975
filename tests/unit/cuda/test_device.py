"""Devices, without one: what is read off the driver, and what is said when there is nothing to read."""

from __future__ import annotations

import ctypes

import pytest

from jitmk.cuda.device import Device
from jitmk.errors import DeviceError
from tests.unit.cuda.conftest import RunWithFakeDriver


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver() -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*use backend='reference' without one"):
        Device.open()


def test_what_the_driver_reports(run: RunWithFakeDriver) -> None:
    printed, calls = run(
        """
        device = Device.open(1)
        print(device)
        print(device.arch.shared_bytes_per_block, device.arch.registers_per_sm, device.arch.l2_bytes)
        print(device.total_bytes, device.clocks.sm_khz, device.clocks.memory_khz, device.clocks.bus_bits)
        print(driver_version(), device.driver)
        """,
        FAKE_COUNT="2",
    )
    assert printed == [
        "GPU 1 (Fake GPU 1, sm_90a, 79 SMs)",
        f"232448 65536 {33 << 20}",
        f"{1 << 37} 1980000 3201000 6144",
        "(12, 9) (12, 9)",
    ]
    assert calls == [], "asking for properties must not create a context"


def test_the_context_is_taken_once_and_given_back(run: RunWithFakeDriver) -> None:
    printed, calls = run(
        """
        with Device.open() as device:
            print(device.memory())
            device.synchronize()
        device.close()
        """
    )
    assert printed == ["(5, 6)"]
    assert calls == ["retain 0", "release 0"]


@pytest.mark.parametrize(
    ("environment", "code", "says"),
    [
        ({"FAKE_COUNT": "0"}, "Device.open()", "there is no GPU on this machine, or CUDA_VISIBLE_DEVICES hides it"),
        ({}, "Device.open(1)", "there is no GPU 1: the driver has 1, counted from 0"),
        ({}, "Device.open(-1)", "there is no GPU -1"),
        (
            {"FAKE_MAJOR": "8", "FAKE_MINOR": "6"},
            "Device.open()",
            "GPU 0 (Fake GPU 0) cannot run the megakernel: GPU architecture 'compute capability 8.6' is not supported",
        ),
        ({"FAKE_COOPERATIVE": "0"}, "Device.open()", "does not support cooperative launches"),
    ],
)
def test_refusals(run: RunWithFakeDriver, environment: dict[str, str], code: str, says: str) -> None:
    printed, _ = run(f"says(lambda: {code})", **environment)
    assert printed[0].startswith("DeviceError ")
    assert says in printed[0]


@pytest.mark.parametrize(("major", "minor", "name"), [(10, 0, "sm_100a"), (10, 3, "sm_103a"), (12, 0, "sm_120a")])
def test_other_architectures(run: RunWithFakeDriver, major: int, minor: int, name: str) -> None:
    printed, _ = run("print(Device.open().arch.name)", FAKE_MAJOR=str(major), FAKE_MINOR=str(minor))
    assert printed == [name]
