"""The folder that is shipped: the files of an ordinary Hugging Face model, published all at once."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from jitmk.models.training.bpe import BOS_ID, BOS_TOKEN, EOS_ID, EOS_TOKEN
from jitmk.models.training.corpus import Corpus
from jitmk.models.training.evaluate import HeldOutLoss
from jitmk.models.training.loop import TrainingOutcome
from jitmk.models.training.network import config_json
from jitmk.models.training.recipe import Recipe, TrainingError

SAMPLING_TEMPERATURE = 0.8
"""What generation_config.json asks for: below 1, because a model this small spreads too much on unlikely words."""

SAMPLE_TOKENS = 160
"""Longest continuation of a sample on the card."""


@dataclass(frozen=True)
class Sample:
    """A prompt and what the exported weights made of it."""

    prompt: str
    text: str
    """Prompt and continuation."""


@dataclass(frozen=True)
class Measurements:
    """What the exported (bf16) weights were seen to do."""

    validation: HeldOutLoss
    test: HeldOutLoss
    samples: tuple[Sample, ...]


def round_to_bf16(network: nn.Module) -> None:
    """Round the weights in place to what the exported file can hold; they stay fp32 tensors."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def training_record(
    recipe: Recipe,
    corpus: Corpus,
    outcome: TrainingOutcome,
    measured: Measurements,
    device: torch.device,
    *,
    strict: bool,
) -> dict[str, Any]:
    """Return what `training.json` says: recipe, text, course of training, losses, samples, machine and versions."""
    return {
        "recipe": asdict(recipe),
        "text": {
            "sha256": corpus.sha256,
            "train_chapters": len(corpus.train),
            "train_bytes": sum(len(chapter.text.encode()) for chapter in corpus.train),
            "validation_chapters": [chapter.reference for chapter in corpus.validation],
            "test_chapters": [chapter.reference for chapter in corpus.test],
        },
        "parameters": sum(parameter.numel() for parameter in outcome.network.parameters()),
        "best_step": outcome.best_step,
        "epochs": round(outcome.epochs, 2),
        "validation_curve": [list(point) for point in outcome.validation_curve],
        "validation": _loss_json(measured.validation),
        "test": _loss_json(measured.test),
        "samples": [asdict(sample) for sample in measured.samples],
        "deterministic": strict,
        "training_seconds": round(outcome.seconds, 1),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def check_output_folder(out: Path) -> None:
    """Refuse a folder that already holds something, before any time is spent.

    Raises:
        TrainingError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"the output folder {out} already exists and is not empty: remove it or name another one")


def export_model(
    out: Path, network: nn.Module, tokenizer: Tokenizer, recipe: Recipe, record: dict[str, Any], card: str
) -> None:
    """Write the model folder beside `out` and rename it into place, so that `out` is whole or absent."""
    check_output_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        staging.chmod(0o755)
        save_file(_bf16_weights(network), staging / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(staging / "tokenizer.json"))
        _write_json(staging / "config.json", config_json(recipe))
        _write_json(staging / "tokenizer_config.json", _tokenizer_config(recipe))
        _write_json(staging / "generation_config.json", _generation_config())
        _write_json(staging / "training.json", record)
        (staging / "README.md").write_text(card, encoding="utf-8")
        for file in staging.iterdir():
            file.chmod(0o644)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _bf16_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict in bf16; the LM head is the embedding and is not written a second time."""
    weights = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
    del weights["lm_head.weight"]
    return weights


def _tokenizer_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "bos_token": BOS_TOKEN,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS_TOKEN,
        "model_max_length": recipe.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "do_sample": True,
        "temperature": SAMPLING_TEMPERATURE,
    }


def _loss_json(loss: HeldOutLoss) -> dict[str, float]:
    return {
        "nats_per_token": round(loss.per_token, 4),
        "nats_per_byte": round(loss.per_byte, 4),
        "bits_per_byte": round(loss.bits_per_byte, 4),
        "tokens": loss.tokens,
        "bytes": loss.text_bytes,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
