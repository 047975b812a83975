"""What a launch fills in, where it goes, and what it does not do twice; driver and streams are pretended."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.codegen.abi import KernelParams
from jitmk.engine import launcher
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.launcher import LAST_TOKEN, MegakernelLauncher
from jitmk.engine.step_programs import Head
from jitmk.errors import DeviceError
from jitmk.reference.ops.sample_filter import Filters

GREEDY, DRAWN = DeviceSampling(), DeviceSampling(0.5, seed=7, filters=Filters(top_k=3))


@dataclass(eq=False)
class Stream:
    """A stream that notes what it is asked for."""

    cuda_stream: int
    events: list[Any] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.events.append(("waits for", other.cuda_stream))

    def synchronize(self) -> None:
        self.events.append("synchronize")


class Torch:
    """Torch whose GPU is the CPU, and whose current stream is `stream`."""

    def __init__(self) -> None:
        self.stream = Stream(0)
        self.looked_up = 0
        self.cuda = SimpleNamespace(current_stream=self.current_stream, synchronize=lambda _: None)

    def current_stream(self, device: torch.device) -> Stream:
        self.looked_up += 1
        return self.stream

    def device(self, kind: str, index: int) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Launches:
    """In the place of `cuda.Launcher`: the parameters and the stream of each launch."""

    made: list[tuple[KernelParams, int]]

    def __init__(self, kernel: object, parameters: KernelParams, **grid: object) -> None:
        self._parameters = parameters
        Launches.made = []

    def launch(self, stream: int) -> None:
        Launches.made.append((KernelParams.from_buffer_copy(self._parameters), stream))


class Memory:
    """In the place of `HostBuffer`."""

    def __init__(self, gpu: object, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size)
        self.device_pointer = ctypes.addressof(self._memory)

    def array(self, kind: Any, length: int) -> Any:
        return (kind * length).from_buffer(self._memory)


class Program:
    """A program whose queues are a tensor."""

    def __init__(self, words: int = 8) -> None:
        self.program = SimpleNamespace(arena_words=words)
        self.queues = torch.zeros((2, 3, 32), dtype=torch.int32)
        self.head = Head(vocab_size=16, instructions=2)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Torch:
    made = Torch()
    monkeypatch.setattr(launcher, "torch", made)
    monkeypatch.setattr(launcher, "Launcher", Launches)
    monkeypatch.setattr(launcher, "HostBuffer", Memory)
    monkeypatch.setattr(launcher, "Module", lambda *_: SimpleNamespace(kernel=lambda name: name))
    return made


@pytest.fixture
def made(pretended: Torch) -> Any:
    """A launcher; anything goes for its programs."""
    gpu: Any = SimpleNamespace(index=0, arch=GpuArch.parse("sm_90a"))
    return MegakernelLauncher(
        gpu, b"", arena_words=8, kv_flags=1, deadline_ms=1, window=3, window_ahead=2, first_look=0, operands={}
    )


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was described to the kernel."""
    original, calls = launcher.describe, []

    def describe(params: KernelParams, program: Any, sampling: DeviceSampling, memory: Any) -> None:
        calls.append((program, sampling))
        original(params, program, sampling, memory)

    monkeypatch.setattr(launcher, "describe", describe)
    return calls


def test_a_launch_owns_its_epochs_and_forgets_the_tensors_of_the_one_before(made: Any) -> None:
    program, logits, forced = Program(), torch.zeros(16), torch.zeros(4, dtype=torch.int32)
    assert made.launch(program, 9, 5, 4, GREEDY, logits=logits, forced=forced) == 1
    assert made.launch(program, LAST_TOKEN, 9, 16, GREEDY) == 5
    assert made.launch(program, 3, 0, 1, GREEDY) == 21
    names = "first_token", "position", "steps", "epoch", "logits", "forced_tokens"
    assert [tuple(getattr(params, name) for name in names) for params, _ in Launches.made] == [
        (9, 5, 4, 1, logits.data_ptr(), forced.data_ptr()),
        (LAST_TOKEN, 9, 16, 5, 0, 0),
        (3, 0, 1, 21, 0, 0),
    ]


def test_program_and_sampling_are_described_when_they_change(made: Any, described: list[Any]) -> None:
    one, other = Program(), Program()
    runs = [(one, GREEDY), (one, GREEDY), (one, DRAWN), (one, DRAWN), (other, DRAWN), (one, GREEDY)]
    for program, sampling in runs:
        made.launch(program, 0, 0, 1, sampling)
    assert described == [runs[0], runs[2], runs[4], runs[5]]
    for (program, sampling), (params, _) in zip(runs, Launches.made, strict=True):
        assert params.instructions == program.queues.data_ptr()
        assert (params.greedy, params.filters) == ((1, 0) if sampling is GREEDY else (0, 1))
    drawn = Launches.made[3][0]
    assert (drawn.inverse_temperature, drawn.seed_low, drawn.top_k, drawn.shares) == (2.0, 7, 3, 2)


def test_a_description_that_was_not_finished_is_not_used(
    made: Any, described: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Program(), Program()
    made.launch(one, 0, 0, 1, GREEDY)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(made._filters, "describe", lambda *_: (_ for _ in ()).throw(MemoryError))
        made.launch(other, 0, 0, 1, DRAWN)
    made.launch(one, 0, 0, 1, GREEDY)
    assert described == [(one, GREEDY), (other, DRAWN), (one, GREEDY)]
    assert Launches.made[-1][0].instructions == one.queues.data_ptr()


def test_a_program_that_needs_more_words_is_refused(made: Any) -> None:
    with pytest.raises(DeviceError, match="the program needs 9 words, but 8 were reserved"):
        made.launch(Program(words=9), 0, 0, 1, GREEDY)
    assert Launches.made == [] and made.launch(Program(), 0, 0, 1, GREEDY) == 1


def test_a_launch_goes_to_the_stream_that_it_is_given_and_else_to_the_current_one(made: Any, pretended: Torch) -> None:
    program, own = Program(), Stream(0x77)
    for _ in range(3):
        made.launch(program, 0, 0, 1, GREEDY, stream=own)
    assert pretended.looked_up == 0
    pretended.stream = Stream(0x88)
    made.launch(program, 0, 0, 1, GREEDY)
    assert [stream for _, stream in Launches.made] == [0x77, 0x77, 0x77, 0x88]
    # Steps that are still under way write where the next ones do.
    assert pretended.stream.events == [("waits for", 0x77)]
    made.synchronize()
    assert pretended.stream.events[1:] == ["synchronize"] and own.events == []


def test_the_stream_of_the_launch_before_is_not_waited_for(made: Any, pretended: Torch) -> None:
    assert made.enter_stream() is pretended.stream
    made.launch(Program(), 0, 0, 1, GREEDY, stream=made.enter_stream())
    made.enter_stream()
    assert pretended.stream.events == []
