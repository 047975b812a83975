"""Measuring jitmk: a model of a named shape with random weights, its tokens checked, its ceiling, its times.

Times are of what `Model.generate` delivers: a token's time includes choosing it, bringing it to the host and turning it
into text.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.records import BenchmarkError, Comparison, Workload
from benchmarks.shapes import CONFIGS, model_spec, step_bytes
from benchmarks.truth import SteppedBackend, compare, decode, has_truth, random_prompt
from jitmk.cuda.device import Device
from jitmk.engine.backend import DecodeBackend, DeviceSampling
from jitmk.engine.ceiling import measure_stream_ceiling
from jitmk.engine.launcher import MegakernelLauncher
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.engine.model import Model
from jitmk.engine.select import open_backend, select_backend
from jitmk.model.checkpoint import RandomCheckpoint, WeightSource
from jitmk.model.families import spec_from_config
from jitmk.model.tokenizer import Tokenizer
from jitmk.settings import get_settings

CHECK_TOKENS = 64
"""New tokens of a prompt that are compared with the truth before anything is timed."""

_ROUNDS = 12
"""Generations whose launches are timed."""


@dataclass(frozen=True)
class LaunchTimes:
    """Median microseconds that a launch keeps the host: into an idle stream, and queued behind another launch."""

    idle: float
    queued: float


class LiveBackend(DecodeBackend, SteppedBackend, Protocol):
    """What a model that is measured needs of its backend."""

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        """As `DecodeBackend.prefill`."""


class Live:
    """A model of a named shape with random weights, ready to be checked and timed; a context manager.

    Attributes:
        name: of the shape.
        model: what a user would have.
        backend: what runs it.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], source: WeightSource, backend: LiveBackend, device: torch.device
    ) -> None:
        self.name = name
        self.backend = backend
        tokenizer = word_tokenizer(source.spec.vocab_size)
        self.model = Model(source.spec, backend, tokenizer, Path(), backend_reason="benchmark")
        self._config = config
        self._source = source
        self._device = device

    @classmethod
    def open(cls, gpu: Device, name: str, max_seq_len: int) -> Live:
        """Loads a shape of `CONFIGS` into the megakernel."""
        device = torch.device("cuda", gpu.index)
        source = RandomCheckpoint(model_spec(name, max_seq_len), device=device)
        selection = select_backend("megakernel", device)
        backend = open_backend(selection, source, max_seq_len=max_seq_len, settings=get_settings(), progress=False)
        assert isinstance(backend, MegakernelBackend)
        return cls(name, CONFIGS[name], source, backend, device)

    def check(self, contexts: Sequence[int], tokens: int = CHECK_TOKENS) -> list[Comparison]:
        """Compares what this very model generates behind some prompts with the truth, before it is timed.

        Raises:
            BenchmarkError: it is further from the truth than transformers' bf16 is, or decides otherwise.
        """
        decoded = [decode(self.backend, self.model.spec.vocab_size, context, tokens) for context in contexts]
        comparisons = compare(self.name, self._config, self._source, decoded, self._device)
        require_sound(comparisons)
        return comparisons

    def generate(self, context: int, tokens: int, **sampling: Any) -> tuple[float, float]:
        """Microseconds a decoded token and milliseconds of prefill of one generation; greedy unless told otherwise."""
        prompt = random_prompt(self.model.spec.vocab_size, context)
        arguments = {"temperature": 0, "eos_token_ids": []} | sampling
        timings = self.model.generate(prompt, max_new_tokens=tokens, **arguments).timings
        assert timings.ms_per_token is not None
        return timings.ms_per_token * 1000, timings.prefill_ms

    def host_launch_us(self, context: int) -> LaunchTimes:
        """What a launch costs the host behind `context` tokens, where there is room for `CHECK_TOKENS` more.

        It is what `MegakernelLauncher.launch` does before it returns: filling in the parameters, and the driver's part.
        A generation's first launch finds an idle stream; each later one is queued behind the one that runs, and is
        there before that ends. The first one also describes program and sampling, which the others need not.
        """
        self.generate(context, 2)  # fills the cache, and warms up
        idle, queued = [], []
        for _ in range(_ROUNDS):
            self.backend.reset()  # waits until the launch before has ended
            with timed_calls(MegakernelLauncher, "launch") as seconds:
                for _ in self.backend.decode_stream(0, context, CHECK_TOKENS, DeviceSampling()):
                    pass
            idle.append(seconds[0])
            queued += seconds[1:]
        return LaunchTimes(idle=statistics.median(idle) * 1e6, queued=statistics.median(queued) * 1e6)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *exception: object) -> None:
        self.model.close()


