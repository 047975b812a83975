"""What a ModelSpec means, written down in the plainest torch there is: fp32, no cache, every position at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from jitmk.model.checkpoint import WeightSource
from jitmk.model.rope import rope_table
from jitmk.model.spec import Activation, NormKind, QkNorm, QkNormScope, Role, WeightKey, weight_offset

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
}


class PlainModel:
    """A model that computes the logits of a whole prompt."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._spec = source.spec

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """fp32 [tokens, vocab_size] of int64 [tokens]."""
        spec = self._spec
        embedding = self._weight(Role.EMBEDDING)
        x = embedding[ids] * spec.embedding_scale
        if spec.learned_positions:
            x = x + self._weight(Role.POSITION_EMBEDDING)[: len(ids)]
        for layer in range(spec.num_layers):
            source, shared = x, Role.ATTENTION_NORM if spec.parallel else Role.MLP_NORM
            for block, before, after in (
                (self._attention, Role.ATTENTION_NORM, Role.ATTENTION_POST_NORM),
                (self._mlp, shared, Role.MLP_POST_NORM),
            ):
                n = source if spec.parallel else x
                y = block(self._norm(n, before, layer) if spec.pre_norm else n, layer)
                x = x + spec.residual_scale * (self._norm(y, after, layer) if spec.post_norm else y)
        head = embedding if spec.tied_embeddings else self._weight(Role.LM_HEAD)
        return _capped(self._norm(x, Role.FINAL_NORM, None) @ head.t() * spec.logit_scale, spec.logit_soft_cap)

    def _weight(self, role: Role, layer: int | None = None) -> torch.Tensor:
        return self._source.tensor(WeightKey(role, layer)).float() + weight_offset(self._spec, role)

    def _norm(self, x: torch.Tensor, role: Role, layer: int | None) -> torch.Tensor:
        norm = self._spec.norm
        y = _normalised(x, norm.kind, norm.eps) * self._weight(role, layer)
        return y + self._weight(Role(f"{role.value}_bias"), layer) if norm.bias else y

    def _project(self, x: torch.Tensor, role: Role, layer: int, bias: bool) -> torch.Tensor:
        y = x @ self._weight(role, layer).t()
        return y + self._weight(Role(f"{role.value}_bias"), layer) if bias else y

    def _mlp(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        spec = self._spec
        up = self._project(x, Role.UP, layer, spec.mlp_bias)
        if spec.gated:
            y = _ACTIVATIONS[spec.activation](self._project(x, Role.GATE, layer, spec.mlp_bias)) * up
        else:
            y = _ACTIVATIONS[spec.activation](up)
        return self._project(y, Role.DOWN, layer, spec.mlp_bias)

    def _attention(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        spec, tokens = self._spec, len(x)
        q, k, v = (self._project(x, role, layer, spec.qkv_bias) for role in (Role.Q, Role.K, Role.V))
        if spec.qk_norm is not None:
            q = _qk_normed(q, self._weight(Role.Q_NORM, layer), spec.qk_norm, spec.head_dim)
            k = _qk_normed(k, self._weight(Role.K_NORM, layer), spec.qk_norm, spec.head_dim)
        q, k, v = (y.reshape(tokens, -1, spec.head_dim).transpose(0, 1) for y in (q, k, v))
        rope, window = spec.layers[layer].rope, spec.layers[layer].window
        if rope is not None:
            cos, sin = rope_table(spec.ropes[rope], range(tokens), tokens)
            q, k = (_rotated(y, cos, sin) for y in (q, k))
        k, v = (y.repeat_interleave(spec.query_group, 0) for y in (k, v))
        scores = _capped(q @ k.transpose(1, 2) * spec.attention_scale, spec.attention_soft_cap)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        seen = (distance >= 0) & (distance < (window or tokens))
        output = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        return self._project(output.transpose(0, 1).reshape(tokens, -1), Role.O, layer, spec.o_bias)


def _normalised(x: torch.Tensor, kind: NormKind, eps: float) -> torch.Tensor:
    if kind is NormKind.LAYER:
        x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _qk_normed(x: torch.Tensor, weight: torch.Tensor, norm: QkNorm, head_dim: int) -> torch.Tensor:
    groups = x if norm.scope is QkNormScope.PROJECTION else x.reshape(len(x), -1, head_dim)
    return (_normalised(groups, norm.kind, norm.eps) * weight).reshape(x.shape)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _capped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)
