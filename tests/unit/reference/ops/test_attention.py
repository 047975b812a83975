from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from jitmk.model.spec import NormKind
from jitmk.program.configs import LSE_WORDS, AttentionConfig, AttentionReduceConfig
from jitmk.reference.ops.attention import NewToken, attention, new_key_value, old_positions, prepared
from jitmk.reference.ops.attention_reduce import attention_reduce
from jitmk.reference.ops.rope import rotate
from jitmk.reference.ops.rounding import to_bf16

HEADS, KV_HEADS, DIM = 6, 2, 32


def config(*, group: int = 3) -> AttentionConfig:
    return AttentionConfig(HEADS, KV_HEADS, DIM, group, DIM**-0.5, 1, DIM, DIM // 2)


def merged(parts: dict[str, torch.Tensor], splits: int) -> torch.Tensor:
    """What ATTENTION_REDUCE makes of the units of ATTENTION: (group, split), split fastest; it reads [split][head]."""
    shape = KV_HEADS, splits, HEADS // KV_HEADS, -1
    partial, lse = (parts[name].view(shape).transpose(0, 1).reshape(1, -1) for name in ("output", "lse_out"))
    return attention_reduce(AttentionReduceConfig(HEADS, DIM, 1), range(HEADS), splits, partial, lse)["output"]


def new_token(position: int, seed: int = 0) -> tuple[NewToken, torch.Tensor, torch.Tensor]:
    """A token, and the keys and values in its cache, [kv_heads, position, head_dim]."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = to_bf16(torch.randn(2, KV_HEADS, position, DIM, generator=generator))
    qkv = to_bf16(torch.randn(HEADS + 2 * KV_HEADS, DIM, generator=generator))
    angles = torch.rand(DIM // 2, generator=generator) * 6

    def read(kv_head: int, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert 0 <= begin <= end <= position
        return keys[kv_head, begin:end], values[kv_head, begin:end]

    return NewToken(qkv, qkv, angles.cos(), angles.sin(), position, read), keys, values


def truth(token: NewToken, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax attention in fp64, [heads * head_dim]."""
    outputs = []
    queries = rotate(token.heads[:HEADS], token.cos, token.sin).double()
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        key, value = new_key_value(config(), kv_head, token, torch.float64)
        all_keys = torch.cat((keys[kv_head], key[None])).double()
        all_values = torch.cat((values[kv_head], value[None])).double()
        outputs.append((all_keys @ queries[head] * DIM**-0.5).softmax(0) @ all_values)
    return torch.cat(outputs)


# Probabilities that are rounded to bf16 add up to within 2^-9 of their sum, the result is rounded once more: values of
# up to 4 may be off by 4 * 2^-9 + 4 * 2^-9. A split's output is rounded too, but several do not err alike.
TOLERANCE = 2.0**-6


@pytest.mark.parametrize("position", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("group", [3, 2, 1])
def test_attention_without_splits(position: int, group: int) -> None:
    token, keys, values = new_token(position)
    shape = config(group=group)
    out = attention(shape, range(shape.groups), 1, [token])["output"]
    assert out.shape == (1, HEADS * DIM)
    assert (out[0] - truth(token, keys, values)).abs().max() <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 120), st.integers(2, 9), st.integers(0, 5))
def test_splits_and_their_merge(position: int, splits: int, seed: int) -> None:
    token, keys, values = new_token(position, seed)
    shape = config()
    out = merged(attention(shape, range(shape.groups * splits), splits, [token]), splits)
    assert (out[0] - truth(token, keys, values)).abs().max() <= TOLERANCE


def test_a_split_without_positions_counts_nothing() -> None:
    token, _, _ = new_token(3)
    shape = config()
    out = attention(shape, range(1), 4, [token])
    assert (out["output"] == 0).all() and (out["lse_out"] == -math.inf).all()
    assert out["output"].shape == (1, 3 * DIM) and out["lse_out"].shape == (1, 3 * LSE_WORDS)


def test_normalisers_are_those_of_the_softmax() -> None:
    token, keys, _ = new_token(40)
    (first, second), queries = range(2), rotate(token.heads[:HEADS], token.cos, token.sin).double()
    split = old_positions(40, first, 2)
    lse = attention(config(), range(second), 2, [token])["lse_out"][0].view(-1, LSE_WORDS)
    scores = queries[:3] @ keys[0, split.start : split.stop].double().T * DIM**-0.5
    assert (lse - scores.logsumexp(1, keepdim=True) / math.log(2)).abs().max() <= 2**-18


@given(st.integers(0, 3000), st.integers(1, 40))
def test_splits_cover_the_context_in_whole_tiles(position: int, splits: int) -> None:
    ranges = [old_positions(position, split, splits) for split in range(splits)]
    assert [p for some in ranges for p in some] == list(range(position))
    assert all(some.start % 16 == 0 for some in ranges)
    tiles = [math.ceil(len(some) / 16) for some in ranges]
    assert max(tiles) - min(tiles) <= 1


