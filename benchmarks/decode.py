"""Microseconds a token of what `Model.generate` delivers, beside the stream ceiling and baselines of the same run.

    python -m benchmarks.decode --models llama-3.2-1b --contexts 128,1024 --baselines eager,compile --json result.json

Weights are random, batch 1, greedy; a token's time includes choosing it, bringing it to the host and turning it into
text. The ceiling is the time to read the step's weights and the keys and values of the mean context once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import KINDS, run_baseline
from benchmarks.environment import describe
from benchmarks.shapes import CONFIGS, model_spec, step_bytes
from jitmk.cuda.device import Device
from jitmk.engine.ceiling import measure_stream_ceiling
from jitmk.engine.model import Model
from jitmk.engine.select import open_backend, select_backend
from jitmk.errors import JitmkError
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.tokenizer import Tokenizer
from jitmk.settings import get_settings


@dataclass
class Record:
    """One measurement.

    Attributes:
        model, batch, dtype: what ran.
        context: tokens of the prompt; the mean context of the timed tokens is `mean_context`.
        tokens: generated tokens of a run.
        us_per_token: median over the runs, microseconds; all_us_per_token: each run.
        tokens_per_second: of decoding.
        prefill_ms: median time to the first token.
        bytes: what a step must read; ceiling_us: the time to stream that.
        ratio: us_per_token / ceiling_us.
        baseline: by name, {"us_per_token": ...} or {"failed": why}.
    """

    model: str
    context: int
    mean_context: float
    tokens: int
    us_per_token: float
    all_us_per_token: list[float]
    tokens_per_second: float
    prefill_ms: float
    bytes: int
    ceiling_us: float
    ratio: float
    batch: int = 1
    dtype: str = "bfloat16"
    baseline: dict[str, dict[str, Any]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parse(arguments)
    try:
        gpu = select_backend("megakernel").gpu
    except JitmkError as error:
        print(f"benchmarks.decode: error: {error}", file=sys.stderr)
        return 1
    assert gpu is not None
    environment = describe(gpu)
    print(f"{gpu}, torch {torch.__version__}, commit {environment['commit']}", file=sys.stderr)
    records = []
    for model in args.models:
        records += measure_model(gpu, model, args.contexts, args.tokens, args.repeats)
    # Afterwards, when jitmk's weights are gone: each runs in a process of its own.
    for record in records:
        for kind in args.baselines:
            print(f"baseline {kind}: {record.model} at {record.context} ...", file=sys.stderr)
            measured = run_baseline(kind, record.model, record.context, record.tokens, args.baseline_timeout)
            record.baseline[f"transformers {kind}"] = measured
    print_table(records)
    if args.json is not None:
        result = {"environment": environment, "records": [asdict(record) for record in records]}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def measure_model(gpu: Device, name: str, contexts: Sequence[int], tokens: int, repeats: int) -> list[Record]:
    """Measures one shape at every context, the ceilings first: they need room for a copy of what is streamed."""
    spec = model_spec(name, max(contexts) + tokens)
    # Step i of the timed ones reads the keys and values of `context` + i positions.
    means = [context + (tokens - 2) / 2 for context in contexts]
    sizes = [step_bytes(spec, mean) for mean in means]
    ceilings = _ceilings(gpu, sizes)
    device = torch.device("cuda", gpu.index)
    records = []
    with _random_model(name, max(contexts) + tokens, device) as model:
        for context, mean, size, ceiling in zip(contexts, means, sizes, ceilings, strict=True):
            times, prefills = _time_generate(model, context, tokens, repeats)
            us = statistics.median(times)
            records.append(
                Record(
                    model=name,
                    context=context,
                    mean_context=mean,
                    tokens=tokens,
                    us_per_token=us,
                    all_us_per_token=times,
                    tokens_per_second=1e6 / us,
                    prefill_ms=statistics.median(prefills),
                    bytes=size,
                    ceiling_us=ceiling,
                    ratio=us / ceiling,
                )
            )
            print(f"{name} at {context}: {us:.1f} us a token, {us / ceiling:.3f} x ceiling", file=sys.stderr)
    return records


def print_table(records: Sequence[Record]) -> None:
    """The records as a table on stdout."""
    baselines = list(dict.fromkeys(name for record in records for name in record.baseline))
    rows = [["model", "context", "us/token", "tokens/s", "ceiling us", "ratio", "prefill ms", *baselines]]
    for record in records:
        cells = [
            record.model,
            str(record.context),
            f"{record.us_per_token:.1f}",
            f"{record.tokens_per_second:.0f}",
            f"{record.ceiling_us:.1f}",
            f"{record.ratio:.3f}",
            f"{record.prefill_ms:.1f}",
        ]
        for name in baselines:
            measured = record.baseline[name]
            cells.append(f"{measured['us_per_token']:.1f}" if "us_per_token" in measured else "failed")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for record in records:
        for name, measured in record.baseline.items():
            if "failed" in measured:
                print(f"{name}, {record.model} at {record.context}: {measured['failed']}")


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


def _random_model(name: str, max_seq_len: int, device: torch.device) -> Model:
    """A model of a named shape with random weights, and a tokenizer that has a word for every token."""
    source = RandomCheckpoint(model_spec(name, max_seq_len), device=device)
    selection = select_backend("megakernel", device)
    backend = open_backend(selection, source, max_seq_len=max_seq_len, settings=get_settings())
    return Model(source.spec, backend, _word_tokenizer(source.spec.vocab_size), Path(), backend_reason="benchmark")


def _word_tokenizer(vocab_size: int) -> Tokenizer:
    """Costs what a real one costs for each token: a look-up and a byte-level decoder."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    # In the alphabet of byte-level vocabularies, "Ġ" is a space.
    backend = Backend(models.WordLevel({f"Ġw{token}": token for token in range(vocab_size)}, unk_token="Ġw0"))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {})


def _time_generate(model: Model, context: int, tokens: int, repeats: int) -> tuple[list[float], list[float]]:
    """Microseconds a decoded token and milliseconds of prefill of each run, after one that warms up."""
    generator = torch.Generator().manual_seed(context)
    prompt = torch.randint(model.spec.vocab_size, (context,), generator=generator).tolist()
    times, prefills = [], []
    for run in range(repeats + 1):
        timings = model.generate(prompt, max_new_tokens=tokens, temperature=0, eos_token_ids=[]).timings
        assert timings.ms_per_token is not None
        if run > 0:
            times.append(timings.ms_per_token * 1000)
            prefills.append(timings.prefill_ms)
    return times, prefills


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=_names(CONFIGS), default=list(CONFIGS), metavar="A,B", help=f"of {', '.join(CONFIGS)}"
    )
    parser.add_argument("--contexts", type=_counts, default=[128], metavar="N,M", help="prompt lengths (default: 128)")
    parser.add_argument("--tokens", type=_count(2), default=256, metavar="N", help="tokens a run (default: 256)")
    parser.add_argument("--repeats", type=_count(1), default=5, metavar="N", help="timed runs (default: 5)")
    parser.add_argument(
        "--baselines", type=_names(KINDS), default=[], metavar="A,B", help=f"of {', '.join(KINDS)} (default: none)"
    )
    parser.add_argument(
        "--baseline-timeout", type=float, default=300, metavar="S", help="seconds for each baseline (default: 300)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser.parse_args(arguments)


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _count(minimum: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return parse


def _counts(text: str) -> list[int]:
    return [_count(1)(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
