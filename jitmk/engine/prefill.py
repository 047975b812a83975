"""The forward pass over many tokens: whole prompts, on any device, from whatever form the weights are kept in.

Numerics. The residual, norms, rotation and logits are fp32; keys and values are rounded to bf16, for the cache holds
them so. Projections and attention run in the compute type of the weights: bf16 on a GPU, where their results are
rounded once more; fp32 on a CPU, whose bf16 products are slow. So a GPU rounds what transformers' bf16 path rounds
except the residual, the norms and the logits, and a CPU less than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jitmk.engine.attend import attend
from jitmk.engine.prefill_ops import Block, Cache, Observer, PrefillOps, TorchOps, Weights, ignore
from jitmk.engine.rope_tables import RopeTables, Rotation
from jitmk.model.spec import ModelSpec

_PIECE_POSITIONS = 8192
"""Tokens of a prompt that go through the layers together at most."""
_LEAST_PIECE = 512
"""And at least, where memory is short: with fewer, reading the weights takes longer than multiplying them."""
_ACTIVATION_BYTES = 1 << 30
"""What the activations of a piece may take, unless that makes pieces too small."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type of matrix products in plain torch: bf16 on a GPU, fp32 on a CPU, whose bf16 products are slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def prefill_workspace_bytes(spec: ModelSpec, max_seq_len: int) -> int:
    """Device memory that a prefill on a GPU needs at most beside weights and cache: an estimate for the check."""
    activations = min(max_seq_len, _piece_positions(spec)) * _token_bytes(spec)
    # One matrix in rows, twice: its memory may not be free yet when the next one asks. The LM head goes in pieces.
    matrix = 2 * 2 * 2 * spec.intermediate_size * spec.hidden_size
    # Keys and values of everything before a piece, in rows.
    context = 8 * max_seq_len * spec.num_kv_heads * spec.head_dim
    return activations + matrix + context + (256 << 20)


def _token_bytes(spec: ModelSpec) -> int:
    """Bytes of activations a token, with everything that lives at the same time counted together."""
    mlp = 2 * (3 if spec.gated else 2) * spec.intermediate_size
    return mlp + 16 * spec.hidden_size + 8 * spec.qkv_rows


