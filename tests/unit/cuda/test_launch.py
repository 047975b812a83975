"""What reaches the driver when a kernel is loaded and launched, and the errors on the way."""

from __future__ import annotations

import pytest

from tests.unit.cuda.conftest import RunWithFakeDriver

SETUP = """
device = Device.open()
module = Module(device, b"\\x7fELF-OK!", "sm_90a")
kernel = module.kernel("kernel")
parameters = Parameters(0xA, 0xB)
"""


def test_a_cooperative_launch(run: RunWithFakeDriver) -> None:
    code = """
launcher = Launcher(kernel, parameters, blocks=78, threads=512, dynamic_shared=100000)
launcher.launch(0)
parameters.first = 0xC
launcher.launch(0x77)
launcher.launch(0x77)
module.close()
module.close()
device.close()
"""
    _, calls = run(SETUP + code)
    where = "grid 78 1 1 block 512 1 1 shared 100000"
    coop = "attributes 1 id 2 value 1"
    assert calls == [
        "retain 0",
        "load \x7fELF-OK! in 0xc0de",
        "set 0xf0 8 100000",
        f"launch 0xf0 in 0xc0de {where} stream (nil) {coop} words a b extra 0",
        f"launch 0xf0 in 0xc0de {where} stream 0x77 {coop} words c b extra 0",
        f"launch 0xf0 in 0xc0de {where} stream 0x77 {coop} words c b extra 0",
        "unload 0xa0",
        "release 0",
    ]


def test_a_context_that_is_current_is_not_entered_again(run: RunWithFakeDriver) -> None:
    code = """
launcher = Launcher(kernel, parameters, blocks=1, threads=32)
check(api().cuCtxPushCurrent(device.context), "")
launcher.launch(0)
launcher.launch(0)
"""
    _, calls = run(SETUP + code, FAKE_CONTEXTS="1")
    assert calls[-3] == "push 0xc0de"
    assert all(call.startswith("launch 0xf0 in 0xc0de ") for call in calls[-2:])


def test_launches_of_a_thread_without_the_context_enter_it(run: RunWithFakeDriver) -> None:
    code = """
launcher = Launcher(kernel, parameters, blocks=1, threads=32)
check(api().cuCtxPushCurrent(device.context), "")

def use(others):
    for context in others:
        check(api().cuCtxPushCurrent(context), "")
    launcher.launch(0)
    print(int(check(api().cuCtxGetCurrent(), "")))

for others in [], [api().CUcontext(0xBEEF)]:
    thread = threading.Thread(target=use, args=[others])
    thread.start()
    thread.join()
"""
    printed, calls = run(SETUP + code)
    assert printed == ["0", str(0xBEEF)], "what was current before is so again"
    assert [call.split(" grid")[0] for call in calls[-2:]] == ["launch 0xf0 in 0xc0de"] * 2


def test_an_ordinary_launch_may_have_more_blocks_than_fit(run: RunWithFakeDriver) -> None:
    code = "Launcher(kernel, parameters, blocks=5000, threads=32, cooperative=False).launch(0)"
    _, calls = run(SETUP + code)
    assert "grid 5000 1 1 block 32 1 1 shared 0 stream (nil) attributes 0 id -1" in calls[-1]


def test_what_the_kernel_needs(run: RunWithFakeDriver) -> None:
    printed, _ = run(SETUP + "print(kernel.registers, kernel.static_shared, kernel.local_bytes, kernel.max_threads)")
    assert printed == ["80 1024 16 768"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("Module(device, b'TOONEW', 'sm_90a')", "the driver (CUDA 12.9) cannot load the kernel for sm_90a on GPU 0"),
        ("Module(device, b'TOONEW', 'sm_90a')", "JITMK_USE_NVRTC=1"),
        ("Module(device, b'TOOBIG', 'sm_90a')", "DeviceMemoryError loading the kernel"),
        ("Module(device, b'', 'sm_100a')", "the kernel was compiled for sm_100a, but GPU 0 (Fake GPU 0, sm_90a"),
        ("module.kernel('other')", "looking for the kernel 'other' in the cubin failed: CUDA_ERROR_NOT_FOUND (500)"),
        (
            "Launcher(kernel, parameters, blocks=79, threads=512)",
            "79 blocks of the kernel kernel must be on GPU 0 (Fake GPU 0, sm_90a, 78 SMs) at once, but it holds 78",
        ),
        ("Launcher(kernel, parameters, blocks=1, threads=640)", "but it holds 0"),
        ("Launcher(kernel, parameters, blocks=1, threads=769)", "takes 1 to 768 threads a block, not 769"),
        (
            "Launcher(kernel, parameters, blocks=1, threads=32, dynamic_shared=232448)",
            "1024 bytes of static and 232448 of dynamic shared memory a block, but GPU 0",
        ),
        (
            "Launcher(kernel, (ctypes.c_char * 40000)(), blocks=1, threads=32)",
            "kernel parameters of 40000 bytes; a kernel takes at most 32764",
        ),
        (
            "Launcher(kernel, Parameters(0xBAD, 0), blocks=1, threads=32).launch(0)",
            "launching kernel on GPU 0 (Fake GPU 0, sm_90a, 78 SMs) failed: CUDA_ERROR_LAUNCH_FAILED (719): a text",
        ),
    ],
)
def test_errors(run: RunWithFakeDriver, call: str, says: str) -> None:
    printed, _ = run(SETUP + f"says(lambda: {call})")
    assert says in printed[0]