def test_each_token_has_its_own_context() -> None:
    tokens = [new_token(position, seed=position)[0] for position in (5, 40)]
    shape = config()
    together = attention(shape, range(shape.groups), 1, tokens)["output"]
    alone = [attention(shape, range(shape.groups), 1, [token])["output"] for token in tokens]
    assert torch.equal(together, torch.cat(alone))


def test_units_read_what_the_program_says() -> None:
    """A unit that does not hold the new token leaves its key and value alone, and other heads' queries."""
    token, _, _ = new_token(40)
    poisoned = token.heads.clone()
    poisoned[3:] = torch.nan
    clean = attention(config(), range(1), 2, [token])["output"]
    read = replace(token, heads=poisoned, values=poisoned)
    assert torch.equal(attention(config(), range(1), 2, [read])["output"], clean)
    assert attention(config(), range(1, 2), 2, [read])["output"].isnan().any()


def test_a_window_hides_what_lies_before_it() -> None:
    """Keys and values in front of the window are not even asked for."""
    for window, position in ((1, 40), (5, 40), (17, 40), (32, 48), (41, 40), (100, 40)):
        token, keys, values = new_token(position)
        first = max(0, position + 1 - window)

        def read(
            kv_head: int, begin: int, end: int, token: NewToken = token, first: int = first
        ) -> tuple[torch.Tensor, torch.Tensor]:
            assert begin >= first
            return token.read_kv(kv_head, begin, end)

        shape = config()
        out = attention(shape, range(shape.groups), 1, [replace(token, read_kv=read)], window=window)["output"]
        assert (out[0] - truth(token, keys[:, first:], values[:, first:])).abs().max() <= TOLERANCE
        parts = attention(shape, range(shape.groups * 3), 3, [replace(token, read_kv=read)], window=window)
        assert (merged(parts, 3) - out).abs().max() <= TOLERANCE


@given(st.integers(0, 3000), st.integers(1, 40), st.integers(1, 700))
def test_splits_cover_the_window(position: int, splits: int, window: int) -> None:
    ranges = [old_positions(position, split, splits, window) for split in range(splits)]
    assert [p for some in ranges for p in some] == list(range(max(0, position + 1 - window), position))
    assert all(some.start % 16 == 0 for some in ranges if some and some.start > max(0, position + 1 - window))
    tiles = [len({p // 16 for p in some}) for some in ranges]
    assert max(tiles) - min(tiles) <= 1


def test_capped_scores() -> None:
    token, keys, values = new_token(30)
    shape = replace(config(), soft_cap=0.75)
    out = attention(shape, range(shape.groups), 1, [token])["output"][0].view(HEADS, DIM)
    queries = rotate(token.heads[:HEADS], token.cos, token.sin).double()
    for head in range(HEADS):
        key, value = new_key_value(shape, head // 3, token, torch.float64)
        all_keys = torch.cat((keys[head // 3], key[None])).double()
        scores = 0.75 * torch.tanh(all_keys @ queries[head] * DIM**-0.5 / 0.75)
        expected = scores.softmax(0) @ torch.cat((values[head // 3], value[None])).double()
        assert (out[head] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", NormKind)
def test_heads_are_normed_before_they_are_rotated(kind: NormKind) -> None:
    token, _, _ = new_token(0)
    norms = 1 + torch.randn(2, DIM) / 4
    token = replace(token, heads=3 * token.heads, q_norm=norms[0], k_norm=norms[1])
    shape = replace(config(), qk_norm=kind, qk_norm_eps=1e-3)
    for heads, norm in ((slice(0, HEADS), norms[0]), (slice(HEADS, HEADS + KV_HEADS), norms[1])):
        if kind is NormKind.RMS:
            normed = functional.rms_norm(token.heads[heads], (DIM,), norm, 1e-3)
        else:
            normed = functional.layer_norm(token.heads[heads], (DIM,), norm, None, 1e-3)
        got = prepared(shape, token.heads[heads], norm, token, torch.float64)
        assert torch.allclose(got, rotate(normed, token.cos, token.sin), rtol=2**-7, atol=1e-6)
    key, value = new_key_value(shape, 1, token, torch.float64)
    assert torch.equal(key, prepared(shape, token.heads[HEADS + 1 : HEADS + 2], norms[1], token, torch.float64)[0])
    assert torch.equal(value, token.values[HEADS + KV_HEADS + 1])


def test_without_rotation_heads_stay_as_they_are() -> None:
    token, _, _ = new_token(20)
    still = replace(token, cos=torch.empty(0), sin=torch.empty(0))
    shape = config()
    assert torch.equal(prepared(shape, still.heads, None, still, torch.float32), still.heads)


def test_values_come_from_their_own_buffer() -> None:
    token, _, _ = new_token(3)
    shape = config()
    heads, values = token.heads.clone(), token.values.clone()
    heads[HEADS + KV_HEADS :] = torch.nan
    values[: HEADS + KV_HEADS] = torch.nan
    apart = attention(shape, range(shape.groups), 1, [replace(token, heads=heads, values=values)])["output"]
    assert torch.equal(apart, attention(shape, range(shape.groups), 1, [token])["output"])
