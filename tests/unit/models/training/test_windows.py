"""The tokenizer's grain, training windows, and the windows of the evaluation."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

from jitmk.models.training.bpe import BOS_ID, EOS_ID, newline_id, train_tokenizer
from jitmk.models.training.corpus import Chapter, Corpus, read_corpus
from jitmk.models.training.evaluate import held_out_loss
from jitmk.models.training.recipe import Recipe, TrainingError
from jitmk.models.training.windows import WindowSampler, encode_chapter
from tests.unit.models.training.texts import write_text

VOCABULARY = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The small text, split."""
    return read_corpus(write_text(tmp_path_factory.mktemp("text") / "text"))


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Tokenizer:
    """A tokenizer of 42 merges."""
    return train_tokenizer(corpus.train, VOCABULARY)


def test_the_same_text_gives_the_same_tokenizer(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert train_tokenizer(corpus.train, VOCABULARY).to_str() == tokenizer.to_str()


def test_no_token_spans_two_verses(tokenizer: Tokenizer) -> None:
    assert [token for token in tokenizer.get_vocab() if "\u010a" in token] == ["\u010a"]


def test_a_vocabulary_that_the_text_cannot_fill_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"yields only .* tokens, not vocab_size=4096"):
        train_tokenizer([Chapter("Ge1", "In the beginning")], 4096)


def test_windows_start_at_a_verse_and_follow_the_text(corpus: Corpus, tokenizer: Tokenizer) -> None:
    sampler = WindowSampler(corpus.train, tokenizer, Recipe(vocab_size=VOCABULARY, context=24))
    stream = [token for chapter in corpus.train for token in encode_chapter(tokenizer, chapter)]
    assert sampler.token_count == len(stream)
    ring = stream + stream
    begins = {i for i in range(1, len(stream) + 1) if ring[i - 1] in (BOS_ID, newline_id(tokenizer))}
    for row in sampler.draw(50).tolist():
        assert len(row) == 25 and row[0] == BOS_ID
        assert any(ring[i : i + 24] == row[1:] for i in begins)


def test_windows_depend_on_the_seed_alone(corpus: Corpus, tokenizer: Tokenizer) -> None:
    def draw(seed: int) -> torch.Tensor:
        return WindowSampler(corpus.train, tokenizer, Recipe(vocab_size=VOCABULARY, context=24, seed=seed)).draw(8)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


class _Reader(torch.nn.Module):
    """Stands for a network: certain of `successor[token]` after each token that it knows, uniform after others."""

    def __init__(self, successor: dict[int, int]) -> None:
        super().__init__()
        self.successor = successor
        self.seen: list[int] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.seen.append(input_ids.shape[1])
        logits = torch.zeros(1, input_ids.shape[1], VOCABULARY)
        for position, token in enumerate(input_ids[0].tolist()):
            if token in self.successor:
                logits[0, position, self.successor[token]] = 50.0
        return SimpleNamespace(logits=logits)


def test_uniform_guesses_cost_the_logarithm_of_the_vocabulary(corpus: Corpus, tokenizer: Tokenizer) -> None:
    chapters = corpus.train[:5]
    loss = held_out_loss(_Reader({}), tokenizer, chapters, 1024, torch.device("cpu"))
    assert loss.tokens == sum(len(encode_chapter(tokenizer, chapter)) - 1 for chapter in chapters)
    assert loss.per_token == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    assert loss.text_bytes == sum(len(chapter.text) for chapter in chapters)
    assert loss.bits_per_byte == pytest.approx(loss.nats / loss.text_bytes / math.log(2))


@pytest.mark.parametrize("context", [2, 3, 8, 9, 10, 1024])
def test_long_chapters_are_counted_once_within_the_context(tokenizer: Tokenizer, context: int) -> None:
    chapter = Chapter("Ge1", "abcdefghijklmnopqrst")
    ids = encode_chapter(tokenizer, chapter)
    reader = _Reader(dict(itertools.pairwise(ids)))
    loss = held_out_loss(reader, tokenizer, [chapter], context, torch.device("cpu"))
    assert loss.tokens == len(ids) - 1 and ids[-1] == EOS_ID
    # Every target is the true successor of the token before it, so nothing is off by one at a window's edge.
    assert loss.nats == pytest.approx(0.0, abs=1e-6)
    assert max(reader.seen) <= context
