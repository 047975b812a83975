"""The forward pass in plain torch: whole prompts, on any device, from whatever form the weights are kept in.

Numerics. The residual, RMSNorm, RoPE and the logits are fp32; keys and values are rounded to bf16, for the cache holds
them so. Projections and attention run in the compute type of the weights: bf16 on a GPU, where their results are
rounded once more; fp32 on a CPU, whose bf16 products are slow. So a GPU rounds what transformers' bf16 path rounds
except the residual, the norms and the logits, and a CPU less than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from jitmk.model.rope import rope_table
from jitmk.model.spec import ModelSpec
from jitmk.program.packing import UNIT_ROWS

Observer = Callable[[str, torch.Tensor], None]
"""Is shown each buffer of the program (`program/lowering.py`) by name, as fp32 [tokens, values], to copy or look at."""

_PIECE_POSITIONS = 2048
"""Tokens of a prompt that go through the layers together; bounds the memory of activations."""
_MASKED_QUERIES = 256
"""Queries that attend together where attention needs an explicit mask; bounds the memory of the mask."""
_HEAD_BYTES = 128 << 20
"""Bytes of the LM head in fp32 that are multiplied at a time."""


class Weights(Protocol):
    """A model's weights by the names of `program/weights.py`, in whatever form they are kept."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of `matrix` and of the activations that it is multiplied with."""

    def matrix(self, name: str) -> torch.Tensor:
        """A matrix, `compute_dtype` [rows, columns]; possibly a copy that lives as long as the caller keeps it."""

    def head_rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows of the LM head, fp32 [end - begin, hidden_size]; `begin` is a multiple of 8."""

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, fp32 [n, hidden_size], for ids int64 [n]."""

    def vector(self, name: str) -> torch.Tensor:
        """A constant vector, fp32 [values]."""


