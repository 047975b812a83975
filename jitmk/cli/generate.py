"""`jitmk generate`: a prompt in, text out."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jitmk.cli.options import add_model_options, load_from_options
from jitmk.errors import GenerationError

if TYPE_CHECKING:
    from jitmk.engine.model import Model
    from jitmk.engine.result import GenerationResult

_SAMPLING = (
    ("max-new-tokens", int, "N", "how many tokens at most"),
    ("temperature", float, "T", "0 is greedy; above 0, logits are divided by it before a draw"),
    ("top-k", int, "K", "draw among the K most probable tokens"),
    ("top-p", float, "P", "draw among the most probable tokens that add up to P"),
    ("min-p", float, "P", "draw among tokens at least P times as probable as the most probable one"),
    ("repetition-penalty", float, "R", "above 1, tokens that were seen before become less probable"),
    ("seed", int, "S", "the same seed gives the same text"),
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser of `jitmk`."""
    parser = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue a prompt. The text goes to stdout, everything else to stderr.",
    )
    parser.add_argument("prompt", help="the text to continue; - reads it from stdin")
    add_model_options(parser)
    sampling = parser.add_argument_group("sampling (default: as the model's generation_config.json says, else greedy)")
    for name, kind, metavar, text in _SAMPLING:
        sampling.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    sampling.add_argument(
        "--stop-token-id",
        action="append",
        type=int,
        metavar="ID",
        dest="stop_token_ids",
        help="end at this token; may be repeated",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--chat", action="store_true", help="put the prompt to the model as a user's message")
    output.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write the text as it is made (default: if stdout is a terminal)",
    )
    output.add_argument("--quiet", action="store_true", help="do not tell backend and timing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not text:
        raise GenerationError("the prompt is empty: pass a text of at least one character")
    with load_from_options(args) as model:
        if not args.quiet:
            _tell(f"backend: {model.backend_name} ({model.backend_reason})")
        prompt = [{"role": "user", "content": text}] if args.chat else text
        streaming = sys.stdout.isatty() if args.stream is None else args.stream
        result = _write(model, prompt, _sampling_arguments(args), streaming, bar=not (streaming or args.quiet))
        if not args.quiet:
            _tell(_timing_line(result))
    return 0


def _sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, *_ in _SAMPLING] + ["stop", "stop_token_ids"]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _write(model: Model, prompt: Any, sampling: dict[str, Any], streaming: bool, bar: bool) -> GenerationResult:
    """Writes prompt (where it is continued) and text to stdout, piece by piece or at the end."""
    from tqdm import tqdm

    stream = model.stream(prompt, **sampling)
    if isinstance(prompt, str):
        sys.stdout.write(prompt)
    with tqdm(desc="generating", unit=" pieces", delay=1.0, leave=False, disable=None if bar else True) as progress:
        for piece in stream:
            sys.stdout.write(piece)
            progress.update()
            if streaming:
                sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return stream.result


def _timing_line(result: GenerationResult) -> str:
    timings = result.timings
    line = f"{result.prompt_tokens} prompt tokens in {timings.prefill_ms:.1f} ms, {len(result.token_ids)} new tokens"
    if timings.ms_per_token is not None:
        line += f" at {timings.ms_per_token:.3g} ms a token ({timings.tokens_per_second:.0f} tokens/s)"
    return f"{line}, finished by {result.finish_reason}, seed {result.seed}"


def _tell(message: str) -> None:
    print(f"jitmk: {message}", file=sys.stderr, flush=True)
