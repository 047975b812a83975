"""What happens before the first token: import, compile, schedule, load a checkpoint, launch; each beside its target.

    python -m benchmarks.startup --json startup.json [--model llama-3.1-8b] [--folder DIR]

Writes a random checkpoint of the model's shape (bf16, in shards, with an index) to a temporary folder, reads it once so
that it is in the page cache, and loads it in new processes. Without a GPU, what needs none is measured. Exits with 1
where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.arguments import add_json, count, names
from benchmarks.environment import describe
from benchmarks.loading import (
    MAX_SEQ_LEN,
    LoadRun,
    checkpoint_bytes,
    measure_load,
    warm_page_cache,
    write_checkpoint,
)
from benchmarks.measure import announce, open_gpu
from benchmarks.records import BenchmarkError, default_path, format_table, write_json
from benchmarks.shapes import CONFIGS, model_spec
from jitmk import jit
from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.codegen.prefill import render_prefill
from jitmk.cuda.device import Device
from jitmk.engine.step_programs import DeviceProgram, kernel_variants, prepare
from jitmk.errors import CompilerNotFoundError, DeviceError, JitmkError
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.schedule.cost import split_ladder
from jitmk.settings import Settings, get_settings

COMPILED = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")
"""The shapes whose kernels are compiled."""

PARTS = ("import", "schedule", "compile", "load")

_IMPORTS = 15
"""New processes for each of the two times that the import's is the difference of."""

_SPARE_BYTES = 10**9
_ROOT = Path(__file__).parents[1]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Measurement:
    """One number beside its target.

    Attributes:
        name: what was measured.
        value: in `unit`.
        target: the value is below it, or with `at_least` no less; None where nothing is asked for.
        runs: each run's value; details: what the value is made of.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    runs: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value < self.target


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why."""

    name: str
    why: str


def measure_import() -> list[Measurement]:
    """Milliseconds of `import jitmk`: a new interpreter with it less one without, the best of each."""
    times: dict[str, list[float]] = {"import jitmk": [], "pass": []}
    for _ in range(_IMPORTS):
        for statement, seconds in times.items():
            command = [sys.executable, "-c", statement]
            seconds.append(_timed(subprocess.run, command, check=True, cwd=_ROOT)[0])
    bare = min(times["pass"])
    runs = [1000 * (seconds - bare) for seconds in times["import jitmk"]]
    return [Measurement("import jitmk", min(runs), "ms", 50, runs=runs, details={"interpreter_ms": 1000 * bare})]


def measure_schedule(model: str, arch: GpuArch, repeats: int) -> list[Measurement]:
    """Seconds to lower, schedule, verify and encode a program: of those with fewest and most splits, the slower."""
    spec = model_spec(model, MAX_SEQ_LEN)
    plan, variants = plan_weights(spec), kernel_variants(spec)
    runs: dict[int, list[float]] = {1: [], max(split_ladder(spec, arch.sm_count)): []}

    def program(splits: int) -> DeviceProgram:
        return prepare(lower(spec, splits), plan, variants, arch, torch.device("cpu"))

    for _ in range(repeats):
        for splits, seconds in runs.items():
            seconds.append(_timed(program, splits)[0])
    medians = {splits: statistics.median(seconds) for splits, seconds in runs.items()}
    slower = max(medians, key=lambda splits: medians[splits])
    name, details = f"schedule and encode {model}", {"splits": slower, "sms": arch.sm_count}
    return [Measurement(name, medians[slower], "s", 0.3, runs=runs[slower], details=details)]


def measure_compile(models: Sequence[str], arch: GpuArch, repeats: int) -> list[Measurement | Skipped]:
    """Seconds to render and compile each model's megakernel into an empty cache, with NVRTC and with NVCC.

    The details say how long prefill's kernels take, which are compiled then too.
    """
    found: list[Measurement | Skipped] = []
    for name, use_nvrtc, target in (("NVRTC", True, 2.0), ("NVCC", False, None)):
        settings = replace(get_settings(), use_nvrtc=use_nvrtc)
        try:
            compiler = jit.select_compiler(arch, settings)
        except CompilerNotFoundError as error:
            found.append(Skipped(f"{name} compile", str(error).splitlines()[0]))
            continue
        for model in models:
            built = [_timed(build_anew, model, arch, settings) for _ in range(repeats)]
            runs, kernel = [seconds for seconds, _ in built], built[-1][1]
            details = {"compiler": compiler.build, "arch": arch.name, "cubin_bytes": len(kernel.cubin)}
            details |= {"registers": kernel.info.registers, "spilled_bytes": kernel.info.spills}
            details["prefill_s"] = _timed(build_anew, model, arch, settings, for_prefill=True)[0]
            median = statistics.median(runs)
            found.append(Measurement(f"{name} compile {model}", median, "s", target, runs=runs, details=details))
    return found


def build_anew(model: str, arch: GpuArch, settings: Settings, *, for_prefill: bool = False) -> jit.CompiledKernel:
    """A model's megakernel, or its kernels for prefill, rendered and compiled with a cache that is empty."""
    with tempfile.TemporaryDirectory() as cache:
        return _build(model, arch, replace(settings, cache_dir=Path(cache)), for_prefill)


