"""The parts of a forward pass over many tokens: what `engine/prefill.py` is written in.

There are two implementations: `TorchOps`, here, for any device and any form of the weights, and `KernelOps` in
`engine/prefill_kernels.py` for a GPU, which does the same in a few kernels over the packed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from jitmk.engine.rope_tables import Rotation
from jitmk.model.spec import Activation, ModelSpec, NormKind, QkNormScope
from jitmk.program.packing import UNIT_ROWS

Observer = Callable[[str, torch.Tensor], None]
"""Is shown the buffers of the program (`program/lowering.py`) by name, as [tokens, values], to copy or look at."""


def ignore(name: str, values: torch.Tensor) -> None:
    """The observer of those who want none."""


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

    def position_embedding(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the position embedding, fp32 [n, hidden_size], for positions int64 [n]."""

    def vector(self, name: str) -> torch.Tensor:
        """A constant vector, fp32 [values]."""


class Cache(Protocol):
    """The keys and values of one sequence."""

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores positions from `start` on, rounded to bf16; keys and values are [kv_heads, positions, head_dim]."""

    def read(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first positions, each [kv_heads, positions, head_dim]."""


@dataclass(frozen=True)
class Block:
    """What attention or MLP adds to the residual.

    Attributes:
        output: `compute_dtype` [n, hidden_size].
        post_norm: name of the norm's weight that it goes through first, or None.
    """

    output: torch.Tensor
    post_norm: str | None

    def rows(self, begin: int) -> Block:
        """The same of the tokens from `begin` on."""
        return Block(self.output[begin:], self.post_norm)


