"""Loading a checkpoint of a named shape into the megakernel: how fast, with how much memory, and to the first token.

A folder is written once (`write_checkpoint`). Each load is measured in a process of its own (`measure_load`): only
there nothing is warm that a user would find cold, and peak memory is that of one load.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.records import BenchmarkError
from jitmk.engine import megakernel, step_programs
from jitmk.engine.arena import load_weights
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.loading import matrix_slabs
from jitmk.engine.select import open_backend, select_backend
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint, stored_shapes
from jitmk.model.families import spec_from_config
from jitmk.model.files import read_config
from jitmk.model.spec import WeightKey, weight_shapes
from jitmk.model.tensors import put
from jitmk.model.weight_files import INDEX_FILE, weight_files
from jitmk.program.packing import UNIT_ROWS, pack
from jitmk.program.weights import WeightPlan, plan_weights
from jitmk.settings import Settings, get_settings

SHARD_BYTES = 5 * 10**9
"""Most bytes of a shard, as the Hub's checkpoints are cut."""

MAX_SEQ_LEN = 8192
"""Positions of the KV cache."""

_PIECE_BYTES = 32 << 20
_TIMEOUT = 600

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LoadRun:
    """One load in a new process. Sizes in bytes, times in seconds.

    Attributes:
        stored: the checkpoint's tensors; largest_shard: the largest of its files.
        load: reading, uploading and packing all weights, which overlap.
        read, upload, pack: what each of these takes alone.
        host_growth: the most that was resident while loading, less what was before. Mapped pages count as resident;
            pages of the cache that are not mapped do not.
        packed: the weights on the GPU; gpu_growth: the most that was allocated there while loading, less before.
        first_token: from the call that builds the kernel to the first token on the host.
        programs: of that, scheduling, verifying and encoding.
        from_cache: whether the kernel came from the cache.
    """

    stored: int
    largest_shard: int
    load: float
    read: float
    upload: float
    pack: float
    host_growth: int
    packed: int
    gpu_growth: int
    first_token: float
    programs: float
    from_cache: bool

    @property
    def gb_per_s(self) -> float:
        return self.stored / self.load / 1e9

    @property
    def host_ratio(self) -> float:
        """Host memory to the largest shard."""
        return self.host_growth / self.largest_shard

    @property
    def gpu_ratio(self) -> float:
        """GPU memory to the packed weights."""
        return self.gpu_growth / self.packed

    @property
    def first_launch(self) -> float:
        """Seconds to the first token without weights and programs, which have targets of their own."""
        return self.first_token - self.load - self.programs


def checkpoint_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of a checkpoint in bf16."""
    return 2 * spec_from_config(config).spec.parameters


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], device: torch.device, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes config.json, shards of random bf16 weights, and their index.

    Args:
        folder: where; made if it does not exist.
        config: config.json.
        device: where random numbers are drawn.
        shard_bytes: the most bytes of tensors in a shard.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    family = spec_from_config(config)
    source, shapes = RandomCheckpoint(family.spec, device=device), stored_shapes(family)
    keys: dict[str, list[WeightKey]] = {name: [] for name in shapes}
    for key in weight_shapes(family.spec):
        keys[family.tensors[key].name].append(key)

    def made(name: str) -> torch.Tensor:
        stored = torch.zeros(shapes[name], dtype=torch.bfloat16, device=device)
        for key in keys[name]:
            put(stored, family.tensors[key], source.tensor(key))
        return stored.cpu()

    groups = split({name: 2 * math.prod(shape) for name, shape in shapes.items()}, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        shard = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: made(name) for name in group}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(group, shard)
    index = {"metadata": {"total_size": checkpoint_bytes(config)}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes; what is larger than that is a group by itself."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def warm_page_cache(folder: Path) -> None:
    """Reads every weight file once."""
    buffer = bytearray(_PIECE_BYTES)
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measure_load(folder: Path, cache_dir: Path) -> LoadRun:
    """Loads a folder in a new process, with the kernels of a cache; raises BenchmarkError where that fails."""
    command = [sys.executable, "-m", "benchmarks.loading", str(folder)]
    environment = os.environ | {"JITMK_CACHE_DIR": str(cache_dir), "JITMK_USE_NVRTC": "1"}
    try:
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"loading {folder} took longer than {_TIMEOUT} s") from error
    if child.returncode != 0:
        raise BenchmarkError(f"loading {folder} ended with status {child.returncode}: {child.stderr.strip()[-500:]}")
    return LoadRun(**json.loads(child.stdout.splitlines()[-1]))


def resident_bytes() -> int:
    """Memory of this process that is resident now, mapped pages of files included."""
    return _status("VmRSS") or 0


def forget_peak() -> None:
    """From here on `peak_bytes` is counted anew (proc(5), clear_refs); where that is not allowed, since the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that was resident since `forget_peak`."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