def measure_loading(model: str, gpu: Device, folder: Path | None, repeats: int) -> list[Measurement]:
    """Writes a checkpoint, and loads it in new processes with the kernel in a cache and the files in the page cache.

    Raises:
        BenchmarkError: there is no room for the checkpoint, or it cannot be loaded.
    """
    config = CONFIGS[model]
    with tempfile.TemporaryDirectory(prefix="jitmk-startup-", dir=folder) as name:
        checkpoint, cache = Path(name) / "checkpoint", Path(name) / "cache"
        require_room(Path(name), checkpoint_bytes(config))
        _say(f"writing {checkpoint_bytes(config) / 1e9:.1f} GB of random weights to {checkpoint}")
        write_checkpoint(checkpoint, config, torch.device("cuda", gpu.index))
        torch.cuda.empty_cache()
        for for_prefill in (False, True):
            _build(model, gpu.arch, replace(get_settings(), use_nvrtc=True, cache_dir=cache), for_prefill)
        runs = []
        for _ in range(repeats):
            warm_page_cache(checkpoint)
            runs.append(measure_load(checkpoint, cache))
            _say(f"loaded {model} at {runs[-1].gb_per_s:.1f} GB/s")
    if not all(run.from_cache for run in runs):
        raise BenchmarkError("a kernel that was in the cache was compiled anew; a launch cannot be timed like that")
    return summarise(model, runs)


def require_room(folder: Path, nbytes: int) -> None:
    """Raises BenchmarkError where a file system has not that much room, and a little more."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + _SPARE_BYTES:
        raise BenchmarkError(
            f"{folder} has {free / 1e9:.1f} GB free, but the checkpoint needs {nbytes / 1e9:.1f} GB and "
            f"{_SPARE_BYTES / 1e9:.0f} GB to spare; name another place with --folder, or a smaller --model"
        )


def summarise(model: str, runs: Sequence[LoadRun]) -> list[Measurement]:
    """What the loads of a model come to: medians of times, the worst of memory."""
    median = statistics.median_low([run.gb_per_s for run in runs])
    typical = next(run for run in runs if run.gb_per_s == median)
    parts = {part: getattr(typical, part) for part in ("stored", "load", "read", "upload", "pack")}
    host = {"largest_shard": typical.largest_shard, "growth": max(run.host_growth for run in runs)}
    on_gpu = {"packed": typical.packed, "growth": max(run.gpu_growth for run in runs)}
    launches = [run.first_launch for run in runs]
    whole = {"first_token": [run.first_token for run in runs], "programs": [run.programs for run in runs]}
    return [
        Measurement(f"load {model}", median, "GB/s", 4, True, [run.gb_per_s for run in runs], parts),
        Measurement("peak host memory", max(run.host_ratio for run in runs), "x largest shard", 1.3, details=host),
        Measurement("peak GPU memory", max(run.gpu_ratio for run in runs), "x packed weights", 1.1, details=on_gpu),
        Measurement("cache hit to first token", statistics.median(launches), "s", 0.1, runs=launches, details=whole),
    ]


def print_results(measured: Sequence[Measurement], skipped: Sequence[Skipped]) -> None:
    """A table on stdout."""
    rows = [["", "value", "unit", "target", ""]]
    for one in measured:
        target = "" if one.target is None else f"{'>=' if one.at_least else '<'} {one.target:g}"
        rows.append([one.name, f"{one.value:.3g}", one.unit, target, "" if one.met else "MISSED"])
    print(format_table(rows))
    for what in skipped:
        print(f"skipped {what.name}: {what.why}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parse(arguments)
    try:
        gpu: Device | None = open_gpu()
        why = ""
    except DeviceError as error:
        gpu, why = None, str(error)
    environment = {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0))} | (describe(gpu) if gpu is not None else {})
    _say(announce(gpu, environment) if gpu is not None else f"no GPU: {why}")
    arch = gpu.arch if gpu is not None else GpuArch.parse(args.arch)
    found: list[Measurement | Skipped] = []
    try:
        # Import and compile first: the processes of the one and the files of the other are nobody else's then.
        if "import" in args.parts:
            found += measure_import()
        if "schedule" in args.parts:
            found += measure_schedule(args.model, arch, args.repeats)
        if "compile" in args.parts:
            found += measure_compile(args.compiled, arch, args.repeats)
        if "load" in args.parts and gpu is not None:
            found += measure_loading(args.model, gpu, args.folder, args.repeats)
        elif "load" in args.parts:
            found.append(Skipped("load, memory and first token", why))
    except JitmkError as error:
        print(f"benchmarks.startup: error: {error}", file=sys.stderr)
        return 1
    measured = [one for one in found if isinstance(one, Measurement)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    path = args.json or (default_path("startup", gpu.name) if gpu is not None else None)
    if path is not None:
        write_json(
            path,
            {
                "environment": environment,
                "measurements": [asdict(one) | {"met": one.met} for one in measured],
                "skipped": [asdict(one) for one in skipped],
            },
        )
    print_results(measured, skipped)
    return 0 if all(one.met for one in measured) else 1


def _build(model: str, arch: GpuArch, settings: Settings, for_prefill: bool) -> jit.CompiledKernel:
    spec = model_spec(model, MAX_SEQ_LEN)
    source = render_prefill(spec) if for_prefill else render(kernel_variants(spec), spec, arch)
    return jit.build(source, arch, settings=settings)


def _timed(work: Callable[..., _Result], *arguments: Any, **named: Any) -> tuple[float, _Result]:
    """Seconds of a call, and what it returned."""
    begin = time.perf_counter()
    result = work(*arguments, **named)
    return time.perf_counter() - begin, result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _cpu() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=list(CONFIGS), default="llama-3.1-8b", metavar="NAME", help="(default: llama-3.1-8b)"
    )
    parser.add_argument(
        "--compiled", type=names(CONFIGS), default=COMPILED, metavar="A,B", help=f"(default: {','.join(COMPILED)})"
    )
    parser.add_argument("--parts", type=names(PARTS), default=PARTS, metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the checkpoint is written (default: for temporary files)"
    )
    parser.add_argument("--repeats", type=count(1), default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument(
        "--arch", choices=GpuArch.supported(), default="sm_90a", help="target where there is no GPU (default: sm_90a)"
    )
    add_json(parser, "startup")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