class PrefillOps(Protocol):
    """n tokens at a time; the residual is fp32 [n, hidden_size], everything else of `compute_dtype`."""

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""

    def embed(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """The first residual, for ids int64 [n], the first of them at position `start`."""

    def add(self, residual: torch.Tensor, block: Block) -> None:
        """residual += residual_scale * post_norm(block), in place."""

    def add_norm(self, residual: torch.Tensor, block: Block | None, norm: str | None) -> torch.Tensor:
        """`add` where there is a block, then the norm of that name, if any, of the residual: [n, hidden_size]."""

    def project(self, x: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        """x W^T + b: [n, rows] for x [n, columns]."""

    def finish_heads(
        self, layer: int, qkv: torch.Tensor, rotation: Rotation | None, start: int, observe: Observer = ignore
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Norms and rotates queries and keys, and appends keys and values to the cache.

        Args:
            layer: which one.
            qkv: [n, qkv_rows], which may be overwritten.
            rotation: cos and sin of each token; None where the layer does not rotate.
            start: position of the first token.
            observe: is shown what lies in a buffer of the program, if the implementation has it by itself.

        Returns:
            queries [heads, n, head_dim]; keys and values of positions [0, start + n) as the cache holds them,
            [kv_heads, start + n, head_dim].
        """

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """[n, intermediate_size]: f(gate) * up for x = gate, up, gate, up, ..., or f(x) in a model without gate."""

    def logits(self, residual: torch.Tensor, out: torch.Tensor) -> None:
        """Final norm and LM head: residual [n, hidden_size] -> out, fp32 [n, vocab_size] on any device."""


class TorchOps:
    """Implements `PrefillOps` in plain torch.

    Args:
        spec: the model.
        weights: its weights; the device is theirs.
        cache: on the same device.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, cache: Cache) -> None:
        self._spec = spec
        self._weights = weights
        self._cache = cache
        self._biases: dict[str, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self._weights.device

    def embed(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """As `PrefillOps.embed`."""
        residual = self._weights.embedding(ids) * self._spec.embedding_scale
        if self._spec.learned_positions:
            residual += self._weights.position_embedding(torch.arange(start, start + len(ids), device=ids.device))
        return residual

    def add(self, residual: torch.Tensor, block: Block) -> None:
        """As `PrefillOps.add`."""
        added = block.output.float()
        if block.post_norm is not None:
            added = self._norm(added, block.post_norm)
        residual.add_(added, alpha=self._spec.residual_scale)

    def add_norm(self, residual: torch.Tensor, block: Block | None, norm: str | None) -> torch.Tensor:
        """As `PrefillOps.add_norm`."""
        if block is not None:
            self.add(residual, block)
        if norm is None:
            return residual.to(self._weights.compute_dtype, copy=True)  # the residual changes in place
        return self._norm(residual, norm).to(self._weights.compute_dtype)

    def project(self, x: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        """As `PrefillOps.project`."""
        if bias and name not in self._biases:
            self._biases[name] = self._weights.vector(f"{name}_bias").to(x.dtype)
        return F.linear(x, self._matrix(name), self._biases.get(name))

    def _matrix(self, name: str) -> torch.Tensor:
        return self._weights.matrix(name)

    def finish_heads(
        self, layer: int, qkv: torch.Tensor, rotation: Rotation | None, start: int, observe: Observer = ignore
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `PrefillOps.finish_heads`."""
        spec, dtype = self._spec, self._weights.compute_dtype
        heads = qkv.float().view(len(qkv), -1, spec.head_dim)
        queries, keys, values = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        queries, keys = (
            self._qk_norm(x, f"layers.{layer}.{name}") for x, name in ((queries, "q_norm"), (keys, "k_norm"))
        )
        if spec.qk_norm is not None and observe is not ignore:
            observe(f"layers.{layer}.qk_norm.output", torch.cat((queries, keys), dim=1).flatten(1))
        queries, keys = (_rotate(x.transpose(0, 1), rotation) for x in (queries, keys))
        self._cache.write(layer, start, keys, values.transpose(0, 1))
        cached = self._cache.read(layer, start + len(qkv))
        return queries.to(dtype), cached[0].to(dtype), cached[1].to(dtype)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """As `PrefillOps.activate`."""
        if not self._spec.gated:
            return activation(self._spec.activation, x.float()).to(x.dtype)
        return (activation(self._spec.activation, x[:, 0::2].float()) * x[:, 1::2]).to(x.dtype)

    def logits(self, residual: torch.Tensor, out: torch.Tensor) -> None:
        """As `PrefillOps.logits`: in fp32, a piece of the vocabulary at a time."""
        normed = self._norm(residual, "final_norm")
        rows = max(UNIT_ROWS, _HEAD_BYTES // (4 * self._spec.hidden_size) // UNIT_ROWS * UNIT_ROWS)
        for begin in range(0, self._spec.vocab_size, rows):
            end = min(self._spec.vocab_size, begin + rows)
            out[:, begin:end] = self._finish_logits(F.linear(normed, self._head_rows(begin, end)))

    def _head_rows(self, begin: int, end: int) -> torch.Tensor:
        return self._weights.head_rows(begin, end)

    def _finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and soft cap, in place."""
        if self._spec.logit_scale != 1.0:
            logits *= self._spec.logit_scale
        if self._spec.logit_soft_cap is not None:
            cap = self._spec.logit_soft_cap
            logits.div_(cap).tanh_().mul_(cap)
        return logits

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """A norm over hidden_size in fp32."""
        norm = self._spec.norm
        normed = _normalise(x, norm.kind, norm.eps) * self._weights.vector(name)
        return normed + self._weights.vector(f"{name}_bias") if norm.bias else normed

    def _qk_norm(self, heads: torch.Tensor, name: str) -> torch.Tensor:
        """The norm of queries or keys, fp32 [n, heads, head_dim], where the model has one."""
        norm = self._spec.qk_norm
        if norm is None:
            return heads
        weight = self._weights.vector(name)
        if norm.scope is QkNormScope.PROJECTION:
            return (_normalise(heads.flatten(1), norm.kind, norm.eps) * weight).view(heads.shape)
        return _normalise(heads, norm.kind, norm.eps) * weight.view(-1, heads.shape[2])


def activation(kind: Activation, x: torch.Tensor) -> torch.Tensor:
    """The nonlinearity of the MLP."""
    if kind is Activation.SILU:
        return F.silu(x)
    if kind is Activation.RELU:
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if kind is Activation.GELU_TANH else "none")


def _normalise(x: torch.Tensor, kind: NormKind, eps: float) -> torch.Tensor:
    """x over its root mean square (Zhang and Sennrich 2019) or deviation (Ba et al. 2016), along the last dimension."""
    if kind is NormKind.LAYER:
        x = x - x.mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _rotate(heads: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Rotary embedding of fp32 [heads, n, head_dim]: pairs (i, i + rotary_dim / 2) turn by the table's angles."""
    if rotation is None:
        return heads
    cos, sin = rotation
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
