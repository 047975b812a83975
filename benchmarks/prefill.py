"""Milliseconds from a prompt to its first logits, beside transformers (SDPA, bf16) on the same GPU.

    python -m benchmarks.prefill --models llama-3.2-1b --contexts 128,512,2048,8192 --json prefill.json

Both fill a KV cache and end with the last token's logits in fp32 on the GPU; both are loaded at once and take turns.
jitmk's logits and tokens are compared with fp32 first. Exits with 1 where that does not hold, or where jitmk takes
longer than it may.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.arguments import add_json, count, counts, names
from benchmarks.environment import describe
from benchmarks.measure import CHECK_TOKENS, Live, announce, open_gpu, usable_contexts
from benchmarks.records import DTYPE, JITMK, default_path, format_table, write_json
from benchmarks.shapes import CONFIGS
from benchmarks.truth import random_prompt, require_transformers, transformers_model
from jitmk.errors import JitmkError

TRANSFORMERS = "transformers SDPA"

TARGETS = {512: 1.0, 8192: 1.1}
"""How many times transformers' time jitmk may take, by the tokens of the prompt; other lengths are only measured."""

_WARM_UPS = 3


@dataclass(frozen=True)
class PrefillRecord:
    """One system on one prompt.

    Attributes:
        baseline: the system, "jitmk" or "transformers SDPA".
        prefill_ms: median over the runs, milliseconds; all_prefill_ms: each run.
        ratio: to transformers; target: what it may be, where that is said.
    """

    model: str
    context: int
    batch: int
    dtype: str
    baseline: str
    prefill_ms: float
    ratio: float
    target: float | None
    all_prefill_ms: list[float]

    @property
    def met(self) -> bool:
        """Whether it takes no longer than it may."""
        return self.target is None or self.ratio <= self.target


def measure(
    name: str,
    prompt: Sequence[int],
    systems: Mapping[str, Callable[[Sequence[int]], torch.Tensor]],
    repeats: int,
    device: torch.device,
) -> list[PrefillRecord]:
    """Runs a prompt through each system in turn, until its logits are there.

    Args:
        name: the model's, for the records.
        systems: from a prompt to its last logits on `device`; `TRANSFORMERS` is what the others are compared with.
    """
    times: dict[str, list[float]] = {system: [] for system in systems}
    for run in range(_WARM_UPS + repeats):
        for system, prefill in systems.items():
            _synchronize(device)
            begin = time.perf_counter()
            prefill(prompt)
            _synchronize(device)
            if run >= _WARM_UPS:
                times[system].append((time.perf_counter() - begin) * 1e3)
    reference = statistics.median(times[TRANSFORMERS])
    records = []
    for system in systems:
        ms = statistics.median(times[system])
        target = TARGETS.get(len(prompt)) if system == JITMK else None
        records.append(PrefillRecord(name, len(prompt), 1, DTYPE, system, ms, ms / reference, target, times[system]))
    return records


def transformers_prefill(config: Mapping[str, Any], device: torch.device) -> Callable[[Sequence[int]], torch.Tensor]:
    """From a prompt to its last logits, through a model with random weights in bf16."""
    model = transformers_model(config, torch.bfloat16, device)

    @torch.inference_mode()
    def prefill(prompt: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(prompt)], device=device)
        logits: torch.Tensor = model(ids, use_cache=True, logits_to_keep=1).logits[0, -1].float()
        return logits

    return prefill


def print_records(records: Sequence[PrefillRecord]) -> None:
    """The records as a table on stdout."""
    rows = [["model", "tokens", "system", "ms", f"to {TRANSFORMERS}", "target", ""]]
    for record in records:
        rows.append(
            [
                record.model,
                str(record.context),
                record.baseline,
                f"{record.prefill_ms:.2f}",
                f"{record.ratio:.3f}",
                "-" if record.target is None else f"{record.target:.2f}",
                "" if record.met else "MISSED",
            ]
        )
    print(format_table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parse(arguments)
    records: list[PrefillRecord] = []
    checks = []
    try:
        require_transformers()
        gpu = open_gpu()
        device = torch.device("cuda", gpu.index)
        environment = describe(gpu)
        print(announce(gpu, environment), file=sys.stderr)
        for name in args.models:
            contexts = usable_contexts(name, args.contexts, CHECK_TOKENS)
            with Live.open(gpu, name, max(contexts) + CHECK_TOKENS) as live:
                checks += live.check(contexts)
                systems = {JITMK: live.backend.prefill, TRANSFORMERS: transformers_prefill(CONFIGS[name], device)}
                for context in contexts:
                    prompt = random_prompt(live.model.spec.vocab_size, context)
                    records += measure(name, prompt, systems, args.repeats, device)
    except JitmkError as error:
        print(f"benchmarks.prefill: error: {error}", file=sys.stderr)
        return 1
    content = {
        "environment": environment,
        "records": [asdict(record) | {"met": record.met} for record in records],
        "checks": [check.content() for check in checks],
    }
    write_json(args.json or default_path("prefill", gpu.name), content)
    print_records(records)
    return 0 if all(record.met for record in records) else 1


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=names(CONFIGS), default=["llama-3.2-1b"], metavar="A,B", help="(default: llama-3.2-1b)"
    )
    parser.add_argument(
        "--contexts",
        type=counts,
        default=[128, 512, 2048, 8192],
        metavar="N,M",
        help="tokens of the prompts (default: 128,512,2048,8192)",
    )
    parser.add_argument("--repeats", type=count(1), default=20, metavar="N", help="timed runs (default: 20)")
    add_json(parser, "prefill")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
