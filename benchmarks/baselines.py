"""The same shapes through transformers, batch 1, each in a process of its own (`python -m benchmarks.baselines`).

Weights are random, the cache is static, decoding is greedy, and tokens stay on the device until the end: the loop that
is kindest to them. A process compiles and warms up, says that it is ready, and waits for its turn to measure: so
several can compile side by side, and yet each measures alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.arguments import count
from benchmarks.records import BenchmarkError, Failure, Record, Workload
from benchmarks.shapes import CONFIGS

KINDS = {
    "eager": "transformers eager",
    "compiled": "transformers compiled",
    "cuda-graphs": "torch.compile + CUDA graphs",
}
"""What `--baselines` takes, and what records call it: transformers as it is, under torch.compile, and under
torch.compile(mode="reduce-overhead"), which captures CUDA graphs."""

AT_ONCE = 5
"""Processes that compile side by side; the weights of all of them are on the GPU at once."""

REPEATS = 3

_READY = "ready"
_COMPILE_THREADS = "4"


def run_baselines(
    jobs: Sequence[tuple[str, Workload]], timeout: float, *, command: Callable[[str, Workload], list[str]] | None = None
) -> tuple[list[Record], list[Failure]]:
    """Measures baselines in new processes, `AT_ONCE` of them side by side until they are ready.

    Args:
        jobs: kind of `KINDS` and what to decode.
        timeout: seconds that one may take to get ready, and again to measure.
        command: what runs a job; None for this module.
    """
    records, failures = [], []
    for begin in range(0, len(jobs), AT_ONCE):
        some = jobs[begin : begin + AT_ONCE]
        for kind, work in some:
            print(f"starting {KINDS[kind]}: {work.model} at {work.context} ...", file=sys.stderr)
        deadline = time.monotonic() + timeout
        processes = [_Process((command or _command)(kind, work)) for kind, work in some]
        try:
            # Nobody measures before the last one is ready.
            reasons = [process.wait_until_ready(deadline) for process in processes]
            for (kind, work), process, why in zip(some, processes, reasons, strict=True):
                try:
                    if why is not None:
                        raise BenchmarkError(why)
                    measured = process.measure(timeout)
                    records.append(Record.of(work, KINDS[kind], measured["times"], first_ms=measured["first_ms"]))
                except BenchmarkError as error:
                    failures.append(Failure(work.model, KINDS[kind], str(error), work.context))
                process.close()
        finally:
            for process in processes:
                process.close()
    return records, failures


class _Process:
    """A process that gets ready, then measures when it is told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, see close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": _COMPILE_THREADS},
            start_new_session=True,  # so that what it starts itself, to compile, can be ended with it
        )
        self._closed = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_until_ready(self, deadline: float) -> str | None:
        """Waits for the process to say that it is ready; returns why it is not, or None."""
        try:
            while self._line(deadline) != _READY:
                pass
        except BenchmarkError as error:
            self.close()
            return str(error)
        return None

    def measure(self, timeout: float) -> dict[str, Any]:
        """What the process measures once it is told to. Raises BenchmarkError where it fails."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the missing answer says so
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout
        while not (line := self._line(deadline)).startswith("{"):
            pass
        measured: dict[str, Any] = json.loads(line)
        return measured

    def close(self) -> None:
        """Ends the process, and what it started, where they have not ended. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._lines.put(line.strip())
        self._lines.put(None)

    def _line(self, deadline: float) -> str:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise BenchmarkError("it took longer than it may; --baseline-timeout says how long that is") from None
        if line is None:
            raise BenchmarkError(self._last_words())
        return line

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return f"exit status {status}" + (f": {lines[-1][:300]}" if lines else "")


def measure(
    config: dict[str, Any],
    kind: str,
    context: int,
    tokens: int,
    turn: Callable[[], object],
    *,
    device: str = "cuda",
) -> dict[str, Any]:
    """Decodes with transformers.

    Args:
        config: config.json of any family. kind: one of `KINDS`.
        context: tokens of the prompt. tokens: new ones, the first of which is not timed.
        turn: is called when everything is compiled and warm, and returns when it may be measured.

    Returns:
        {"times": microseconds a decoded token of each of `REPEATS` runs, "first_ms": of the run before them}.
    """
    import torch
    import transformers

    from benchmarks.truth import transformers_model

    model = transformers_model(config, torch.bfloat16, torch.device(device))
    prompt = torch.randint(config["vocab_size"], (1, context), device=device)

    def forward(ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        logits = model(ids, position_ids=positions[None], past_key_values=cache, logits_to_keep=1).logits
        return torch.as_tensor(logits[:, -1].argmax(-1, keepdim=True))

    step: Callable[..., torch.Tensor] = forward
    if kind != "eager":
        step = torch.compile(forward, mode="reduce-overhead" if kind == "cuda-graphs" else "default", fullgraph=True)
    cache: Any = transformers.StaticCache(config=model.config, max_cache_len=context + tokens)

    def decode() -> float:
        """Prefill, then `tokens` - 1 timed steps; microseconds a step."""
        cache.reset()
        token = forward(prompt, torch.arange(context, device=device), cache)
        position = torch.tensor([context], device=device)
        _synchronize(device)
        begin = time.perf_counter()
        for _ in range(tokens - 1):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            token = step(token, position, cache).clone()
            position = position + 1
        _synchronize(device)
        return (time.perf_counter() - begin) / (tokens - 1) * 1e6

    with torch.inference_mode():
        begin = time.perf_counter()
        decode()
        first = time.perf_counter() - begin
        turn()
        return {"times": [decode() for _ in range(REPEATS)], "first_ms": first * 1e3}


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _command(kind: str, work: Workload) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.baselines"]
    return [*module, kind, work.model, str(work.context), str(work.tokens)]


def _wait_for_turn() -> None:
    """Says that this process is ready, and waits for the word of the one that started it."""
    print(_READY, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("nobody waits for this measurement any more")


def main(arguments: Sequence[str] | None = None) -> None:
    """Gets ready, waits for a line on stdin, measures one baseline and prints it as JSON: what `_Process` reads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("context", type=count(1))
    parser.add_argument("tokens", type=count(2))
    args = parser.parse_args(arguments)
    print(json.dumps(measure(CONFIGS[args.model], args.kind, args.context, args.tokens, _wait_for_turn)), flush=True)


if __name__ == "__main__":
    main()