class Cache(Protocol):
    """The keys and values of one sequence."""

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores positions from `start` on, rounded to bf16; keys and values are [kv_heads, positions, head_dim]."""

    def read(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first positions, each [kv_heads, positions, head_dim]."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type of matrix products in plain torch: bf16 on a GPU, fp32 on a CPU, whose bf16 products are slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def prefill_workspace_bytes(spec: ModelSpec, max_seq_len: int) -> int:
    """Device memory that a prefill on a GPU needs at most beside weights and cache: an estimate for the check."""
    piece = min(max_seq_len, _PIECE_POSITIONS)
    # Twice the largest matrix, for unpacking goes through a padded copy, and the LM head's piece in bf16 and fp32.
    matrix = 2 * 2 * 2 * spec.intermediate_size * spec.hidden_size
    activations = piece * (8 * spec.intermediate_size + 16 * spec.hidden_size + 8 * spec.qkv_rows)
    context = 8 * max_seq_len * spec.num_kv_heads * spec.head_dim
    return matrix + activations + context + 3 * _HEAD_BYTES


class Prefill:
    """Runs tokens through a model and fills its cache.

    Args:
        spec: the model.
        weights: its weights; the device is theirs.
        cache: on the same device.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, cache: Cache) -> None:
        self._spec = spec
        self._weights = weights
        self._cache = cache

    @torch.no_grad()
    def run(
        self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False, observe: Observer | None = None
    ) -> torch.Tensor:
        """Logits of a prompt, or of tokens that continue what is in the cache.

        Args:
            ids: token ids, at least one.
            start: position of ids[0]; 0, or what earlier calls filled.
            all_logits: whether the logits of every token are wanted, not only the last one's.
            observe: is shown the program's buffers (of each piece of a long prompt).

        Returns:
            fp32 [vocab_size] on the weights' device; with `all_logits`, fp32 [len(ids), vocab_size] on the CPU.
        """
        tokens = torch.tensor(list(ids), dtype=torch.int64, device=self._weights.device)
        length = start + len(tokens)
        logits = torch.empty((len(tokens), self._spec.vocab_size)) if all_logits else torch.empty(0)
        hidden = logits
        for begin in range(0, len(tokens), _PIECE_POSITIONS):
            piece = tokens[begin : begin + _PIECE_POSITIONS]
            hidden = self._layers(piece, start + begin, length, observe or _ignore)
            if all_logits:
                self._head(hidden, logits[begin : begin + len(piece)])
        return logits if all_logits else self.last_logits(hidden)

    @torch.no_grad()
    def step(self, token: int, position: int, observe: Observer | None = None) -> torch.Tensor:
        """Logits after one decoded token, fp32 [vocab_size] on the weights' device."""
        tokens = torch.tensor([token], dtype=torch.int64, device=self._weights.device)
        hidden = self._layers(tokens, position, 0, observe or _ignore)
        return self.last_logits(hidden)

    def last_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the last of `hidden` fp32 [n, hidden_size] (the residual before the final norm)."""
        logits = torch.empty((1, self._spec.vocab_size), device=hidden.device)
        self._head(hidden[-1:], logits)
        return logits[0]

    def _layers(self, tokens: torch.Tensor, start: int, prompt_length: int, observe: Observer) -> torch.Tensor:
        """The residual after the last layer, fp32 [n, hidden_size]; `prompt_length` is what `rope_table` takes."""
        positions = range(start, start + len(tokens))
        rope = rope_table(self._spec.rope, positions, prompt_length, self._weights.device)
        residual = self._weights.embedding(tokens)
        _show_residual(observe, "embed", residual)
        for layer in range(self._spec.num_layers):
            self._attention_block(layer, residual, rope, start, observe)
            self._mlp_block(layer, residual, observe)
        return residual

    def _attention_block(
        self, layer: int, residual: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], start: int, observe: Observer
    ) -> None:
        """residual += o_proj(attention(qkv(norm(residual)))), in place."""
        spec, prefix = self._spec, f"layers.{layer}."
        normed = self._norm(residual, prefix + "attention_norm")
        qkv = self._project(normed, prefix + "qkv", spec.qkv_bias)
        observe(prefix + "qkv.output", qkv)
        heads = qkv.view(len(qkv), -1, spec.head_dim).transpose(0, 1)
        queries, keys, values = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads])
        self._cache.write(layer, start, _rotate(keys, rope), values)
        attended = self._attend(layer, _rotate(queries, rope), start)
        observe(prefix + "attention.output", attended)
        residual += self._project(attended, prefix + "o_proj", spec.o_bias)
        _show_residual(observe, prefix + "o_proj", residual)

    def _mlp_block(self, layer: int, residual: torch.Tensor, observe: Observer) -> None:
        """residual += down(silu(gate) * up), in place; gate and up rows alternate."""
        spec, prefix = self._spec, f"layers.{layer}."
        normed = self._norm(residual, prefix + "mlp_norm")
        gate_up = self._project(normed, prefix + "gate_up", spec.mlp_bias)
        hidden = F.silu(gate_up[:, 0::2]) * gate_up[:, 1::2]
        observe(prefix + "gate_up.output", hidden)
        residual += self._project(hidden, prefix + "down", spec.mlp_bias)
        _show_residual(observe, prefix + "down", residual)

    def _attend(self, layer: int, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Causal attention over the cache: queries [heads, n, head_dim] -> fp32 [n, heads * head_dim]."""
        spec, dtype, count = self._spec, self._weights.compute_dtype, queries.shape[1]
        grouped = queries.to(dtype).view(spec.num_kv_heads, spec.query_group, count, spec.head_dim)
        total = start + count
        # Each key/value head is broadcast over its group of query heads without being copied.
        keys, values = (
            cached.to(dtype)[:, None].expand(-1, spec.query_group, -1, -1) for cached in self._cache.read(layer, total)
        )
        if start == 0 or count == 1:
            pieces = [
                F.scaled_dot_product_attention(grouped, keys, values, is_causal=count > 1, scale=spec.attention_scale)
            ]
        else:
            pieces = []
            key_positions = torch.arange(total, device=queries.device)
            for begin in range(0, count, _MASKED_QUERIES):
                some = grouped[:, :, begin : begin + _MASKED_QUERIES]
                last = torch.arange(start + begin, start + begin + some.shape[2], device=queries.device)
                mask = key_positions <= last[:, None]
                pieces.append(
                    F.scaled_dot_product_attention(some, keys, values, attn_mask=mask, scale=spec.attention_scale)
                )
        attended = torch.cat(pieces, dim=2).flatten(0, 1).transpose(0, 1)
        return attended.reshape(count, spec.attention_size).float()

    def _project(self, x: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        """x W^T + b, fp32 [n, rows]."""
        weights = self._weights
        y = F.linear(x.to(weights.compute_dtype), weights.matrix(name)).float()
        return y + weights.vector(f"{name}_bias") if bias else y

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMSNorm in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self._spec.norm_eps)
        return x * scale * self._weights.vector(name)

    def _head(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Final norm and LM head in fp32, a piece of the vocabulary at a time: hidden [n, h] -> out [n, vocab]."""
        normed = self._norm(hidden, "final_norm")
        vocab = self._spec.vocab_size
        rows = max(UNIT_ROWS, _HEAD_BYTES // (4 * self._spec.hidden_size) // UNIT_ROWS * UNIT_ROWS)
        for begin in range(0, vocab, rows):
            end = min(vocab, begin + rows)
            out[:, begin:end] = F.linear(normed, self._weights.head_rows(begin, end))


def _rotate(heads: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of fp32 [heads, n, head_dim]: pairs (i, i + rotary_dim / 2) turn by the table's angles."""
    cos, sin = rope
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _show_residual(observe: Observer, writer: str, residual: torch.Tensor) -> None:
    observe(f"{writer}.residual", residual)
    observe(f"{writer}.output", residual)


def _ignore(name: str, values: torch.Tensor) -> None:
    """The observer of those who want none."""
