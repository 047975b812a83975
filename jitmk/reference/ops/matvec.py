"""MATVEC: y = epilogue(W prologue(x) + b), for units of 8 rows of W."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from jitmk.model.spec import NormKind
from jitmk.program.configs import Epilogue, MatvecConfig, Prologue
from jitmk.reference.ops.activate import apply_activation
from jitmk.reference.ops.norm import normalise
from jitmk.reference.ops.rounding import soft_capped, to_bf16, unit_values


@dataclass(frozen=True)
class MatvecVectors:
    """The constant vectors of a matvec, each None where its config has no use for it.

    Attributes:
        norm, norm_bias: fp32 [columns], of the prologue.
        post_norm, post_norm_bias: fp32 [columns], of the post-norm.
        bias: fp32 [rows].
    """

    norm: torch.Tensor | None = None
    norm_bias: torch.Tensor | None = None
    post_norm: torch.Tensor | None = None
    post_norm_bias: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def matvec(
    config: MatvecConfig,
    units: range,
    x: torch.Tensor,
    weights: torch.Tensor,
    vectors: MatvecVectors = MatvecVectors(),
    *,
    residual: torch.Tensor | None = None,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Some rows of a matrix-vector product, with prologue and epilogue.

    With a post-norm, x = fp32(residual + post_scale * norm(x)) first. Then y = W p(x) + bias, where p(x) is bf16(x)
    without a norm; RMS makes it y = W bf16(x * norm) / sqrt(mean(x^2) + eps) + bias. With the prologue MERGE, x is what
    `merge_splits` makes of the splits.

    Args:
        config: shapes, and which parts there are.
        units: groups of 8 rows.
        x: [tokens, columns], bf16 values.
        weights: [rows, columns], bf16 values in any floating type.
        vectors: norms and bias.
        residual: fp32; with a post-norm [tokens, columns], for RESIDUAL [tokens, rows of the units].
        sums: the type in which values are added.

    Returns:
        By operand, [tokens, values of the units]: "output" (bf16 values; for LOGITS the fp32 logits), and for RESIDUAL
        "residual_out", the fp32 sum; with `post_sum` that is x of a post-norm, `sum_values` of it for each unit.
    """
    rows = unit_values(units, config.rows)
    selected = weights if len(units) == config.layout.units and units.step == 1 else weights[rows]
    total = residual_sum(config, x, vectors, residual, sums)
    operand, scale = _normed(config, total, vectors, sums)
    y = F.linear(operand.to(sums), selected.to(sums)) * scale
    if vectors.bias is not None:
        y = y + vectors.bias[rows]
    outputs = _epilogue(config, y, residual)
    if config.post_sum:
        outputs["residual_out"] = total[:, unit_values(units, config.columns, config.sum_values)]
    return outputs


def prologue(
    config: MatvecConfig,
    x: torch.Tensor,
    vectors: MatvecVectors,
    residual: torch.Tensor | None = None,
    sums: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """What is multiplied with the matrix, [tokens, columns], bf16 values, and what the products are multiplied with.

    Arguments are those of `matvec`.
    """
    return _normed(config, residual_sum(config, x, vectors, residual, sums), vectors, sums)


def residual_sum(
    config: MatvecConfig, x: torch.Tensor, vectors: MatvecVectors, residual: torch.Tensor | None, sums: torch.dtype
) -> torch.Tensor:
    """The residual behind a post-norm, fp32 [tokens, columns]; x without one. Arguments are those of `matvec`."""
    if config.post is None:
        return x
    assert residual is not None and vectors.post_norm is not None, "a post-norm needs the residual and a weight"
    eps, bias = config.norm_eps, vectors.post_norm_bias
    return (residual + config.post_scale * normalise(config.post, x, vectors.post_norm, bias, eps, sums)).float()


def _normed(
    config: MatvecConfig, x: torch.Tensor, vectors: MatvecVectors, sums: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | float]:
    if config.prologue in (Prologue.NONE, Prologue.MERGE):
        return to_bf16(x), 1.0
    assert vectors.norm is not None, "the prologue needs the norm's weight"
    if config.prologue is Prologue.RMS:
        mean = x.to(sums).square().mean(-1, keepdim=True)
        return to_bf16(x * vectors.norm), torch.rsqrt(mean + config.norm_eps)
    return to_bf16(normalise(NormKind.LAYER, x, vectors.norm, vectors.norm_bias, config.norm_eps, sums).float()), 1.0


def _epilogue(config: MatvecConfig, y: torch.Tensor, residual: torch.Tensor | None) -> dict[str, torch.Tensor]:
    if config.epilogue is Epilogue.RESIDUAL:
        assert residual is not None, "the epilogue RESIDUAL needs the residual"
        total = (config.scale * y + residual).float()
        return {"output": to_bf16(total), "residual_out": total}
    if config.epilogue is Epilogue.GATED:
        y = apply_activation(config.activation, y[:, 0::2]) * y[:, 1::2]
    elif config.epilogue is Epilogue.ACTIVATED:
        y = apply_activation(config.activation, y)
    elif config.epilogue is Epilogue.LOGITS:
        return {"output": soft_capped(config.scale * y, config.soft_cap).float()}
    return {"output": to_bf16(y.float())}
