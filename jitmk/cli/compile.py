"""`jitmk compile`: fill the kernel cache for a model, for any GPU, without one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jitmk.arch import GpuArch
from jitmk.cli.options import add_model_options, model_folder
from jitmk.errors import DeviceError, JitmkError

if TYPE_CHECKING:
    from jitmk.jit import CompiledKernel
    from jitmk.model.spec import ModelSpec


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser of `jitmk`."""
    parser = commands.add_parser(
        "compile",
        help="compile a model's kernel into the cache",
        description="Compile a model's kernel into the cache. Needs no GPU and, of the model, only its config.json.",
    )
    add_model_options(parser, backend=False)
    parser.add_argument(
        "--arch",
        action="append",
        choices=GpuArch.supported(),
        help="target; may be repeated (default: the GPU of this machine; without one, every supported target)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="compile N at a time")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Outcome:
    """What became of one target: a kernel, or why there is none; and how long it took, in seconds."""

    arch: GpuArch
    kernel: CompiledKernel | None
    error: JitmkError | None
    seconds: float


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 0 if every target has its kernel."""
    from tqdm import tqdm

    if args.jobs < 1:
        raise DeviceError(f"--jobs {args.jobs} is not possible; allowed is 1 or more")
    spec = _spec(args)
    targets = _targets(args.arch)
    outcomes = []
    with (
        ThreadPoolExecutor(min(args.jobs, len(targets))) as pool,
        tqdm(total=len(targets), desc="compiling", unit="kernel", delay=1.0, leave=False, disable=None) as bar,
    ):
        for outcome in pool.map(lambda arch: _compile(spec, arch), targets):
            outcomes.append(outcome)
            bar.update()
    _print_table(outcomes)
    for outcome in outcomes:
        if outcome.error is not None:
            print(f"jitmk: error: {outcome.arch.name}: {outcome.error}", file=sys.stderr)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _spec(args: argparse.Namespace) -> ModelSpec:
    from jitmk.model.families import spec_from_config
    from jitmk.model.files import read_config

    return spec_from_config(read_config(model_folder(args)), max_seq_len=args.max_seq_len).spec


def _targets(names: list[str] | None) -> list[GpuArch]:
    if names:
        return [GpuArch.parse(name) for name in dict.fromkeys(names)]
    from jitmk.cuda.device import Device

    try:
        return [Device.open().arch]
    except DeviceError:
        return [GpuArch.parse(name) for name in GpuArch.supported()]


def _compile(spec: ModelSpec, arch: GpuArch) -> _Outcome:
    from jitmk import jit
    from jitmk.codegen import render
    from jitmk.codegen.prefill import render_prefill
    from jitmk.engine.step_programs import kernel_variants

    begin = time.perf_counter()
    try:
        kernel = jit.build(render(kernel_variants(spec), spec, arch), arch)
        jit.build(render_prefill(spec), arch)  # too small to be worth a line in the table
    except JitmkError as error:
        return _Outcome(arch, None, error, time.perf_counter() - begin)
    return _Outcome(arch, kernel, None, time.perf_counter() - begin)


def _print_table(outcomes: list[_Outcome]) -> None:
    """One line a target. A kernel takes all the shared memory that a block may have: static and dynamic."""
    rows = [("arch", "compiler", "registers", "shared bytes", "spilled bytes", "cubin bytes", "seconds", "from", "key")]
    for outcome in outcomes:
        kernel = outcome.kernel
        if kernel is None:
            rows.append((outcome.arch.name, *("-",) * 5, f"{outcome.seconds:.2f}", "refused", "-"))
            continue
        rows.append(
            (
                kernel.arch,
                kernel.compiler,
                _shown(kernel.info.registers),
                str(outcome.arch.shared_bytes_per_block),
                _shown(kernel.info.spills),
                str(len(kernel.cubin)),
                f"{outcome.seconds:.2f}",
                "cache" if kernel.from_cache else "compiler",
                kernel.key[:16],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: int | None) -> str:
    return "?" if value is None else str(value)
