"""Small tokenizers of the two kinds that Llama models have, trained here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog does not mind.",
    "In the beginning was the word, and the word was with many other words.",
    "  spaces   and\ttabs\nand lines\n\n\nand numbers 12345 67890",
    "naïve café, Grüße, 你好世界, привет мир, 😀👩‍👩‍👧 and so on",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def byte_level_json() -> str:
    """As Llama 3: byte-level BPE, whose tokens may hold parts of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|eot|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str()


@cache
def byte_fallback_json() -> str:
    """As Llama 2: BPE over SentencePiece's words, with a token for each byte that no other token covers."""
    seed = Tokenizer(models.BPE(unk_token="<unk>"))
    seed.normalizer = normalizers.Replace(" ", "▁")
    pieces = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    plain = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    seed.train_from_iterator(plain, trainers.BpeTrainer(vocab_size=420, special_tokens=pieces, show_progress=False))
    model = json.loads(seed.to_str())["model"]
    merges: Any = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


KINDS = {"byte level": byte_level_json, "byte fallback": byte_fallback_json}


def write_tokenizer(folder: Path, kind: str, **config: Any) -> Path:
    """Writes tokenizer.json and tokenizer_config.json, and returns the folder."""
    (folder / "tokenizer.json").write_text(KINDS[kind](), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
