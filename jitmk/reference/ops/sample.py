"""SAMPLE, and the part of sampling that the LM head's instructions do: keys and candidates."""

from __future__ import annotations

import torch


def sampling_keys(logits: torch.Tensor, temperature: float, noise: torch.Tensor | None) -> torch.Tensor:
    """What the next token has the largest of: the logit, or logit / temperature + Gumbel noise.

    Args:
        logits: fp32 [tokens, n].
        temperature: 0 for greedy.
        noise: fp32 [n], of the same tokens of the vocabulary; None for greedy.

    Returns:
        fp32 [tokens, n].
    """
    if temperature == 0.0 or noise is None:
        return logits
    # The device multiplies with the reciprocal, rounded to fp32.
    return logits * torch.tensor(1.0 / temperature, dtype=torch.float32) + noise


def best_candidate(keys: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidate with the largest key, of equals the one with the lowest token id.

    Args:
        keys: fp32 [tokens, n].
        ids: int64 [n] or [tokens, n], token ids.

    Returns:
        (key fp32 [tokens], token id int64 [tokens]).
    """
    best = keys.amax(-1)
    none = torch.iinfo(torch.int64).max
    tokens = torch.where(keys == best[:, None], ids.expand_as(keys), none).amin(-1)
    return best, tokens


def sample(keys: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The choice among the candidates of the LM head's instructions.

    Args:
        keys: fp32 [tokens, candidates].
        ids: int64 [tokens, candidates].

    Returns:
        "token": int64 [tokens].
    """
    return {"token": best_candidate(keys, ids)[1]}
