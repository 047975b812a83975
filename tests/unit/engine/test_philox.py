"""Philox4x32-10 against its published answers, and the Gumbel noise that is made from it."""

from __future__ import annotations

import math

import pytest
import torch

from jitmk.engine.philox import gumbel, philox4x32

# Known answers of the Random123 library (kat_vectors): counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]) -> None:
    assert philox4x32(torch.tensor(counter), key).tolist() == list(output)


def test_counters_are_independent_of_their_batch() -> None:
    counters = torch.tensor([answer[0] for answer in KNOWN_ANSWERS])
    batched = philox4x32(counters.reshape(3, 1, 4), (1, 2))
    assert torch.equal(batched[2, 0], philox4x32(counters[2], (1, 2)))


def test_noise_follows_the_contract() -> None:
    seed, position = 0x0123456789ABCDEF, 77
    noise = gumbel(seed, position, 11)
    for token in range(11):
        bits = philox4x32(torch.tensor([token // 4, position, 0, 0]), (0x89ABCDEF, 0x01234567))[token % 4].item()
        uniform = (int(bits) >> 9) * 2.0**-23 + 2.0**-24
        assert 0 < uniform < 1
        assert noise[token].item() == pytest.approx(-math.log(-math.log(uniform)), rel=1e-5, abs=1e-6)


def test_noise_does_not_depend_on_the_vocabulary() -> None:
    assert torch.equal(gumbel(5, 3, 100)[:37], gumbel(5, 3, 37))


def test_the_extreme_uniforms_are_exact_in_fp32() -> None:
    for bits in (0, 2**32 - 1):
        exact = (bits >> 9) * 2.0**-23 + 2.0**-24
        assert torch.tensor(exact, dtype=torch.float32).item() == exact
        assert math.isfinite(-math.log(-math.log(exact)))


def test_noise_is_gumbel_distributed() -> None:
    noise = torch.cat([gumbel(seed, 1000, 50_000) for seed in range(4)]).double()
    assert noise.isfinite().all()
    # Mean and variance of the standard Gumbel distribution, within 5 standard errors of 200,000 samples.
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=5 * 1.2825 / 200_000**0.5)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=5 * 3.45 / 200_000**0.5)


def test_seeds_and_positions_give_different_noise() -> None:
    rows = [gumbel(seed, position, 64) for seed in (0, 1, 2**32, 2**64 - 1) for position in (0, 1)]
    assert len({tuple(row.tolist()) for row in rows}) == 8
