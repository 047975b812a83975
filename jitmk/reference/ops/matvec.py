"""MATVEC: y = epilogue(W prologue(x)), for units of 8 rows of W."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jitmk.program.program import Epilogue, MatvecConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def matvec(
    config: MatvecConfig,
    units: range,
    x: torch.Tensor,
    weights: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Some rows of a matrix-vector product, with prologue and epilogue.

    With a norm: y = W bf16(x * norm) / sqrt(mean(x^2) + eps) + bias; without: y = W x + bias.

    Args:
        config: shapes, and which parts there are.
        units: groups of 8 rows.
        x: [tokens, columns], bf16 values.
        weights: [rows, columns], bf16 values in any floating type.
        norm: [columns], the norm's weight.
        bias: [rows].
        residual: [tokens, rows of the units], what RESIDUAL adds to.
        sums: the type in which dot products and squares are added.

    Returns:
        By operand, [tokens, values of the units]: "output" (bf16 values; for LOGITS the fp32 logits), and for RESIDUAL
        "residual_out", the fp32 sum.
    """
    rows = unit_values(units, config.rows)
    selected = weights if len(units) == config.layout.units and units.step == 1 else weights[rows]
    operand = x if norm is None else to_bf16(x * norm)
    y = F.linear(operand.to(sums), selected.to(sums))
    if config.norm:
        mean = x.to(sums).square().mean(-1, keepdim=True)
        y = y * torch.rsqrt(mean + config.norm_eps)
    if bias is not None:
        y = y + bias[rows]
    return _EPILOGUES[config.epilogue](y, residual)


def _store(y: torch.Tensor, residual: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"output": to_bf16(y.float())}


def _residual(y: torch.Tensor, residual: torch.Tensor | None) -> dict[str, torch.Tensor]:
    assert residual is not None, "the epilogue RESIDUAL needs the residual"
    total = (y + residual).float()
    return {"output": to_bf16(total), "residual_out": total}


def _gated(y: torch.Tensor, residual: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"output": to_bf16((F.silu(y[:, 0::2]) * y[:, 1::2]).float())}


def _logits(y: torch.Tensor, residual: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"output": y.float()}


_EPILOGUES = {
    Epilogue.STORE: _store,
    Epilogue.RESIDUAL: _residual,
    Epilogue.GATED: _gated,
    Epilogue.LOGITS: _logits,
}
