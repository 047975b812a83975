"""Host memory that a GPU can write into."""

from __future__ import annotations

import pytest

from tests.unit.cuda.conftest import RunWithFakeDriver


def test_it_is_zeroed_shared_and_given_back_once(run: RunWithFakeDriver) -> None:
    printed, calls = run(
        """
        buffer = HostBuffer(Device.open(), 64)
        tokens = buffer.array(ctypes.c_int32, 4, offset=8)
        print(list(tokens), hex(buffer.device_pointer - buffer.address), buffer.size)
        tokens[1] = 5
        print(list(buffer.array(ctypes.c_int32, 16)))
        buffer.close()
        buffer.close()
        says(lambda: buffer.array(ctypes.c_int32, 1))
        """
    )
    assert printed == [
        "[0, 0, 0, 0] 0x1000 64",
        "[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
        "DeviceError the host buffer is closed",
    ]
    portable_and_mapped = 1 | 2
    assert calls == ["retain 0", f"pin 64 {portable_and_mapped}", "unpin"]


def test_it_is_given_back_when_nobody_holds_it(run: RunWithFakeDriver) -> None:
    _, calls = run("HostBuffer(Device.open(), 8)\nimport gc; gc.collect()")
    assert calls[-1] == "unpin"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("buffer.array(ctypes.c_int32, 17)", "17 values at byte 0 end at byte 68, but the buffer has 64"),
        ("buffer.array(ctypes.c_int64, 1, offset=60)", "end at byte 68"),
        ("buffer.array(ctypes.c_int32, 1, offset=-4)", "1 values at byte -4"),
        ("buffer.array(ctypes.c_int32, 0)", "0 values"),
        ("HostBuffer(buffer_device, 0)", "a host buffer has at least 1 byte, not 0"),
        ("HostBuffer(buffer_device, 1 << 30)", "DeviceMemoryError pinning 1073741824 bytes of host memory failed"),
    ],
)
def test_errors(run: RunWithFakeDriver, call: str, says: str) -> None:
    printed, _ = run(f"buffer_device = Device.open()\nbuffer = HostBuffer(buffer_device, 64)\nsays(lambda: {call})")
    assert says in printed[0]
