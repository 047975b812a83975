"""Whether the megakernel computes what it should, at full size: its logits and tokens against fp32 on the same GPU.

    python -m benchmarks.numerics --models llama-3.2-1b,llama-3.1-8b --contexts 1,127,128,129,4096,8192 --json out.json

The comparison is that of `truth.py`, with more tokens than the one that comes before every measurement. Exits with 1
where jitmk is further from the truth than transformers' bf16 is, or decides otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import count, counts, names
from benchmarks.environment import describe
from benchmarks.records import Comparison, write_json
from benchmarks.shapes import CONFIGS
from benchmarks.truth import compare, decode, has_truth, require_transformers
from jitmk.cuda.device import Device
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.errors import JitmkError
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint, WeightSource
from jitmk.model.families import spec_from_config
from jitmk.model.files import read_config
from jitmk.models import BUNDLED_MODEL_NAME, bundled_model_dir
from jitmk.program.weights import plan_weights
from jitmk.settings import get_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    args = _parse(arguments)
    try:
        require_transformers()
        gpu = Device.open()
        comparisons: list[Comparison] = []
        for name in args.models:
            comparisons += measure(gpu, name, args.contexts, args.tokens)
    except JitmkError as error:
        print(f"benchmarks.numerics: error: {error}", file=sys.stderr)
        return 1
    if args.json is not None:
        records = [comparison.content() for comparison in comparisons]
        write_json(args.json, {"environment": describe(gpu), "records": records})
    held = sum(comparison.holds for comparison in comparisons)
    print(f"{held} of {len(comparisons)} prompts hold")
    return 0 if comparisons and held == len(comparisons) else 1


def measure(gpu: Device, name: str, contexts: Sequence[int], tokens: int) -> list[Comparison]:
    """Decodes with jitmk, then compares; contexts that the model has no room for, or no truth, are left out."""
    config, source = _model(name)
    spec = spec_from_config(config).spec
    contexts = [
        context for context in contexts if context + tokens <= spec.max_positions and has_truth(spec, context, tokens)
    ]
    if not contexts:
        return []
    backend = MegakernelBackend(
        spec,
        plan_weights(spec),
        source,
        gpu,
        max_seq_len=max(contexts) + tokens,
        settings=get_settings(),
        progress=False,
    )
    decoded = [decode(backend, spec.vocab_size, context, tokens) for context in contexts]
    backend.close()
    return compare(name, config, source, decoded, torch.device("cuda", gpu.index))


def _model(name: str) -> tuple[dict[str, Any], WeightSource]:
    if name == BUNDLED_MODEL_NAME:
        config = read_config(bundled_model_dir())
        return config, Checkpoint.open(bundled_model_dir(), spec_from_config(config))
    return CONFIGS[name], RandomCheckpoint(spec_from_config(CONFIGS[name]).spec, seed=1, device="cuda")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__.splitlines()[0])
    known = (*CONFIGS, BUNDLED_MODEL_NAME)
    parser.add_argument(
        "--models", type=names(known), default=list(known), metavar="A,B", help=f"of {', '.join(known)} (default: all)"
    )
    parser.add_argument(
        "--contexts", type=counts, default=[1, 127, 128, 129], metavar="N,M", help="prompt lengths (1,127,128,129)"
    )
    parser.add_argument("--tokens", type=count(2), default=256, metavar="N", help="new tokens a prompt (default: 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the comparisons")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
