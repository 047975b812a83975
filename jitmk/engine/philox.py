"""Philox4x32-10, and the Gumbel noise that sampling draws with: the same numbers here and on the device.

A token is drawn as argmax(logits + noise), which follows softmax(logits) when the noise is Gumbel distributed. The
noise of a token depends on the seed, the position and the token's id alone, so whoever holds part of the vocabulary
can add its own, and the same seed gives the same tokens however the work is split.

The contract with device code:

- key = (seed mod 2^32, seed div 2^32); counter = (token_id div 4, position, 0, 0);
- the four outputs serve the token ids 4i, 4i + 1, 4i + 2, 4i + 3;
- u = (x >> 9) * 2^-23 + 2^-24, in fp32;
- noise = -log(-log(u)), in fp32.

NOTE: u keeps 23 bits of x, not 24, so that it is an odd multiple of 2^-24, which fp32 holds exactly and which is never
0 or 1. With (x >> 8) * 2^-24 + 2^-25 the largest x would round to u = 1 and infinite noise, and a vocabulary of 128 k
would draw such a token, whatever its logit, about once in 130 steps.
"""

from __future__ import annotations

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    """Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: int64 [..., 4], values in [0, 2^32).
        key: two values in [0, 2^32).

    Returns:
        int64 [..., 4], values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def gumbel(seed: int, position: int, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The noise of every token at one position.

    Args:
        seed: in [0, 2^64).
        position: index in the sequence of the token that is drawn, in [0, 2^32).
        vocab_size: how many tokens, from id 0 on.
        device: where to compute.

    Returns:
        fp32 [vocab_size], finite.
    """
    blocks = (vocab_size + 3) // 4
    counter = torch.zeros(blocks, 4, dtype=torch.int64, device=device)
    counter[:, 0] = torch.arange(blocks, device=device)
    counter[:, 1] = position
    bits = philox4x32(counter, (seed & _MASK, seed >> 32)).flatten()[:vocab_size]
    uniform = (bits >> 9).to(torch.float32) * 2.0**-23 + 2.0**-24
    return -torch.log(-torch.log(uniform))


def _multiply(value: torch.Tensor, constant: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of value * constant, in two halves because a whole product does not fit in int64."""
    low_half = value * (constant & 0xFFFF)
    high_half = value * (constant >> 16) + (low_half >> 16)
    return high_half >> 16, ((high_half & 0xFFFF) << 16) | (low_half & 0xFFFF)
