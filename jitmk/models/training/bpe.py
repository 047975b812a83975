"""The tokenizer: byte-level BPE, so that every UTF-8 text can be encoded and comes back unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jitmk.models.training.corpus import Chapter
from jitmk.models.training.recipe import TrainingError

BOS_TOKEN: Final = "<s>"
EOS_TOKEN: Final = "</s>"
BOS_ID: Final = 0
EOS_ID: Final = 1

_NEWLINE: Final = "\u010a"
"""How the byte-level alphabet writes the byte 0x0A."""


def train_tokenizer(chapters: Iterable[Chapter], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of exactly `vocab_size` tokens; encoding a text with it prepends the BOS token.

    Raises:
        TrainingError: the text is too small to yield that many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    # A token never spans a line: a verse always starts with a token of its own, so windows can start there.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([chapter.text for chapter in chapters], trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise TrainingError(
            f"the text yields only {tokenizer.get_vocab_size()} tokens, not vocab_size={vocab_size}: "
            "give a longer text or a smaller vocabulary"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A {BOS_TOKEN} $B", special_tokens=[(BOS_TOKEN, BOS_ID)]
    )
    return tokenizer


def newline_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a verse."""
    token: int | None = tokenizer.token_to_id(_NEWLINE)
    assert token is not None, "train_tokenizer puts every byte into the vocabulary"
    return token
