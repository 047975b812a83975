from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from jitmk.model.spec import Activation, NormKind
from jitmk.program.configs import Epilogue, MatvecConfig, Prologue, ResidualNormAddConfig
from jitmk.reference.ops.matvec import MatvecVectors, matvec
from jitmk.reference.ops.residual_norm_add import residual_norm_add
from jitmk.reference.ops.rounding import to_bf16

BF16 = 2.0**-8
"""Twice the relative rounding error of bf16: room for the products that are rounded before they are added."""


def config(rows: int, columns: int, epilogue: Epilogue, **changes: Any) -> MatvecConfig:
    activated = epilogue in (Epilogue.GATED, Epilogue.ACTIVATED)
    activation = Activation.SILU if activated else None
    return replace(MatvecConfig(rows, columns, epilogue, activation=activation), **changes)


def tensors(rows: int, columns: int, tokens: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x [tokens, columns] and W [rows, columns], bf16 values, with outputs around 1."""
    return to_bf16(torch.randn(tokens, columns)), to_bf16(torch.randn(rows, columns) * columns**-0.5)


def truth(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.double() @ w.double().T


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool(((got.double() - expected).abs() <= tolerance * (1 + expected.abs())).all())


def test_store_rounds_to_bf16() -> None:
    x, w = tensors(24, 64, tokens=3)
    y = matvec(config(24, 64, Epilogue.STORE), range(3), x, w)["output"]
    assert torch.equal(y, to_bf16(y)) and close(y, truth(x, w), BF16)


def test_logits_stay_fp32() -> None:
    x, w = tensors(13, 64)
    y = matvec(config(13, 64, Epilogue.LOGITS), range(2), x, w)["output"]
    assert y.shape == (1, 13) and close(y, truth(x, w), 1e-6)


def test_norm() -> None:
    x, w = tensors(16, 128)
    norm = 1 + 0.3 * torch.randn(128)
    y = matvec(
        config(16, 128, Epilogue.LOGITS, prologue=Prologue.RMS, norm_eps=1e-5), range(2), 4 * x, w, MatvecVectors(norm)
    )["output"]
    rms = (4 * x).double().square().mean().add(1e-5).sqrt()
    assert close(y, truth(to_bf16(4 * x * norm), w) / rms, 1e-5)
    assert close(y, truth(4 * x * norm, w) / rms, 2 * BF16)


def test_residual_publishes_sum_and_rounding() -> None:
    x, w = tensors(16, 64)
    residual, bias = 100 * torch.randn(1, 16), torch.randn(16)
    out = matvec(
        config(16, 64, Epilogue.RESIDUAL, bias=True), range(2), x, w, MatvecVectors(bias=bias), residual=residual
    )
    assert close(out["residual_out"], truth(x, w) + bias + residual, 1e-6)
    assert torch.equal(out["output"], to_bf16(out["residual_out"]))


def test_gated_rows_alternate() -> None:
    x, w = tensors(32, 64)
    gate, up = truth(x, w)[:, 0::2], truth(x, w)[:, 1::2]
    y = matvec(config(32, 64, Epilogue.GATED), range(4), x, w)["output"]
    assert y.shape == (1, 16) and close(y, gate * torch.sigmoid(gate) * up, BF16)


def test_a_layer_norm_is_applied_before_the_product() -> None:
    x, w = tensors(16, 128, tokens=2)
    x, norm, shift = to_bf16(3 * x + 1), 1 + 0.3 * torch.randn(128), torch.randn(128)
    shape = config(16, 128, Epilogue.LOGITS, prologue=Prologue.LAYER, norm_eps=1e-3, norm_bias=True)
    y = matvec(shape, range(2), x, w, MatvecVectors(norm, shift), sums=torch.float64)["output"]
    normed = functional.layer_norm(x.double(), (128,), norm.double(), shift.double(), 1e-3).float()
    assert close(y, truth(to_bf16(normed), w), 1e-5)
    plain = matvec(replace(shape, norm_bias=False), range(2), x, w, MatvecVectors(norm), sums=torch.float64)["output"]
    normed = functional.layer_norm(x.double(), (128,), norm.double(), None, 1e-3).float()
    assert close(plain, truth(to_bf16(normed), w), 1e-5)


@pytest.mark.parametrize("prologue", [Prologue.NONE, Prologue.RMS, Prologue.LAYER])
@pytest.mark.parametrize("post", NormKind)
def test_a_post_norm_makes_the_residual_first(post: NormKind, prologue: Prologue) -> None:
    """What RESIDUAL_NORM_ADD publishes is what the prologue goes on with."""
    y, w = tensors(16, 128)
    residual = 2 * torch.randn(1, 128)
    vectors = MatvecVectors(*(1 + 0.3 * torch.randn(4, 128)))
    shape = config(
        16, 128, Epilogue.LOGITS, prologue=prologue, norm_eps=1e-3, norm_bias=True, post=post, post_scale=0.5
    )
    out = matvec(shape, range(2), y, w, vectors, residual=residual, sums=torch.float64)["output"]
    add = ResidualNormAddConfig(128, post, 1e-3, True, 0.5, 1, 1)
    assert vectors.post_norm is not None and vectors.post_norm_bias is not None
    sums = residual_norm_add(add, range(1), y, residual, vectors.post_norm, vectors.post_norm_bias, sums=torch.float64)
    plain = replace(shape, post=None)
    expected = matvec(plain, range(2), sums["residual_out"], w, vectors, sums=torch.float64)["output"]
    assert torch.equal(out, expected)
    assert not torch.equal(expected, matvec(plain, range(2), residual, w, vectors, sums=torch.float64)["output"])


def test_activated_rows() -> None:
    x, w = tensors(16, 64)
    shape = config(16, 64, Epilogue.ACTIVATED, activation=Activation.RELU)
    y = matvec(shape, range(2), x, w)["output"]
    assert close(y, truth(x, w).clamp(min=0), BF16)


def test_scales_and_caps() -> None:
    x, w = tensors(16, 64)
    residual, bias = torch.randn(1, 16), torch.randn(16)
    shape = config(16, 64, Epilogue.RESIDUAL, bias=True, scale=0.25)
    out = matvec(shape, range(2), x, w, MatvecVectors(bias=bias), residual=residual)
    assert close(out["residual_out"], (truth(x, w) + bias) / 4 + residual, 1e-6)
    logits = matvec(config(16, 64, Epilogue.LOGITS, scale=3.0, soft_cap=2.0), range(2), x, w)["output"]
    assert close(logits, 2 * torch.tanh(3 * truth(x, w) / 2), 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(Epilogue), st.integers(1, 9), st.integers(1, 5), st.data())
def test_units_are_rows_of_the_whole(epilogue: Epilogue, units: int, columns: int, data: st.DataObject) -> None:
    """Any progression of units gives the rows that the whole product has; with fp64 sums, bit for bit."""
    rows = 8 * units if epilogue is Epilogue.GATED else 8 * units - data.draw(st.integers(0, 7))
    x, w = tensors(rows, 16 * columns)
    bias, residual = torch.randn(rows), torch.randn(1, rows)
    shape = config(rows, 16 * columns, epilogue, bias=True)

    def run(some: range) -> dict[str, torch.Tensor]:
        mine = torch.tensor([row for unit in some for row in range(8 * unit, min(rows, 8 * unit + 8))])
        return matvec(shape, some, x, w, MatvecVectors(bias=bias), residual=residual[:, mine], sums=torch.float64)

    whole, step = run(range(units)), data.draw(st.integers(1, units))
    dealt = [run(range(first, units, step)) for first in range(step)]
    for operand, values in whole.items():
        per_unit = 4 if epilogue is Epilogue.GATED else 8
        places = [
            [place for unit in range(first, units, step) for place in range(per_unit * unit, per_unit * (unit + 1))]
            for first in range(step)
        ]
        for some, part in zip(places, dealt, strict=True):
            inside = [place for place in some if place < values.shape[1]]
            assert torch.equal(part[operand], values[:, inside])


def test_residual_is_needed() -> None:
    x, w = tensors(8, 16)
    with pytest.raises(AssertionError, match="needs the residual"):
        matvec(config(8, 16, Epilogue.RESIDUAL), range(1), x, w)
