from __future__ import annotations

import torch

from jitmk.engine.philox import gumbel
from jitmk.reference.ops.sample import best_candidate, sample, sampling_keys


def test_largest_key_wins_and_of_equals_the_lowest_id() -> None:
    keys = torch.tensor([[1.0, 3.0, 3.0, -1.0], [5.0, 2.0, 2.0, 5.0]])
    ids = torch.tensor([[7, 9, 4, 0], [8, 1, 2, 6]])
    best, tokens = best_candidate(keys, ids)
    assert best.tolist() == [3.0, 5.0] and tokens.tolist() == [4, 6]
    assert sample(keys, ids)["token"].tolist() == [4, 6]


def test_candidates_of_candidates_are_the_best() -> None:
    keys = torch.randn(1, 64).mul(2).round()
    ids = torch.arange(64)
    parts = [best_candidate(keys[:, part::5], ids[part::5]) for part in range(5)]
    merged = sample(*(torch.stack(column, dim=1) for column in zip(*parts, strict=True)))["token"]
    assert merged.item() == int((keys[0] == keys.max()).nonzero()[0])


def test_greedy_keys_are_the_logits() -> None:
    logits = torch.randn(1, 8)
    assert torch.equal(sampling_keys(logits, 0.0, None), logits)


def test_gumbel_keys_draw_from_the_softmax() -> None:
    """1,500 draws from four tokens: every count within five standard deviations of its expectation."""
    logits, temperature, draws = torch.tensor([[0.0, 1.0, 2.0, -1.0]]), 0.8, 1500
    ids = torch.arange(4)
    tokens = [
        int(best_candidate(sampling_keys(logits, temperature, gumbel(3, position, 4)), ids)[1])
        for position in range(draws)
    ]
    expected = (logits[0] / temperature).softmax(0)
    for token, p in enumerate(expected.tolist()):
        assert abs(tokens.count(token) - draws * p) <= 5 * (draws * p * (1 - p)) ** 0.5
