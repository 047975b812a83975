"""Tables of rotary embeddings: cos and sin of position times frequency, for every RopeKind.

The frequencies follow transformers (5.x; 4.x computes the same, except that its YaRN may replace an explicit `factor`
by the ratio of the two contexts) in the order of its fp32 operations, because an angle of some thousand radians shows
every rounding of its frequency.

The frequencies of two kinds depend on the length of the sequence: dynamic NTK's base grows with it, and LongRoPE has
one set for sequences up to the pretrained context and one for longer ones. The rule, for prefill and decode:

- the tokens of a prompt of n tokens are rotated with the frequencies of length n, all of them;
- a token that is decoded at position p is rotated with the frequencies of length p + 1;
- keys that are in the cache stay as they were rotated.

A length up to the pretrained context has the default (LongRoPE: the short) frequencies. So decode needs one table, made
once, whose row p is for length p + 1 (`rope_table(spec, range(max_positions), prompt_length=0)`), and each prompt that
is longer than the pretrained context needs its own, `rope_table(spec, range(n), prompt_length=n)`.
"""

from __future__ import annotations

import math

import torch

from jitmk.model.spec import RopeKind, RopeSpec


def rope_table(
    spec: RopeSpec,
    positions: range | torch.Tensor,
    prompt_length: int,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position and frequency, times the attention factor.

    Row i is for `positions[i]`, column j rotates the dimensions (j, j + rotary_dim / 2) of a head.

    Args:
        spec: the rotary embedding.
        positions: n positions, counted from 0; a tensor must be of an integer type, shape [n].
        prompt_length: length of the prompt in tokens; positions past it are decoded ones. Only kinds that depend on
            the length ask.
        device: where the result goes; it is computed on the CPU, so that it is the same everywhere.

    Returns:
        (cos, sin), each fp32 [n, rotary_dim / 2].
    """
    index = torch.arange(positions.start, positions.stop, positions.step) if isinstance(positions, range) else positions
    index = index.to("cpu", torch.int64)
    lengths = torch.clamp(index + 1, min=prompt_length)  # of the sequences that the tokens were made in
    if spec.kind is RopeKind.DYNAMIC:
        frequencies = _dynamic_frequencies(spec, lengths)
    elif spec.kind is RopeKind.LONGROPE:
        longer = (lengths > spec.original_max_positions)[:, None]
        frequencies = torch.where(longer, _divided(spec, spec.long_factors), _divided(spec, spec.short_factors))
    else:
        frequencies = inverse_frequencies(spec)
    angles = index.to(torch.float32)[:, None] * frequencies
    cos, sin = angles.cos() * spec.attention_factor, angles.sin() * spec.attention_factor
    return cos.to(device), sin.to(device)


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """Radians a token of each pair of dimensions, fp32 [rotary_dim / 2]; those of short sequences where they vary."""
    if spec.kind is RopeKind.LINEAR:
        return _geometric(spec.theta, spec.rotary_dim) / spec.factor
    if spec.kind is RopeKind.LLAMA3:
        return _llama3(spec)
    if spec.kind is RopeKind.YARN:
        return _yarn(spec)
    if spec.kind is RopeKind.LONGROPE:
        return _divided(spec, spec.short_factors)
    return _geometric(spec.theta, spec.rotary_dim)


def _exponents(rotary_dim: int) -> torch.Tensor:
    """0, 2/d, 4/d, ... below 1."""
    return torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim


def _geometric(theta: float, rotary_dim: int) -> torch.Tensor:
    return 1.0 / torch.pow(theta, _exponents(rotary_dim))


def _divided(spec: RopeSpec, factors: tuple[float, ...]) -> torch.Tensor:
    """LongRoPE: every pair has a factor of its own by which it is interpolated."""
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * torch.pow(spec.theta, _exponents(spec.rotary_dim)))


def _dynamic_frequencies(spec: RopeSpec, lengths: torch.Tensor) -> torch.Tensor:
    """NTK-aware scaling: the base grows with the length, so that the slowest pair is interpolated by `factor`.

    Returns:
        fp32 [n, rotary_dim / 2] for `lengths` int64 [n].
    """
    context, dim = spec.original_max_positions, spec.rotary_dim
    stretch = spec.factor * lengths.clamp(min=context) / context - (spec.factor - 1)
    bases = spec.theta * stretch ** (dim / (dim - 2))
    scaled = 1.0 / torch.pow(bases[:, None], _exponents(dim))
    return torch.where((lengths > context)[:, None], scaled, _geometric(spec.theta, dim))


def _llama3(spec: RopeSpec) -> torch.Tensor:
    """Llama 3.1's bands: slow pairs are interpolated, fast ones kept, those between blended by 1/wavelength."""
    plain = _geometric(spec.theta, spec.rotary_dim)
    wavelengths = 2 * math.pi / plain
    context, low, high = spec.original_max_positions, spec.low_freq_factor, spec.high_freq_factor
    keep = (context / wavelengths - low) / (high - low)
    blended = (1 - keep) * plain / spec.factor + keep * plain
    frequencies = torch.where(wavelengths > context / low, plain / spec.factor, blended)
    return torch.where(wavelengths < context / high, plain, frequencies)


def _yarn(spec: RopeSpec) -> torch.Tensor:
    """YaRN's "NTK by parts" (arXiv:2309.00071, section 3.2).

    Pairs that turn more than `beta_fast` times within the original context are kept, those that turn less than
    `beta_slow` times are interpolated, with a linear ramp over the pair's index between.
    """
    pairs = spec.rotary_dim // 2
    low, high = (_pair_that_turns(spec, rotations) for rotations in (spec.beta_fast, spec.beta_slow))
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The upper end is bounded by the last dimension, not by the last pair, as transformers has it.
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    if low == high:
        high += 0.001
    interpolated = ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - interpolated
    scale = torch.pow(spec.theta, _exponents(spec.rotary_dim))
    return 1.0 / (spec.factor * scale) * (1 - kept) + 1.0 / scale * kept


def _pair_that_turns(spec: RopeSpec, rotations: float) -> float:
    """The (fractional) index of the pair that turns `rotations` times within the original context."""
    turns = spec.original_max_positions / (rotations * 2 * math.pi)
    return spec.rotary_dim * math.log(turns) / (2 * math.log(spec.theta))