class _Meter:
    """Measures the call that loads weights, and times those that prepare programs."""

    def __init__(self) -> None:
        self.load = self.programs = 0.0
        self.host_growth = self.gpu_growth = 0

    def around_load(self, load: Callable[..., _Result]) -> Callable[..., _Result]:
        def measured(*arguments: Any, **named: Any) -> _Result:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            on_gpu = torch.cuda.memory_allocated()
            forget_peak()
            resident = resident_bytes()
            begin = time.perf_counter()
            result = load(*arguments, **named)
            torch.cuda.synchronize()
            self.load = time.perf_counter() - begin
            self.host_growth = peak_bytes() - resident
            self.gpu_growth = torch.cuda.max_memory_allocated() - on_gpu
            return result

        return measured

    def around_programs(self, prepare: Callable[..., _Result]) -> Callable[..., _Result]:
        def measured(*arguments: Any, **named: Any) -> _Result:
            begin = time.perf_counter()
            result = prepare(*arguments, **named)
            self.programs += time.perf_counter() - begin
            return result

        return measured


def load_here(folder: Path, settings: Settings) -> LoadRun:
    """The measurement itself. The context on the GPU exists before anything is timed."""
    selection = select_backend("megakernel")
    device = selection.device
    torch.zeros(1, device=device)
    family = spec_from_config(read_config(folder), max_seq_len=MAX_SEQ_LEN)
    plan = plan_weights(family.spec)
    meter = _Meter()
    # Both are looked up where they are used.
    vars(megakernel)["load_weights"] = meter.around_load(load_weights)
    vars(step_programs)["prepare"] = meter.around_programs(step_programs.prepare)
    with Checkpoint.open(folder, family) as source:
        begin = time.perf_counter()
        backend = open_backend(selection, source, max_seq_len=MAX_SEQ_LEN, settings=settings, progress=False)
        next(backend.decode_stream(1, 0, 1, DeviceSampling()))
        first_token = time.perf_counter() - begin
        assert isinstance(backend, megakernel.MegakernelBackend)
        from_cache = backend.kernel.from_cache
        backend.close()
        return LoadRun(
            stored=source.nbytes,
            largest_shard=max(path.stat().st_size for path in weight_files(folder)),
            load=meter.load,
            read=_read_alone(source, plan),
            upload=_upload_alone(source.nbytes, device),
            pack=_pack_alone(plan, device),
            host_growth=meter.host_growth,
            packed=plan.arena_bytes + 4 * plan.constant_values,
            gpu_growth=meter.gpu_growth,
            first_token=first_token,
            programs=meter.programs,
            from_cache=from_cache,
        )


def _read_alone(source: Checkpoint, plan: WeightPlan) -> float:
    """Seconds to read the matrices into buffers on the host."""
    begin = time.perf_counter()
    for _ in matrix_slabs(source, plan.matrices.values(), torch.device("cpu")):
        pass
    return time.perf_counter() - begin


def _upload_alone(nbytes: int, device: torch.device) -> float:
    """Seconds to copy that much from pinned memory, piece by piece."""
    host = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(host, device=device)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(nbytes // _PIECE_BYTES):
        target.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _pack_alone(plan: WeightPlan, device: torch.device) -> float:
    """Seconds to pack every matrix, each from one piece of it that is on the GPU already."""
    seconds = 0.0
    for matrix in plan.matrices.values():
        if matrix.packed:
            rows, columns = matrix.layout.rows, matrix.layout.columns
            count = min(rows, max(1, _PIECE_BYTES // (2 * columns * UNIT_ROWS)) * UNIT_ROWS)
            piece = torch.zeros((count, columns), dtype=torch.bfloat16, device=device)
            out = pack(piece)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            pack(piece, out)
            torch.cuda.synchronize()
            seconds += (time.perf_counter() - begin) * rows / count
    return seconds


if __name__ == "__main__":
    print(json.dumps(asdict(load_here(Path(sys.argv[1]), get_settings()))))
