"""The same shapes through transformers, batch 1, in a process of its own (`python -m benchmarks.baselines`).

Weights are random, the cache is static, decoding is greedy, and tokens stay on the device until the end: the loop that
is kindest to them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

KINDS = ("eager", "compile")
"""transformers as it is, and under torch.compile(mode="reduce-overhead"), which captures CUDA graphs."""


def run_baseline(kind: str, model: str, context: int, tokens: int, timeout: float) -> dict[str, Any]:
    """Measures one baseline in a new process.

    Returns:
        {"us_per_token": ..., "first_ms": ...}, or {"failed": why}: also when it takes longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "benchmarks.baselines", kind, model, str(context), str(tokens)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {timeout:.0f} s"}
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit status {result.returncode}"}
    measured: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measured


def measure(
    config: dict[str, Any], kind: str, context: int, tokens: int, *, device: str = "cuda", repeats: int = 3
) -> dict[str, Any]:
    """Microseconds a decoded token, the median of some runs after one that compiles and warms up."""
    import torch
    import transformers

    classes: Any = transformers  # without types
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = classes.AutoModelForCausalLM.from_config(classes.AutoConfig.for_model(**config))
    model.train(False)
    prompt = torch.randint(config["vocab_size"], (1, context), device=device)

    def forward(ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        logits = model(ids, position_ids=positions[None], past_key_values=cache, logits_to_keep=1).logits
        return torch.as_tensor(logits[:, -1].argmax(-1, keepdim=True))

    step: Callable[..., torch.Tensor] = forward
    if kind == "compile":
        step = torch.compile(forward, mode="reduce-overhead", fullgraph=True)
    cache = classes.StaticCache(config=model.config, max_cache_len=context + tokens)

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
        return {"us_per_token": statistics.median(decode() for _ in range(repeats)), "first_ms": first * 1e3}


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measures one baseline and prints it as JSON: what `run_baseline` reads."""
    from benchmarks.shapes import CONFIGS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("context", type=int)
    parser.add_argument("tokens", type=int)
    args = parser.parse_args()
    print(json.dumps(measure(CONFIGS[args.model], args.kind, args.context, args.tokens)))


if __name__ == "__main__":
    main()