def _piece_positions(spec: ModelSpec) -> int:
    """How many tokens go through the layers together."""
    return max(_LEAST_PIECE, min(_PIECE_POSITIONS, _ACTIVATION_BYTES // _token_bytes(spec)))


class Prefill:
    """Runs tokens through a model and fills its cache.

    Args:
        spec: the model.
        weights: its weights; the device is theirs.
        cache: on the same device.
        ops: what does the work; plain torch when None.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, cache: Cache, ops: PrefillOps | None = None) -> None:
        self._spec = spec
        self._ops = TorchOps(spec, weights, cache) if ops is None else ops
        self._ropes = RopeTables(spec, self._ops.device)

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
        tokens = torch.tensor(list(ids), dtype=torch.int64).to(self._ops.device)
        length = start + len(tokens)
        rotations = self._ropes.rows(start, length, length)
        whole = all_logits or observe is not None
        logits = torch.empty((len(tokens), self._spec.vocab_size)) if all_logits else torch.empty(0)
        hidden, step = logits, _piece_positions(self._spec)
        for begin in range(0, len(tokens), step):
            end = min(len(tokens), begin + step)
            of_piece = [(cos[begin:end], sin[begin:end]) for cos, sin in rotations]
            hidden = self._layers(tokens[begin:end], start + begin, of_piece, whole, observe or ignore)
            if all_logits:
                self._ops.logits(hidden, logits[begin:end])
        return logits if all_logits else self._last_logits(hidden)

    @torch.no_grad()
    def step(self, token: int, position: int, observe: Observer | None = None) -> torch.Tensor:
        """Logits after one decoded token, fp32 [vocab_size] on the weights' device."""
        tokens = torch.tensor([token], dtype=torch.int64).to(self._ops.device)
        rotations = self._ropes.rows(position, position + 1, 0)
        return self._last_logits(self._layers(tokens, position, rotations, True, observe or ignore))

    def _last_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.empty((1, self._spec.vocab_size), device=hidden.device)
        self._ops.logits(hidden[-1:], logits)
        return logits[0]

    def _layers(
        self, tokens: torch.Tensor, start: int, rotations: list[Rotation], whole: bool, observe: Observer
    ) -> torch.Tensor:
        """The residual after the last layer: of all tokens (`whole`), fp32 [n, hidden_size], or of the last one.

        A block's output is added to the residual together with the norm that reads the sum, so it is handed on.
        """
        spec, ops = self._spec, self._ops
        residual = ops.embed(tokens, start)
        observe("embed.residual", residual)
        observe("embed.output", residual)
        block: Block | None = None
        for layer in range(spec.num_layers):
            prefix, last = f"layers.{layer}.", layer == spec.num_layers - 1
            x = ops.add_norm(residual, block, self._name(spec.pre_norm, prefix + "attention_norm"))
            _show(observe, layer - 1, "down", residual, block)
            # Beyond the last layer's keys and values, only what the last token makes of them is looked at.
            rows = len(tokens) if whole or not last else 1
            attended = self._attention(layer, x, rows, rotations, start, observe)
            residual, x = residual[-rows:], x[-rows:]
            block = Block(attended, self._name(spec.post_norm, prefix + "attention_post_norm"))
            if spec.parallel:
                ops.add(residual, block)
            else:
                x = ops.add_norm(residual, block, self._name(spec.pre_norm, prefix + "mlp_norm"))
            _show(observe, layer, "o_proj", residual, block)
            block = Block(self._mlp(layer, x, observe), self._name(spec.post_norm, prefix + "mlp_post_norm"))
        if block is not None:
            ops.add(residual, block)
        _show(observe, spec.num_layers - 1, "down", residual, block)
        return residual

    def _attention(
        self, layer: int, x: torch.Tensor, rows: int, rotations: list[Rotation], start: int, observe: Observer
    ) -> torch.Tensor:
        """o_proj(attention(qkv(x))) of the last `rows` tokens."""
        spec, prefix = self._spec, f"layers.{layer}."
        of_layer = spec.layers[layer]
        qkv = self._ops.project(x, prefix + "qkv", spec.qkv_bias)
        observe(prefix + "qkv.output", qkv)
        rotation = None if of_layer.rope is None else rotations[of_layer.rope]
        queries, keys, values = self._ops.finish_heads(layer, qkv, rotation, start, observe)
        attended = attend(
            queries[:, -rows:],
            keys,
            values,
            scale=spec.attention_scale,
            window=of_layer.window,
            soft_cap=spec.attention_soft_cap,
        )
        observe(prefix + "attention.output", attended)
        return self._ops.project(attended, prefix + "o_proj", spec.o_bias)

    def _mlp(self, layer: int, x: torch.Tensor, observe: Observer) -> torch.Tensor:
        """down(f(gate(x)) * up(x)), or down(f(up(x)))."""
        prefix = f"layers.{layer}."
        first = prefix + ("gate_up" if self._spec.gated else "up")
        hidden = self._ops.activate(self._ops.project(x, first, self._spec.mlp_bias))
        observe(f"{first}.output", hidden)
        return self._ops.project(hidden, prefix + "down", self._spec.mlp_bias)

    @staticmethod
    def _name(there: bool, name: str) -> str | None:
        return name if there else None


def _show(observe: Observer, layer: int, writer: str, residual: torch.Tensor, block: Block | None) -> None:
    """Shows the residual after a block; with a post-norm, the program has the block's output in a buffer too."""
    if block is None:
        return
    prefix = f"layers.{layer}."
    if block.post_norm is not None:
        observe(f"{prefix}{writer}.output", block.output)
        writer = "attention_add" if writer == "o_proj" else "mlp_add"
    observe(f"{prefix}{writer}.residual", residual)
    observe(f"{prefix}{writer}.output", residual)
