"""Training batches: windows of the text that start at a random verse, in the text's own order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from jitmk.models.training.bpe import BOS_ID, EOS_ID, newline_id
from jitmk.models.training.corpus import Chapter
from jitmk.models.training.recipe import Recipe


def encode_chapter(tokenizer: Tokenizer, chapter: Chapter) -> list[int]:
    """Return BOS, the chapter's tokens, EOS."""
    return [*tokenizer.encode(chapter.text).ids, EOS_ID]


class WindowSampler:
    """Draws windows `BOS, verse, verse, ...`; a chapter's end inside a window reads `EOS, BOS`.

    A prompt may begin anywhere, so windows begin at any verse, not only at chapters. The stream is read as a ring.
    """

    def __init__(self, chapters: Sequence[Chapter], tokenizer: Tokenizer, recipe: Recipe) -> None:
        encoded = [encode_chapter(tokenizer, chapter) for chapter in chapters]
        self._stream = torch.tensor([token for ids in encoded for token in ids], dtype=torch.int64)
        begins_next = (self._stream == newline_id(tokenizer)) | (self._stream == BOS_ID)
        self._verse_starts = begins_next.nonzero().flatten() + 1
        self._context = recipe.context
        self._generator = torch.Generator().manual_seed(recipe.seed)

    @property
    def token_count(self) -> int:
        """Tokens of one pass over the text, special ones included."""
        return self._stream.numel()

    def draw(self, batch_size: int) -> torch.Tensor:
        """Return ids [batch_size, context + 1]: inputs are all but the last column, targets all but the first."""
        chosen = torch.randint(self._verse_starts.numel(), (batch_size,), generator=self._generator)
        offsets = torch.arange(self._context)
        indices = (self._verse_starts[chosen].unsqueeze(1) + offsets) % self._stream.numel()
        return torch.cat([torch.full((batch_size, 1), BOS_ID), self._stream[indices]], dim=1)