def require_sound(comparisons: Sequence[Comparison]) -> None:
    """Raises BenchmarkError where one does not hold."""
    failed = [comparison for comparison in comparisons if not comparison.holds]
    if failed:
        raise BenchmarkError(
            "it was not measured, for it does not compute what it should: " + "; ".join(map(str, failed))
        )


def usable_contexts(name: str, contexts: Sequence[int], tokens: int) -> list[int]:
    """The prompt lengths behind which a shape has room for `tokens` new ones that can be held against the truth.

    Says which are left out. Raises BenchmarkError where none remains.
    """
    spec = spec_from_config(CONFIGS[name]).spec
    usable = []
    for context in contexts:
        if context + tokens > spec.max_positions:
            why = f"it has {spec.max_positions} positions, {context} + {tokens} do not fit"
        elif not has_truth(spec, context, tokens):
            why = "its rotary frequencies change while it generates, so that there is no truth in one pass"
        else:
            usable.append(context)
            continue
        print(f"{name} at {context} is left out: {why}", file=sys.stderr)
    if not usable:
        raise BenchmarkError(f"no context is left for {name}: {why}; choose others with --contexts")
    return usable


def workloads(gpu: Device, name: str, runs: Sequence[tuple[int, int]]) -> list[Workload]:
    """A shape's workloads for pairs of prompt and new tokens, with ceilings; these need room for what a step reads."""
    spec = model_spec(name, max(context + tokens for context, tokens in runs))
    # Step i of the timed ones reads the keys and values of `context` + i positions.
    means = [context + (tokens - 2) / 2 for context, tokens in runs]
    sizes = [step_bytes(spec, mean) for mean in means]
    return [
        Workload(name, context, tokens, mean, size, ceiling)
        for (context, tokens), mean, size, ceiling in zip(runs, means, sizes, _ceilings(gpu, sizes), strict=True)
    ]


def _ceilings(gpu: Device, sizes: Sequence[int]) -> list[float]:
    """Microseconds to stream each of these sizes, out of one buffer of random bytes."""
    device = torch.device("cuda", gpu.index)
    data = torch.empty(-(-max(sizes) // 8) + 4096, dtype=torch.int64, device=device)
    data.random_()
    settings = get_settings()
    ceilings = [measure_stream_ceiling(gpu, data, size, settings=settings) for size in sizes]
    del data
    torch.cuda.empty_cache()
    return ceilings


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Has a word for every token, and costs what a real one costs for each: a look-up and a byte-level decoder."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    # In the alphabet of byte-level vocabularies, "Ġ" is a space.
    backend = Backend(models.WordLevel({f"Ġw{token}": token for token in range(vocab_size)}, unk_token="Ġw0"))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {})


@contextmanager
def timed_calls(owner: type, method: str) -> Iterator[list[float]]:
    """Inside, notes in the list how many seconds each call of a method takes that returns."""
    original = getattr(owner, method)
    seconds: list[float] = []

    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        result = original(*arguments, **named)
        seconds.append(time.perf_counter() - begin)
        return result

    setattr(owner, method, timed)
    try:
        yield seconds
    finally:
        setattr(owner, method, original)


def open_gpu() -> Device:
    """The GPU that is measured. Raises DeviceError where the megakernel cannot run."""
    gpu = select_backend("megakernel").gpu
    assert gpu is not None
    return gpu


def announce(gpu: Device, environment: Mapping[str, Any]) -> str:
    """One line of what is measured with."""
    return f"{gpu}, torch {torch.__version__}, commit {environment['commit']}"
