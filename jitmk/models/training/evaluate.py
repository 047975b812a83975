"""Held-out loss: how many nats the network needs for text that it has never seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn

from jitmk.models.training.bpe import BOS_ID
from jitmk.models.training.corpus import Chapter
from jitmk.models.training.network import logits_of
from jitmk.models.training.windows import encode_chapter


@dataclass(frozen=True)
class HeldOutLoss:
    """Summed negative log-likelihood of some chapters, and what to divide it by."""

    nats: float
    tokens: int
    """Predicted tokens: all of a chapter's, and its EOS."""
    text_bytes: int

    @property
    def per_token(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def per_byte(self) -> float:
        """Nats a byte of UTF-8 text: comparable between tokenizers."""
        return self.nats / self.text_bytes

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of UTF-8 text."""
        return self.per_byte / math.log(2.0)


@torch.no_grad()
def held_out_loss(
    network: nn.Module, tokenizer: Tokenizer, chapters: Sequence[Chapter], context: int, device: torch.device
) -> HeldOutLoss:
    """Measure the loss of chapters, each from its start; leaves the network in evaluation mode.

    A chapter longer than the context is read in windows that overlap by half, so that every token after the first
    window has at least half a context before it and is counted once.
    """
    network.eval()
    nats = 0.0
    tokens = 0
    for chapter in chapters:
        ids = encode_chapter(tokenizer, chapter)
        for window, counted in _windows(ids, context):
            batch = torch.tensor([window], dtype=torch.int64, device=device)
            losses = nn.functional.cross_entropy(logits_of(network, batch[:, :-1])[0], batch[0, 1:], reduction="none")
            nats += losses[-counted:].double().sum().item()
            tokens += counted
    return HeldOutLoss(nats, tokens, sum(len(chapter.text.encode()) for chapter in chapters))


def _windows(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """Yield windows of at most `context` + 1 ids and how many of each one's last tokens to count."""
    first = min(len(ids), context + 1)
    yield ids[:first], first - 1
    done = first
    while done < len(ids):
        end = min(len(ids), done + context // 2)
        yield [BOS_ID, *ids[end - context : end]], end - done
        done = end
