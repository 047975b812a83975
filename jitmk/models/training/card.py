"""The model card, README.md of the model folder: rendered from `training.json`, so that no number is typed by hand."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from jitmk.models.training.corpus import HOLDOUT_PERIOD
from jitmk.models.training.export import SAMPLE_TOKENS, SAMPLING_TEMPERATURE
from jitmk.models.training.recipe import Recipe

_CARD = """---
language: en
license: cc0-1.0
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- kjv
---

# {name}

A small Llama-architecture language model ({parameters:.2f} million parameters, {megabytes:.1f} MB in bf16)
and its byte-level BPE tokenizer ({vocab_size} tokens). It writes verses in the manner of the King James
Bible, one a line, and ends a chapter with `</s>`. It is bundled with jitmk so that text can be generated
with nothing downloaded. It knows nothing else, and is no source of scripture: what it writes is invented,
even where it sounds familiar.

## Data and licence

Trained from scratch on the King James Version of 1611, whose copyright has expired (in the United Kingdom
the Crown still holds letters patent on printing it), in the electronic text of Debian's package
`bible-kjv-text` 4.38, which is provided for unrestricted use. Verse numbers and book names are left out.
Nothing else went into weights or tokenizer. Both are dedicated to the public domain under CC0 1.0.

One chapter in {period} is held out for validation ({validation_chapters} chapters, which chose the recipe and the step)
and one in {period} for test ({test_chapters} chapters, which chose nothing). The tokenizer has not seen either.
The Bible repeats itself (Kings and Chronicles, the Gospels), so a held-out chapter may have a near relative
in the training text.

## Held-out loss

Of the shipped bf16 weights, computed in fp32, each chapter read from its start:

| chapters | nats per token | nats per byte | bits per byte | tokens | bytes |
| --- | --- | --- | --- | --- | --- |
| test | {test} |
| validation | {validation} |

A uniform guess over the vocabulary would need {uniform:.3f} nats per token.

## Shape

{layers} layers, hidden size {hidden}, MLP {intermediate}, {heads} query heads and {kv_heads} key/value heads
of {head_dim}, tied embeddings, RoPE theta {theta:g}, context {context}.

Prompts should begin as a verse does, for instance `In the beginning` or `And it came to pass`.
`generation_config.json` asks for sampling at temperature {temperature}; greedy decoding of a model this small
soon repeats itself.

## Samples

At temperature {temperature}, seeds {seed} and on, cut after {sample_tokens} tokens,
not selected; the prompt is in bold.

{samples}

## How to reproduce

```
apt-get install bible-kjv-text
bible -f gen1:1-rev22:21 > kjv.txt
{command}
```

The text's sha256 is `{sha256}`.
Needed: torch, transformers, tokenizers, safetensors, tqdm; a GPU, or many hours with `--device cpu`.
The tokenizer comes out byte for byte. The seed is fixed, but attention's backward pass on a GPU adds in
varying order, and other GPUs and releases of torch round differently: a second model is as good, and not the
same bytes. `--deterministic` (on a GPU with `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment) allows
only kernels that always round alike.

This one: {steps} steps of {batch_size} windows of {context} tokens, {seconds:.0f} seconds on one {hardware}.
The best validation loss came at step {best_step}, after {epochs:.0f} passes over {train_bytes:.1f} MB of text.
torch {versions[torch]}, transformers {versions[transformers]}, tokenizers {versions[tokenizers]}.
The recipe, the validation curve and the list of held-out chapters are in `training.json`.
"""


def render_card(record: dict[str, Any], name: str) -> str:
    """Return the card for what `training.json` records (`export.training_record`)."""
    recipe = Recipe(**record["recipe"])
    text = record["text"]
    return _CARD.format(
        name=name,
        parameters=record["parameters"] / 1e6,
        megabytes=record["parameters"] * 2 / 1e6,
        vocab_size=recipe.vocab_size,
        period=HOLDOUT_PERIOD,
        validation_chapters=len(text["validation_chapters"]),
        test_chapters=len(text["test_chapters"]),
        test=_loss_cells(record["test"]),
        validation=_loss_cells(record["validation"]),
        uniform=math.log(recipe.vocab_size),
        layers=recipe.num_layers,
        hidden=recipe.hidden_size,
        heads=recipe.num_heads,
        kv_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        intermediate=recipe.intermediate_size,
        theta=recipe.rope_theta,
        context=recipe.context,
        temperature=SAMPLING_TEMPERATURE,
        seed=recipe.seed,
        samples="\n\n".join(_quote(sample["prompt"], sample["text"]) for sample in record["samples"]),
        sha256=text["sha256"],
        command=_command(record, recipe),
        sample_tokens=SAMPLE_TOKENS,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seconds=record["training_seconds"],
        hardware=record["hardware"],
        best_step=record["best_step"],
        epochs=record["epochs"],
        train_bytes=text["train_bytes"] / 1e6,
        versions=record["versions"],
    )


def _quote(prompt: str, text: str) -> str:
    """Markdown block quote of a sample, one verse a line."""
    marked = f"**{prompt}**" + text[len(prompt) :]
    return "\n>\n".join(f"> {line}" for line in marked.splitlines() if line)


def _loss_cells(loss: dict[str, Any]) -> str:
    """Table cells of one loss, in the order of the card's header."""
    rates = [f"{loss[name]:.3f}" for name in ("nats_per_token", "nats_per_byte", "bits_per_byte")]
    return " | ".join([*rates, str(loss["tokens"]), str(loss["bytes"])])


def _command(record: dict[str, Any], recipe: Recipe) -> str:
    """The command that repeats the training: flags only where the recipe is not the default one."""
    words = ["python -m jitmk.models.training --text kjv.txt --out kjv-5m"]
    for entry in fields(Recipe):
        if getattr(recipe, entry.name) != entry.default:
            words.append(f"--{entry.name.replace('_', '-')} {getattr(recipe, entry.name)}")
    if record["deterministic"]:
        words.append("--deterministic")
    return " ".join(words)
