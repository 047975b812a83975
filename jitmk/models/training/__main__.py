"""`python -m jitmk.models.training`: train the bundled model and write its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from jitmk.models.training.bpe import EOS_ID, train_tokenizer
from jitmk.models.training.card import render_card
from jitmk.models.training.corpus import KJV_SHA256, Corpus, read_corpus
from jitmk.models.training.evaluate import held_out_loss
from jitmk.models.training.export import (
    SAMPLE_TOKENS,
    SAMPLING_TEMPERATURE,
    Measurements,
    Sample,
    check_output_folder,
    export_model,
    round_to_bf16,
    training_record,
)
from jitmk.models.training.loop import train
from jitmk.models.training.network import logits_of
from jitmk.models.training.recipe import Recipe, TrainingError, add_arguments, from_arguments

_SAMPLE_PROMPTS = ("In the beginning", "And it came to pass", "Blessed is the man")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jitmk.models.training", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="verses, as `bible -f gen1:1-rev22:21` prints them")
    parser.add_argument("--out", type=Path, required=True, help="model folder to create; must not exist, or be empty")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="allow only kernels that always round alike; on a GPU, CUBLAS_WORKSPACE_CONFIG=:4096:8 must be set",
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        recipe = from_arguments(options)
        check_output_folder(options.out)
        device = _device(options.device)
        train_and_export(read_corpus(options.text), recipe, device, options.out, strict=options.deterministic)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train_and_export(corpus: Corpus, recipe: Recipe, device: torch.device, out: Path, *, strict: bool) -> None:
    """Text to model folder: tokenizer, training, measurement of the rounded weights, files."""
    if corpus.sha256 != KJV_SHA256:
        print("note: this is not the text that the bundled model was trained on", file=sys.stderr)
    tokenizer = train_tokenizer(corpus.train, recipe.vocab_size)
    outcome = train(corpus, tokenizer, recipe, device, strict=strict)
    network = outcome.network.to("cpu")
    round_to_bf16(network)
    measured = measure(network, tokenizer, corpus, recipe)
    record = training_record(recipe, corpus, outcome, measured, device, strict=strict)
    export_model(out, network, tokenizer, recipe, record, render_card(record, out.name))
    print(
        f"{out}: {record['parameters']} parameters, best step {outcome.best_step}, "
        f"validation {measured.validation.per_token:.4f} nats a token, {measured.validation.bits_per_byte:.4f} bits a "
        f"byte; test {measured.test.per_token:.4f} and {measured.test.bits_per_byte:.4f}"
    )


def measure(network: nn.Module, tokenizer: Tokenizer, corpus: Corpus, recipe: Recipe) -> Measurements:
    """Measure held-out losses in fp32 on the CPU, and draw the card's samples."""
    cpu = torch.device("cpu")
    losses = [
        held_out_loss(network, tokenizer, chapters, recipe.context, cpu)
        for chapters in tqdm((corpus.validation, corpus.test), desc="measuring", unit="part")
    ]
    samples = [
        Sample(prompt, continue_text(network, tokenizer, prompt, recipe.seed + index, recipe.context))
        for index, prompt in enumerate(tqdm(_SAMPLE_PROMPTS, desc="sampling", unit="sample"))
    ]
    return Measurements(losses[0], losses[1], tuple(samples))


@torch.no_grad()
def continue_text(network: nn.Module, tokenizer: Tokenizer, prompt: str, seed: int, context: int) -> str:
    """Sample a continuation at the exported temperature, up to EOS, and return it with its prompt."""
    generator = torch.Generator().manual_seed(seed)
    network.eval()
    ids: list[int] = tokenizer.encode(prompt).ids
    for _ in range(min(SAMPLE_TOKENS, context - len(ids))):
        logits = logits_of(network, torch.tensor([ids]))[0, -1] / SAMPLING_TEMPERATURE
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        if token == EOS_ID:
            break
        ids.append(token)
    return str(tokenizer.decode(ids))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device 'cuda' was asked for, but torch sees no CUDA GPU: use --device cpu")
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(main())
