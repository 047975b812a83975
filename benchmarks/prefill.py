"""Milliseconds from a prompt to the logits behind it: jitmk beside transformers with SDPA, on one GPU.

    python -m benchmarks.prefill --models llama-3.2-1b --lengths 128,512,2048,8192 --json prefill.json

Both run the same random weights' shapes in bf16, fill a cache, and compute the last token's logits only; host side
included, median of some runs after two that warm up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe
from benchmarks.shapes import CONFIGS
from jitmk.cuda.device import Device
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.families import spec_from_config
from jitmk.program.weights import plan_weights
from jitmk.settings import get_settings

_WARM_UPS = 2


@dataclass(frozen=True)
class Record:
    """One prompt length: medians in milliseconds."""

    model: str
    tokens: int
    jitmk_ms: float
    transformers_ms: float

    @property
    def ratio(self) -> float:
        """Below 1: jitmk is faster."""
        return self.jitmk_ms / self.transformers_ms


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=["llama-3.2-1b"])
    parser.add_argument(
        "--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[128, 512, 2048, 8192]
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--json", type=Path, help="where to write the records")
    args = parser.parse_args(arguments)
    gpu = Device.open()
    records = []
    for name in args.models:
        lengths = [n for n in args.lengths if n < spec_from_config(CONFIGS[name]).spec.max_positions]
        ours = measure_jitmk(gpu, name, lengths, args.repeats)
        theirs = measure_transformers(name, lengths, args.repeats)
        torch.cuda.empty_cache()
        for tokens, jitmk_ms, transformers_ms in zip(lengths, ours, theirs, strict=True):
            record = Record(name, tokens, jitmk_ms, transformers_ms)
            records.append(record)
            print(
                f"{name} {tokens:6} tokens: {jitmk_ms:8.2f} ms, transformers {transformers_ms:8.2f} ms: "
                f"{record.ratio:.2f}",
                flush=True,
            )
    if args.json is not None:
        content = {"environment": describe(gpu), "records": [asdict(r) | {"ratio": r.ratio} for r in records]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def measure_jitmk(gpu: Device, name: str, lengths: Sequence[int], repeats: int) -> list[float]:
    """Milliseconds of `MegakernelBackend.prefill` for each length."""
    spec = spec_from_config(CONFIGS[name]).spec
    source = RandomCheckpoint(spec, seed=1, device="cuda")
    backend = MegakernelBackend(
        spec,
        plan_weights(spec),
        source,
        gpu,
        max_seq_len=max(lengths) + 1,
        settings=get_settings(),
        progress=False,
    )
    times = [_median_ms(partial(backend.prefill, _prompt(spec.vocab_size, n)), repeats) for n in lengths]
    backend.close()
    return times


def measure_transformers(name: str, lengths: Sequence[int], repeats: int) -> list[float]:
    """Milliseconds of a forward pass that fills a new cache, for each length."""
    import transformers

    classes: Any = transformers  # without types
    config = classes.AutoConfig.for_model(**CONFIGS[name])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = classes.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model.train(False)

    @torch.inference_mode()
    def forward(tokens: int) -> None:
        ids = torch.tensor([_prompt(config.vocab_size, tokens)], device="cuda")
        model(ids, use_cache=True, logits_to_keep=1)

    return [_median_ms(partial(forward, n), repeats) for n in lengths]


def _prompt(vocab_size: int, tokens: int) -> list[int]:
    """Token ids without meaning."""
    return [(7919 * i + 3) % vocab_size for i in range(tokens)]


def _median_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(_WARM_UPS + repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[_WARM_UPS:])


if __name__ == "__main__":
    sys.exit(main())
